"""A run's world model as a small folder that `diamond_gym` plays, and on the Hugging Face Hub.

The denoiser may be the best average of the run's snapshots.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import CommitOperationAdd, HfApi, ModelCardData, constants, get_token
from torch import Tensor

from diamond_gym import cli
from diamond_gym import files as disk
from diamond_gym.checkpoints import WorldDescription, load_agent, save_world
from diamond_gym.checkpoints.weights import read_state_dict
from diamond_gym.cli import option
from diamond_gym.data.episodes import Episode, EpisodeDataset
from diamond_gym.errors import CacheError, InvalidInputError
from diamond_gym.evaluate import card, evaluation, heldout, measure, metrics
from diamond_gym.evaluate.bounces import measure_single_steps
from diamond_gym.evaluate.heldout import Starts
from diamond_gym.evaluate.imagination import Imaginer
from diamond_gym.evaluate.settings import Settings
from diamond_gym.files import new_folder, visible, write_file
from diamond_gym.world import pixels
from diamond_gym.world.models import Agent
from diamond_gym.world.world_model import WorldModel
from trainers.diamond import data
from trainers.diamond.config import WORLD_MODEL_PARTS, TrainerConfig, WandbConfig, from_yaml, to_yaml
from trainers.diamond.errors import HubError
from trainers.diamond.run_folder import RunFolder

# --- average
# The best average of a run's snapshots, chosen on its test episodes (Karras et al. 2023, EDM2, section 3).
#
# Snapshots late in a run lie close together: their average is often truer than any of them, most of all in
# what lasts (walls, scores). Which average is best is not known beforehand, but cheap to find out.


_log = logging.getLogger(__name__)
NUM_STARTS, HORIZON = 96, 30
"""Number of moments to imagine from, and of steps to imagine."""
STEPS = (1, 5, 15, 30)
"""Imagined steps that are scored."""
DECIBELS = 30.0
"""Weight, in dB, of objects that are always in the right place."""

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Validation:
    """A score of world models on episodes that neither training nor the model card uses.

    Attributes:
        game: The game's name; None for other environments.
        episodes: Episodes, finished or cut short.
        starts: Moments in them to imagine from.
    """

    game: str | None
    episodes: Sequence[Episode]
    starts: Starts = field(repr=False)

    @classmethod
    def of(cls, game: str | None, episodes: Sequence[Episode], num_steps_conditioning: int) -> Validation:
        """Choose moments that are spread evenly over the episodes.

        Raises:
            InvalidInputError: All episodes are shorter than a context.
        """
        finished = [episode for episode in episodes if episode.final_observation is not None]
        starts = heldout.choose_starts(finished, NUM_STARTS, num_steps_conditioning, HORIZON)
        return cls(game, finished, starts)

    def score(self, world_model: WorldModel) -> float:
        """Mean PSNR in dB at `STEPS`, and `DECIBELS` times the mean share of objects in the right place.

        Objects count in games where they can be located, at `STEPS` and after single steps of every kind.
        """
        imagined = Imaginer(world_model, seed=0, progress=False).future(self.starts)
        real, valid = self.starts.future_obs.numpy(), self.starts.valid.numpy()
        quality = pixels.psnr(measure.squared_errors(real, imagined.obs.numpy()))
        columns = [step - 1 for step in STEPS]
        score = float(np.nanmean(metrics.mean_where(quality, valid)[columns]))
        shares = [
            measure.share_within(detector, real, imagined.obs.numpy(), valid)[columns]
            for detector in measure.OBJECTS.get(self.game or "", {}).values()
        ]
        single = measure_single_steps(self.game or "", world_model, self.episodes)
        rights = [np.array([row["right"] for row in single.values()])] if single else []
        known = [np.nanmean(values) for values in shares + rights if np.isfinite(values).any()]
        return score + (DECIBELS * float(np.mean(known)) if known else 0.0)


def averages(files: Sequence[Path], prefix: str) -> Iterator[tuple[int, Weights]]:
    """Yield averages of the last 1, 2, 3, 5, 8, ... snapshots of a network, and of all of them.

    Args:
        files: Weights of agents, oldest first; at least one.
        prefix: Beginning of the names of the network's weights, which is removed.

    Yields:
        The number of averaged snapshots, and their average in float32.
    """
    sums: dict[str, Tensor] = {}
    wanted = _window_sizes(len(files))
    for count, file in enumerate(reversed(files), start=1):
        weights = read_state_dict(file)
        for name, x in weights.items():
            if name.startswith(prefix):
                key = name.removeprefix(prefix)
                sums[key] = x.double() + sums.get(key, 0.0)
        if count in wanted:
            yield count, {name: (x / count).float() for name, x in sums.items()}


def _window_sizes(count: int) -> set[int]:
    """The numbers 1, 2, 3, 5, 8, ... below a count, and the count."""
    sizes, following = 1, 2
    result = {count}
    while sizes <= count:
        result.add(sizes)
        sizes, following = following, sizes + following
    return result


def best_average(
    files: Sequence[Path], world_model: WorldModel, validation: Validation
) -> tuple[int, dict[int, float]]:
    """Put the average with the highest score into a world model's denoiser.

    Args:
        files: Weights of agents, oldest first; at least one.
        world_model: World model in eval mode, whose denoiser is changed.
        validation: Scores the averages.

    Returns:
        The number of last snapshots in the best average, and the score of each average.
    """
    scores: dict[int, float] = {}
    best: Weights = {}
    for count, weights in averages(files, "denoiser."):
        world_model.denoiser.load_state_dict(weights)
        scores[count] = validation.score(world_model)
        if scores[count] >= max(scores.values()):
            best = weights
    world_model.denoiser.load_state_dict(best)
    return max(scores, key=lambda count: scores[count]), scores


# --- export
# A run's world model as a small folder that `diamond_gym` plays: weights and start contexts.


@dataclass
class ExportOptions:
    """What to export, and where to.

    Raises:
        InvalidInputError: A number is out of range, or there is no such precision.
    """

    run: str = option(MISSING, "the run folder; its newest agent is taken", is_path=True)
    out: str = option(MISSING, "the folder to write", is_path=True)
    rew_end_model_run: str | None = option(
        None, "run folder whose reward/end model is taken instead", is_path=True
    )
    dtype: str = option("float16", "precision of the weights", choices=("float16", "float32"))
    num_contexts: int = option(64, "number of start contexts, from real games", least=1)
    max_mb: float | None = option(
        None,
        "largest size in MB (10^6 bytes), such as 4 for a world that a package embeds",
        above=0,
    )
    average: bool = option(False, "take the best average of the run's snapshots, chosen on its test episodes")
    evaluate: bool = option(False, "measure the world and write its model card (minutes)")

    def __post_init__(self) -> None:
        cli.check(self)


EXPORT = (
    'Writes a world for gymnasium.make("Diamond<Game>-v0", checkpoint=FOLDER): weights and start contexts.'
)


@dataclass(frozen=True)
class _Trained:
    """A run that has saved an agent."""

    run: RunFolder
    config: TrainerConfig
    description: WorldDescription
    epoch: int
    agent: Agent

    @classmethod
    def read(cls, path: str) -> _Trained:
        run = RunFolder.existing(Path(path))
        config = from_yaml(run.config_file)
        epoch = run.newest_epoch()
        agent = load_agent(run.agent_file(epoch))
        return cls(run, config, WorldDescription.load(run.world_file), epoch, agent)

    def learned(self, part: str) -> bool:
        """Whether the part has been trained, or started from trained weights."""
        initialization = self.config.initialization
        given = initialization.path_to_ckpt is not None and getattr(initialization, f"load_{part}")
        return given or part in self.config.training.trained_parts

    def training(self, part: str) -> dict[str, Any]:
        """Description of the part's training, for the model card."""
        training = getattr(self.config, part).training
        told: dict[str, Any] = {"command": (self.description.training or {}).get("command")}
        if part in self.config.training.trained_parts:
            told |= {"steps": training.num_steps(self.epoch), "batch_size": training.batch_size}
        return told | {"epochs": self.epoch, "data": self.data()}

    @property
    def dataset_folders(self) -> tuple[Path, Path]:
        """Folders of its train and test episodes; the latter may not exist."""
        return data.dataset_folders(self.run, self.config.static_dataset)

    def data(self) -> dict[str, Any]:
        """Description of the data that the run learned from."""
        folder, _ = self.dataset_folders
        dataset = EpisodeDataset(folder)
        counts = {"episodes": dataset.num_episodes, "steps": dataset.num_steps}
        if self.config.static_dataset.path is not None:
            return counts | {"static_dataset": Path(self.config.static_dataset.path).name}
        return counts | {"players": [asdict(player) for player in self.config.players["train"]]}


