"""A run's world model as a small folder that `diamond_gym` plays: weights and start contexts."""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diamond_gym.checkpoints import WorldDescription, load_agent, save_world
from diamond_gym.data.episodes import EpisodeDataset
from diamond_gym.errors import CacheError, InvalidInputError
from diamond_gym.evaluate import card, evaluation
from diamond_gym.evaluate.settings import Settings
from diamond_gym.world.models import Agent, AgentConfig
from diamond_gym.world.world_model import WorldModel
from trainers.diamond import data, settings
from trainers.diamond.average import Validation, best_average
from trainers.diamond.config import WORLD_MODEL_PARTS, TrainerConfig
from trainers.diamond.run_folder import RunFolder


@dataclass
class ExportOptions:
    """What to write, and where.

    Attributes:
        run: Run folder; its newest agent is taken.
        out: Folder to write.
        rew_end_model_run: Run folder whose reward/end model is taken instead.
        dtype: "float16" or "float32".
        num_contexts: Start contexts, drawn from the run's data.
        max_mb: Largest size of the folder in MB (10^6 bytes).
        average: Whether the denoiser is the best average of the run's snapshots instead of the newest one.
        evaluate: Whether the world is evaluated and gets a model card.
    """

    run: str
    out: str
    rew_end_model_run: str | None = None
    dtype: str = "float16"
    num_contexts: int = 64
    max_mb: float = 4.0
    average: bool = False
    evaluate: bool = False


@dataclass(frozen=True)
class _Trained:
    """A run that has an agent."""

    run: RunFolder
    config: TrainerConfig
    description: WorldDescription
    epoch: int
    agent: Agent

    @classmethod
    def read(cls, path: str) -> _Trained:
        run = RunFolder.existing(Path(path))
        config = settings.from_yaml(run.config_file)
        epoch = run.newest_epoch()
        agent = load_agent(run.agent_file(epoch))
        return cls(run, config, WorldDescription.load(run.world_file), epoch, agent)

    def learned(self, part: str) -> bool:
        """Whether the part's weights are more than random."""
        initialization = self.config.initialization
        given = initialization.path_to_ckpt is not None and getattr(initialization, f"load_{part}")
        return given or part in self.config.training.trained_parts

    def training(self, part: str) -> dict[str, Any]:
        """What is worth telling about how the part was trained."""
        training = getattr(self.config, part).training
        told: dict[str, Any] = {"command": (self.description.training or {}).get("command")}
        if part in self.config.training.trained_parts:
            told |= {"steps": training.num_steps(self.epoch), "batch_size": training.batch_size}
        return told | {"epochs": self.epoch, "data": self.data()}

    def data(self) -> dict[str, Any]:
        """What the run learned from."""
        folder, _ = data.dataset_folders(self.config, self.run)
        dataset = EpisodeDataset(folder)
        counts = {"episodes": dataset.num_episodes, "steps": dataset.num_steps}
        if self.config.static_dataset.path is not None:
            return counts | {"static_dataset": Path(self.config.static_dataset.path).name}
        return counts | {"players": [asdict(player) for player in self.config.players["train"]]}


def export(options: ExportOptions) -> dict[str, int]:
    """Writes the folder.

    Returns:
        Size in bytes of each file.

    Raises:
        InvalidInputError: A part was not trained, the two runs do not fit together, or the folder would be
            too large; nothing is written then.
        CheckpointNotFoundError: A path is not a run folder, or holds no agent yet.
        CacheError: The folder cannot be written.
    """
    source = _Trained.read(options.run)
    sources: dict[str, _Trained] = {part: source for part in WORLD_MODEL_PARTS}
    if options.rew_end_model_run is not None:
        sources["rew_end_model"] = _Trained.read(options.rew_end_model_run)
    _check(sources)
    if options.evaluate and source.description.game is None:
        raise InvalidInputError("evaluate=true plays the real game, and the run has none: leave it out")
    told = {part: trained.training(part) for part, trained in sources.items()}
    agent = _combined(sources["denoiser"].agent, sources["rew_end_model"].agent)
    if options.average:
        told["denoiser"]["averaged_snapshots"] = _average(source, agent)
    contexts = data.choose_contexts(source.config, source.run, num_contexts=options.num_contexts)
    out = Path(options.out).expanduser()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
            save_world(
                temporary,
                agent,
                game=source.description.game,
                action_meanings=source.description.action_meanings,
                sampler=source.description.sampler,
                contexts=contexts,
                dtype=options.dtype,
                training=told,
            )
            files = sorted(Path(temporary).iterdir())
            sizes = {file.name: file.stat().st_size for file in files}
            _check_size(sizes, options.max_mb)
            out.mkdir(exist_ok=True)
            for file in files:
                os.replace(file, out / file.name)
    except OSError as error:
        if isinstance(error, CacheError):
            raise
        raise CacheError(f"cannot write {out}: {error}") from error
    if options.evaluate:
        _evaluate(out, str(source.description.game))
    return sizes


def _average(source: _Trained, agent: Agent) -> int:
    """Puts the best average of the run's snapshots into the agent's denoiser; of how many it is."""
    _, test = data.dataset_folders(source.config, source.run)
    folder = test if (test / "info.pt").is_file() else data.dataset_folders(source.config, source.run)[0]
    n = agent.denoiser.config.inner_model.num_steps_conditioning
    validation = Validation.of(source.description.game, list(EpisodeDataset(folder)), n)
    world_model = WorldModel(agent.denoiser, agent.rew_end_model, source.description.sampler)
    count, scores = best_average(source.run.agent_files(), world_model, validation)
    for size, score in scores.items():
        print(f"average of the last {size} snapshots: {score:.2f}{' (taken)' if size == count else ''}")
    return count


def _evaluate(folder: Path, game: str) -> None:
    """Measures a saved world and writes its model card."""
    with tempfile.TemporaryDirectory() as out:
        evaluation.run(Settings(game=game, checkpoint=str(folder), out=out))
        card.write_card(Path(out) / "fidelity.json", folder)


def _check(sources: dict[str, _Trained]) -> None:
    for part, trained in sources.items():
        if not trained.learned(part):
            key = "rew_end_model_run" if part == "rew_end_model" else "run"
            raise InvalidInputError(
                f"the run {trained.run.path} has not trained its {part}: give {key}=PATH of one that has"
            )
    denoiser, rew_end = (sources[part].description for part in WORLD_MODEL_PARTS)
    if denoiser.game != rew_end.game:
        raise InvalidInputError(
            f"the denoiser is of {denoiser.game}, the reward/end model of {rew_end.game}: "
            "they must be of one game"
        )


def _combined(denoiser: Agent, rew_end: Agent) -> Agent:
    """A world model of one agent's denoiser and the other's reward/end model."""
    first, second = denoiser.config, rew_end.config
    if first.num_actions != second.num_actions:
        raise InvalidInputError(
            f"the denoiser has {first.num_actions} actions, the reward/end model {second.num_actions}"
        )
    config = AgentConfig(first.denoiser, second.rew_end_model, first.actor_critic, first.num_actions)
    agent = Agent(config, with_actor_critic=False)
    agent.denoiser, agent.rew_end_model = denoiser.denoiser, rew_end.rew_end_model
    return agent.eval()


def _check_size(sizes: dict[str, int], max_mb: float) -> None:
    total = sum(sizes.values()) / 1e6
    if total > max_mb:
        raise InvalidInputError(
            f"the folder would have {total:.2f} MB, more than max_mb={max_mb:g}: take fewer contexts, "
            "float16, smaller networks, or give a larger max_mb"
        )
