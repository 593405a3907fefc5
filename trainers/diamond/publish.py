"""A run's world model on the Hugging Face Hub: weights, contexts, configuration and a model card.

The folder is complete before the Hub is asked for anything, and all of it goes there in one commit.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelCardData, constants, get_token

from diamond_gym.errors import InvalidInputError
from diamond_gym.evaluate import card
from diamond_gym.files import write_file
from trainers.diamond import settings
from trainers.diamond.config import WandbConfig
from trainers.diamond.errors import HubError
from trainers.diamond.export import ExportOptions, export
from trainers.diamond.new_folder import new_folder
from trainers.diamond.run_folder import RunFolder

USAGE = """\
usage: python -m trainers.diamond push-to-hub run=PATH repo_id=USER/NAME [key=value ...]

Publishes the run's newest world model on the Hugging Face Hub, for
gymnasium.make("Diamond<Game>-v0", checkpoint="hub:USER/NAME"): model.safetensors, contexts.safetensors,
config.json, trainer.yaml and a model card, README.md. The card holds the training command as it was given.
Log in first, with `hf auth login` or HF_TOKEN.

  run                 the run folder; its newest agent is taken
  repo_id             the repository; it is made if it is not there
  private             true makes the repository private (default: false)
  dry_run             true writes the folder `out` and sends nothing; so does --dry-run (default: false)
  out                 folder to write, and to keep (default: none)
  fidelity            fidelity.json of `python -m diamond_gym.evaluate`, for the card (default: none)
  license             license of the weights, by the Hub's names (default: mit)
  rew_end_model_run   run folder whose reward/end model is taken instead (default: none)
  dtype               float16 or float32 (default: float16)
  num_contexts        moments of real games to start from (default: 64)"""

_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")
_TAGS = ["reinforcement-learning", "world-model", "diffusion", "diamond", "gymnasium"]
_LICENSE = re.compile(r"[a-z0-9.-]+")


@dataclass
class PublishOptions:
    """What to publish, and where; see `USAGE`.

    Raises:
        InvalidInputError: A value is not one of those accepted.
    """

    run: str
    repo_id: str
    private: bool = False
    dry_run: bool = False
    out: str | None = None
    fidelity: str | None = None
    license: str = "mit"
    rew_end_model_run: str | None = None
    dtype: str = "float16"
    num_contexts: int = 64

    def __post_init__(self) -> None:
        if _REPO_ID.fullmatch(self.repo_id) is None:
            raise InvalidInputError(f"repo_id must be of the form USER/NAME, got {self.repo_id!r}")
        if _LICENSE.fullmatch(self.license) is None:
            raise InvalidInputError(f"license must be a name such as mit or cc-by-4.0, got {self.license!r}")
        if self.num_contexts < 1:
            raise InvalidInputError(f"num_contexts must be at least 1, got {self.num_contexts}")
        if self.dry_run and self.out is None:
            raise InvalidInputError("dry_run=true writes a folder: give out=FOLDER")


def push_to_hub(options: PublishOptions) -> str:
    """Writes the folder and, unless it is a dry run, uploads it.

    Returns:
        What to tell the user.

    Raises:
        InvalidInputError: A part was not trained, or the fidelity is of another game or file.
        CheckpointNotFoundError: A path is not a run folder, or holds no agent yet.
        CacheError: The folder is not empty, or cannot be written.
        HubError: Nobody is logged in, or the Hub cannot be reached or refuses.
    """
    if not options.dry_run and get_token() is None:
        raise HubError("nobody is logged in: run `hf auth login`, or set HF_TOKEN to a token that may write")
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(options.out or Path(temporary, "world")).expanduser()
        with new_folder(out) as folder:
            write_world(options, folder)
        if options.dry_run:
            names = ", ".join(sorted(path.name for path in out.iterdir()))
            return f"{out}: {names}; nothing was uploaded"
        url = _upload(options, out)
    return f'published: {url}\nto play in it: checkpoint="hub:{options.repo_id}"'


def write_world(options: PublishOptions, folder: Path) -> None:
    """Writes everything that is published."""
    result = None if options.fidelity is None else card.read_result(Path(options.fidelity).expanduser())
    export(
        ExportOptions(
            run=options.run,
            out=str(folder),
            rew_end_model_run=options.rew_end_model_run,
            dtype=options.dtype,
            num_contexts=options.num_contexts,
            max_mb=float("inf"),
        )
    )
    description = card.read_description(folder)
    game = description.game
    if result is not None and result["settings"]["game"] != game:
        raise InvalidInputError(
            f"fidelity={options.fidelity} is of {result['settings']['game']}, the run is of "
            f"{game or 'no Atari game'}"
        )
    write_file(folder / "config.json", description.to_json().encode())
    write_file(folder / "trainer.yaml", _public_config(options.run).encode())
    text = card.model_card(result, asdict(description), card.sizes(folder), repo_id=options.repo_id)
    write_file(folder / "README.md", f"---\n{_header(options, game)}\n---\n\n{text}".encode())


def _header(options: PublishOptions, game: str | None) -> str:
    """The card's metadata, as YAML."""
    tags = _TAGS if game is None else [*_TAGS, "atari", game]
    data = ModelCardData(
        license=options.license,
        library_name="diamond-gym",
        pipeline_tag="reinforcement-learning",
        tags=tags,
    )
    return data.to_yaml()


def _public_config(run: str) -> str:
    """The run's configuration, without the folders and accounts of who made it."""
    config = settings.from_yaml(RunFolder.existing(Path(run)).config_file)
    config.static_dataset = replace(config.static_dataset, path=_name(config.static_dataset.path))
    path = _name(config.initialization.path_to_ckpt)
    config.initialization = replace(config.initialization, path_to_ckpt=path)
    config.wandb = WandbConfig()
    return settings.to_yaml(config)


def _name(path: str | None) -> str | None:
    return None if path is None else Path(path).name


def _upload(options: PublishOptions, folder: Path) -> str:
    """Makes the repository if it is not there and commits all files at once; returns its address."""
    api, made = HfApi(), False
    try:
        url = api.create_repo(options.repo_id, private=options.private or None, exist_ok=True)
        made = True
        is_public = options.private and not api.model_info(options.repo_id).private
        if not is_public:
            api.create_commit(
                options.repo_id,
                [CommitOperationAdd(file.name, file) for file in sorted(folder.iterdir())],
                commit_message="Publish a world model",
            )
    except Exception as error:  # which HTTP library's errors, depends on the version of huggingface_hub
        raise HubError(_explained(error, options.repo_id, made)) from error
    if is_public:
        raise HubError(
            f"{options.repo_id} is there already and public: make it private on the Hub, choose another "
            "repo_id, or leave out private=true; no file was uploaded"
        )
    return str(url)


def _explained(error: BaseException, repo_id: str, made: bool) -> str:
    while error.__cause__ is not None and not hasattr(error, "response"):  # a failed upload says why below
        error = error.__cause__
    reason = " ".join(str(error).split()) or type(error).__name__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        what = "does not accept the token: log in again with `hf auth login`, or set HF_TOKEN to another"
    elif status in (403, 404):
        what = f"does not let this token write to {repo_id}: take a token that may, or a repo_id of your own"
    elif status is not None:
        what = f"refused (status {status})"
    else:
        what = f"cannot be reached at {constants.ENDPOINT}, or broke off"
    done = "the repository is there, but no file was uploaded" if made else "nothing was uploaded"
    return f"the Hugging Face Hub {what}; {done}. It said: {reason}"