def export(options: ExportOptions) -> dict[str, int]:
    """Write a run's world model as a folder.

    Returns:
        Size in bytes of each file.

    Raises:
        InvalidInputError: A part was not trained, the two runs do not fit together, or the folder would be
            too large; nothing is written in these cases.
        CheckpointNotFoundError: A path is not a run folder, or holds no agent yet.
        CacheError: The folder cannot be written.
    """
    source = _Trained.read(options.run)
    sources: dict[str, _Trained] = {part: source for part in WORLD_MODEL_PARTS}
    if options.rew_end_model_run is not None:
        sources["rew_end_model"] = _Trained.read(options.rew_end_model_run)
    _check(sources)
    if options.evaluate and source.description.game is None:
        raise InvalidInputError("evaluate=true plays the real game, but the run has no game: leave it out")
    told = {part: trained.training(part) for part, trained in sources.items()}
    agent = _combined(sources["denoiser"].agent, sources["rew_end_model"].agent)
    if options.average:
        told["denoiser"]["averaged_snapshots"] = _average(source, agent)
    contexts = data.choose_contexts(
        source.dataset_folders,
        agent.denoiser.config.inner_model.num_steps_conditioning,
        seed=source.config.common.seed,
        num_contexts=options.num_contexts,
    )
    out = Path(options.out).expanduser()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with disk.temporary_folder(out) as folder:
            save_world(
                folder,
                agent,
                game=source.description.game,
                action_meanings=source.description.action_meanings,
                sampler=source.description.sampler,
                contexts=contexts,
                dtype=options.dtype,
                training=told,
            )
            files = sorted(folder.iterdir())
            sizes = {file.name: file.stat().st_size for file in files}
            _check_size(sizes, options.max_mb)
            if out.is_dir():
                for file in files:
                    os.replace(file, out / file.name)
            else:  # a killed process leaves all files or none
                os.replace(folder, out)
    except OSError as error:
        if isinstance(error, CacheError):
            raise
        raise CacheError(f"cannot write {out}: {error}") from error
    if options.evaluate:
        _evaluate(out, str(source.description.game))
    return sizes


def _average(source: _Trained, agent: Agent) -> int:
    """Put the best average of the run's snapshots into the agent's denoiser; return how many it has."""
    train, test = source.dataset_folders
    folder = test if (test / "info.pt").is_file() else train
    n = agent.denoiser.config.inner_model.num_steps_conditioning
    validation = Validation.of(source.description.game, list(EpisodeDataset(folder)), n)
    world_model = WorldModel(agent.denoiser, agent.rew_end_model, source.description.sampler)
    count, scores = best_average(source.run.agent_files(), world_model, validation)
    for size, score in scores.items():
        taken = " (taken)" if size == count else ""
        _log.info("average of the last %d snapshots: %.2f%s", size, score, taken)
    return count


def _evaluate(folder: Path, game: str) -> None:
    """Measure a saved world and write its model card."""
    with tempfile.TemporaryDirectory() as out:
        evaluation.run(Settings(game=game, checkpoint=str(folder), out=out))
        card.write_card(Path(out) / "fidelity.json", folder)


def _check(sources: dict[str, _Trained]) -> None:
    for part, trained in sources.items():
        if not trained.learned(part):
            key = "rew_end_model_run" if part == "rew_end_model" else "run"
            raise InvalidInputError(
                f"the run {trained.run.path} has not trained its {part}: give {key}=PATH of a run that has"
            )
    denoiser, rew_end = (sources[part].description for part in WORLD_MODEL_PARTS)
    if denoiser.game != rew_end.game:
        raise InvalidInputError(
            f"the denoiser is of {denoiser.game}, the reward/end model of {rew_end.game}: "
            "they must be of one game"
        )


def _combined(denoiser: Agent, rew_end: Agent) -> Agent:
    """Combine one agent's denoiser and the other's reward/end model into a world model."""
    first, second = denoiser.config, rew_end.config
    if first.action_space != second.action_space:
        raise InvalidInputError(
            f"the denoiser has {first.num_actions or first.actions} actions, the reward/end model "
            f"{second.num_actions or second.actions}"
        )
    agent = Agent(replace(first, rew_end_model=second.rew_end_model), with_actor_critic=False)
    agent.denoiser, agent.rew_end_model = denoiser.denoiser, rew_end.rew_end_model
    return agent.eval()


def _check_size(sizes: dict[str, int], max_mb: float | None) -> None:
    total = sum(sizes.values()) / 1e6
    if max_mb is not None and total > max_mb:
        raise InvalidInputError(
            f"the folder would have {total:.2f} MB, more than max_mb={max_mb:g}: take fewer contexts, "
            "float16, smaller networks, or give a larger max_mb"
        )


# --- publish


PUBLISH = """\
Publishes the run's newest world model on the Hugging Face Hub, for
gymnasium.make("Diamond<Game>-v0", checkpoint="hub:USER/NAME"): model.safetensors, contexts.safetensors,
config.json, trainer.yaml and a model card, README.md. The card holds the training command as it was given.
Log in first, with `hf auth login` or HF_TOKEN."""

_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")
_TAGS = ["reinforcement-learning", "world-model", "diffusion", "diamond", "gymnasium"]
_LICENSE = re.compile(r"[a-z0-9.-]+")


@dataclass
class PublishOptions:
    """What to publish, and where to.

    Raises:
        InvalidInputError: A value is not one of those accepted.
    """

    run: str = option(MISSING, "the run folder; its newest agent is taken", is_path=True)
    repo_id: str = option(MISSING, "the repository, which is created if it does not exist")
    private: bool = option(False, "make the repository private")
    dry_run: bool = option(False, "write the folder `out` and send nothing")
    out: str | None = option(None, "folder to write, which is kept", is_path=True)
    fidelity: str | None = option(
        None, "fidelity.json of `python -m diamond_gym.evaluate`, for the card", is_path=True
    )
    license: str = option("mit", "license of the weights, by the Hub's names")
    rew_end_model_run: str | None = option(
        None, "run folder whose reward/end model is taken instead", is_path=True
    )
    dtype: str = option("float16", "precision of the weights", choices=("float16", "float32"))
    num_contexts: int = option(64, "number of start contexts, from real games", least=1)

    def __post_init__(self) -> None:
        cli.check(self)
        if _REPO_ID.fullmatch(self.repo_id) is None:
            raise InvalidInputError(f"repo_id must be of the form USER/NAME, got {self.repo_id!r}")
        if _LICENSE.fullmatch(self.license) is None:
            raise InvalidInputError(f"license must be a name such as mit or cc-by-4.0, got {self.license!r}")
        if self.dry_run and self.out is None:
            raise InvalidInputError("dry_run=true writes a folder: give out=FOLDER")


def push_to_hub(options: PublishOptions) -> str:
    """Write the folder and, unless it is a dry run, upload it.

    Returns:
        The message for the user.

    Raises:
        InvalidInputError: A part was not trained, or the fidelity is of another game or file.
        CheckpointNotFoundError: A path is not a run folder, or holds no agent yet.
        CacheError: The folder is not empty, or cannot be written.
        HubError: Nobody is logged in, or the Hub cannot be reached or refuses the request.
    """
    if not options.dry_run and get_token() is None:
        raise HubError("nobody is logged in: run `hf auth login`, or set HF_TOKEN to a token that may write")
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(options.out or Path(temporary, "world")).expanduser()
        with new_folder(out) as folder:
            write_world(options, folder)
        if options.dry_run:
            names = ", ".join(path.name for path in visible(out))
            return f"{out}: {names}; nothing was uploaded"
        url = _upload(options, out)
    return f'published: {url}\nto play in it: checkpoint="hub:{options.repo_id}"'


def write_world(options: PublishOptions, folder: Path) -> None:
    """Write all published files into a folder."""
    result = None if options.fidelity is None else card.read_result(Path(options.fidelity).expanduser())
    export(
        ExportOptions(
            run=options.run,
            out=str(folder),
            rew_end_model_run=options.rew_end_model_run,
            dtype=options.dtype,
            num_contexts=options.num_contexts,
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
    """The run's configuration, without the folders and accounts of its author."""
    config = from_yaml(RunFolder.existing(Path(run)).config_file)
    config.static_dataset = replace(config.static_dataset, path=_name(config.static_dataset.path))
    path = _name(config.initialization.path_to_ckpt)
    config.initialization = replace(config.initialization, path_to_ckpt=path)
    config.wandb = WandbConfig()
    return to_yaml(config)


def _name(path: str | None) -> str | None:
    return None if path is None else Path(path).name


def _upload(options: PublishOptions, folder: Path) -> str:
    """Create the repository if it does not exist, commit all files at once, and return its address."""
    api, made = HfApi(), False
    try:
        url = api.create_repo(options.repo_id, private=options.private or None, exist_ok=True)
        made = True
        is_public = options.private and not api.model_info(options.repo_id).private
        if not is_public:
            api.create_commit(
                options.repo_id,
                [CommitOperationAdd(file.name, file) for file in visible(folder)],
                commit_message="Publish a world model",
            )
    except (
        Exception
    ) as error:  # the HTTP library, and so its errors, depends on the version of huggingface_hub
        raise HubError(_explained(error, options.repo_id, made)) from error
    if is_public:
        raise HubError(
            f"{options.repo_id} exists already and is public: make it private on the Hub, choose another "
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
        what = f"does not let this token write to {repo_id}: take one that may write, or your own repo_id"
    elif status is not None:
        what = f"refused (status {status})"
    else:
        what = f"cannot be reached at {constants.ENDPOINT}, or broke off"
    done = "the repository exists, but no file was uploaded" if made else "nothing was uploaded"
    return f"the Hugging Face Hub {what}; {done}. It said: {reason}"
