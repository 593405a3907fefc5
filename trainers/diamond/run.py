"""From a configuration to a trained run, and from an unfinished run to its end.

`build` puts the parts of a run together. Every step can be repeated: what an earlier, killed process has
finished is found in the run folder and left alone. With several processes, rank 0 does whatever writes, and
the others read the episodes from the run folder.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch

from diamond_gym import signals
from diamond_gym.backends.build import world_model_kind
from diamond_gym.backends.choose import pick_backend
from diamond_gym.backends.memory import MEMORY_IS_KEPT, keep_freed_memory, peak_memory
from diamond_gym.checkpoints import WorldDescription, published_run
from diamond_gym.data.episodes import EpisodeDataset
from diamond_gym.errors import CheckpointError, DatasetError, InvalidInputError
from diamond_gym.files import write_file
from diamond_gym.games import atari
from diamond_gym.registration import env_id, game_name
from diamond_gym.world.action_space import ActionSpace
from diamond_gym.world.models import Agent
from diamond_gym.world.world_model import WorldModel
from trainers.diamond import data
from trainers.diamond.config import (
    PartTrainingConfig,
    TrainerConfig,
    changed,
    check_parts,
    flat,
    from_yaml,
    to_yaml,
)
from trainers.diamond.distributed import SINGLE_PROCESS, Group
from trainers.diamond.learner import (
    ActorCriticObjective,
    DenoiserObjective,
    Draw,
    GraphedLoss,
    Learner,
    Objective,
    RewEndObjective,
    autocast_of,
)
from trainers.diamond.logging import RunLog, check_dependencies
from trainers.diamond.networks import find_device, initialize, new_agent, place
from trainers.diamond.publish import ExportOptions, export
from trainers.diamond.replay import Hard, Replay, SegmentBatch
from trainers.diamond.rollout import Collector, GamesOnDevice, ImaginedGames, RealGames, SavedGames
from trainers.diamond.run_folder import RunFolder, find_source
from trainers.diamond.trainer import (
    COLLECTION,
    RL_GAMES,
    Progress,
    Schedule,
    Trainer,
    WholeGames,
    derived_seed,
)

_log = logging.getLogger(__name__)

# --- the parts of a run, each given its own part of the configuration, here and nowhere else


def build(
    config: TrainerConfig,
    run: RunFolder,
    agent: Agent,
    train: Replay,
    test: Replay,
    group: Group = SINGLE_PROCESS,
) -> Trainer:
    """Put a run together: world model, learners, data, test games and log.

    Args:
        config: The run.
        run: The folder it is saved in.
        agent: The networks, on their device.
        train: Episodes to learn from.
        test: Episodes to measure the losses on.
        group: The processes that train the run together; each builds its own.
    """
    seed, horizon = config.common.seed, config.world_model_env.horizon
    device = next(agent.parameters()).device
    autocast = autocast_of(config.training.autocast, device)
    backend = pick_backend(config.training.backend, device)
    kind = world_model_kind(backend, device)
    world_model = kind(agent.denoiser, agent.rew_end_model, config.world_model_env.diffusion_sampler)

    # learners: each has a network, an objective on drawn or played batches, and an optimiser
    by_age = config.static_dataset.path is None or not config.static_dataset.ignore_sample_weights

    def objective(name: str, training: PartTrainingConfig) -> Objective:
        draw = Draw(training, by_age, device, group)
        is_simple = training.grad_acc_steps == group.world_size == 1
        graph = GraphedLoss() if backend == "cuda_graph" and is_simple else None
        if name == "denoiser":
            return DenoiserObjective(
                agent.denoiser,
                config.denoiser,
                draw,
                autocast,
                graph=graph,
                given=_given_steps(config, train),
                first_level=config.world_model_env.diffusion_sampler.sigma_max,
            )
        if name == "rew_end_model":
            return RewEndObjective(world_model, config.rew_end_model, draw, autocast, graph=graph)
        assert agent.actor_critic is not None
        if config.training.model_free:
            games = _real_games(config.game, draw, derived_seed(seed, RL_GAMES))
        else:
            games = _imagined_games(world_model, train, draw, horizon, (seed, RL_GAMES))
        loss = config.actor_critic.actor_critic_loss
        num_steps = loss.backup_every or horizon
        return ActorCriticObjective(agent.actor_critic, games, num_steps, loss, autocast, group)

    learners = []
    for name in config.training.trained_parts:
        part = getattr(config, name)
        made = objective(name, part.training)
        learners.append(Learner.of(name, getattr(agent, name), part.training, part.optimizer, made, group))

    # data: what the policy collects, and the whole games that score it
    folders = data.dataset_folders(run, config.static_dataset)
    dataset = collector = whole_games = None
    if config.collects:
        dataset = EpisodeDataset(run.dataset("train"), create=True)
        if group.is_rank_zero:
            assert agent.actor_critic is not None and config.game is not None
            sampling, games_seed = config.collection.train, derived_seed(seed, COLLECTION)
            games = RealGames(config.game, sampling.num_envs, training=True, seed=games_seed)
            collector = Collector(agent.actor_critic, games, sampling, seed=games_seed)
    if config.evaluation.should and agent.actor_critic is not None and config.game is not None:
        fill = config.collects and config.collection.test.players is None
        whole_games = WholeGames(agent.actor_critic, config.game, config.collection.test, seed, fill)

    return Trainer(
        run=run,
        agent=agent.eval(),
        learners=learners,
        train=train,
        test=test,
        world_model=world_model,
        horizon=horizon,
        autocast=autocast,
        schedule=schedule(config),
        evaluation=config.evaluation,
        checkpointing=config.checkpointing,
        log=RunLog(run, config.logging, config.tensorboard, config.wandb, flat(config)),
        seed=seed,
        dataset=dataset,
        collector=collector,
        whole_games=whole_games,
        choose_contexts=partial(data.choose_contexts, folders, world_model.num_steps_conditioning, seed=seed),
        group=group,
    )


def schedule(config: TrainerConfig) -> Schedule:
    """The length of the run; where players have collected, it is as long as if the policy had."""
    collection = config.collection.train
    if config.static_dataset.path is not None or config.training.model_free:
        return Schedule(config.training, None)
    return Schedule(config.training, collection, None if config.collects else collection.first_epoch.min)


def _real_games(game: str | None, draw: Draw, seed: int) -> SavedGames:
    """This process's share of the real games that the actor-critic learns in."""
    assert game is not None
    first, num_games = draw.share.start, draw.share.stop - draw.share.start
    games = RealGames(game, num_games, training=True, seed=seed, first=first)
    return games if draw.device.type == "cpu" else GamesOnDevice(games, draw.device)


def _imagined_games(
    world_model: WorldModel, train: Replay, draw: Draw, horizon: int, seed: tuple[int, int]
) -> ImaginedGames:
    """This process's share of the imagined games that the actor-critic learns in."""
    n, first = world_model.num_steps_conditioning, draw.share.start
    weights = draw.training.sample_weights if draw.by_age else None

    def start(rng: np.random.Generator) -> SegmentBatch:
        return train.draw(rng, 1, n, sample_weights=weights, pad_after=False)

    return ImaginedGames(world_model, start, draw.share.stop - first, horizon, seed=seed, first=first)


def _given_steps(config: TrainerConfig, train: Replay) -> Hard | None:
    """How often the steps of the replay are drawn, where a file says so."""
    training = config.denoiser.training
    if training.step_weights is None:
        return None
    return data.load_step_weights(Path(training.step_weights), sum(train.lengths), training.hard_fraction)


def load_replays(
    config: TrainerConfig, run: RunFolder, space: ActionSpace, *, progress: bool
) -> tuple[Replay, Replay]:
    """Load train and test episodes, none for a run without a world model; see `data.load_replays`."""
    if config.training.model_free:
        return Replay(), Replay()
    folders = data.dataset_folders(run, config.static_dataset)
    return data.load_replays(
        folders,
        config.frame_shape,
        space,
        num_collected=config.num_collected,
        compress=config.training.compress_frames,
        progress=progress,
    )


# --- commands


def train(
    config: TrainerConfig,
    *,
    outputs: Path,
    command: str,
    folder: Path | None = None,
    progress: bool = True,
    group: Group = SINGLE_PROCESS,
) -> Path:
    """Train from an empty run folder to the last epoch.

    Everything that can be wrong with the configuration is found before the folder is made.

    Args:
        config: The run.
        outputs: Folder in which `YYYY-MM-DD/hh-mm-ss` is made.
        command: The command line, which the run folder records.
        folder: The run folder instead of one in `outputs`; it must be empty or not exist.
        progress: Whether to show progress.
        group: The processes that train the run together; each of them calls this function.

    Returns:
        The run folder.

    Raises:
        InvalidInputError: No game and no data are given, a player cannot play the game, or the processes
            cannot share a batch.
        DatasetError: The static dataset has no episodes, or they do not fit.
        DeviceError: The device is not available, or the backend needs another one.
        MissingDependencyError: A package that the backend or a logger needs is not installed.
        CheckpointError: The initial weights cannot be read or do not fit.
        CacheError: The run folder cannot be written.
        DivergedError: A loss is no longer finite; the last good epoch is kept.
        KeyboardInterrupt: The run was interrupted; it can be resumed.
        ProcessLostError: Another of the processes is gone.
    """
    device = find_device(config.common.device, group)
    pick_backend(config.training.backend, device)
    config = group.on_rank_zero(lambda: data.fitted(config))
    with ExitStack() as stack:
        run, agent = group.on_rank_zero(lambda: _new_run(config, outputs, folder, command, group, stack))
        _fit(config, run, agent, device, progress, group)
    return run.path


def _new_run(
    config: TrainerConfig,
    outputs: Path,
    folder: Path | None,
    command: str,
    group: Group,
    stack: ExitStack,
) -> tuple[RunFolder, Agent]:
    """Make a run folder, locked until the stack ends, and the networks."""
    description, agent = prepare(config, command, group)
    place = outputs.absolute() / "run" if folder is None else folder.absolute()
    num_weights = sum(x.numel() for x in agent.parameters())
    copies = config.checkpointing.num_to_keep or 1
    data.check_space(
        place,
        config.players,
        config.num_collected,
        config.frame_shape,
        copies=copies,
        num_weights=num_weights,
    )
    run = RunFolder.new(outputs.absolute()) if folder is None else RunFolder.at(folder.absolute())
    stack.enter_context(run.locked())
    description.save(run.world_file)
    run.write_source(find_source())
    run.write_resume_script(sys.executable)
    write_file(run.config_file, to_yaml(config).encode())  # the last: with it, the folder is a run's
    return run, agent


def prepare(
    config: TrainerConfig, command: str = "", group: Group = SINGLE_PROCESS
) -> tuple[WorldDescription, Agent]:
    """Describe the run's world model, and make its networks with their first weights, on the CPU.

    This finds everything that is wrong with a configuration except its device (see `find_device`).

    Raises:
        DiamondGymError: The errors that `train` lists.
    """
    config = data.fitted(config)
    check_shares(config, group)
    check_dependencies(config.wandb)
    description = describe(config, command)
    agent = _new_agent(config, description)
    initialize(agent, config.initialization)
    return description, agent


def _new_agent(config: TrainerConfig, description: WorldDescription) -> Agent:
    """Networks with fresh weights, of the sizes in the run's description."""
    if description.agent is None:
        raise CheckpointError("config/world.json does not say how large the networks are")
    return new_agent(
        description.agent,
        seed=config.common.seed,
        with_actor_critic=config.learns_to_play,
        difference_init=config.rew_end_model.training.difference_init,
    )


def resume(
    path: Path, *, changes: Sequence[str] = (), progress: bool = True, group: Group = SINGLE_PROCESS
) -> Path:
    """Resume a run that was stopped or killed; on the CPU, the result is the same as without a stop.

    The number of processes may differ from before.

    Args:
        path: The run folder.
        changes: `key=value` arguments of keys that may change (see `config.changed`); they are kept.
        progress: Whether to show progress.
        group: The processes that train the run together; each of them calls this function.

    Returns:
        The run folder. A finished run is left alone unless it is given more epochs.

    Raises:
        InvalidInputError: A key may not change, or a value is not accepted.
        CheckpointNotFoundError: The folder is not that of a run.
        CheckpointError: The run is of the published trainer, or damaged.
        FolderInUseError: Another process is training it.
    """
    with ExitStack() as stack:
        run, unfinished = group.on_rank_zero(lambda: _existing_run(path, changes, group, stack))
        if unfinished is not None:
            config, agent = unfinished
            _fit(config, run, agent, find_device(config.common.device, group), progress, group)
    return run.path


def _existing_run(
    path: Path, changes: Sequence[str], group: Group, stack: ExitStack
) -> tuple[RunFolder, tuple[TrainerConfig, Agent] | None]:
    """Open a run folder, locked until the stack ends, with what is left to train, if anything."""
    run = RunFolder.existing(path.absolute())
    _refuse_published(run)
    stack.enter_context(run.locked())
    before, config = from_yaml(run.config_file), changed(run.config_file, changes)
    progress_so_far = Progress.of(run.load_state()) if run.state_file.is_file() else Progress()
    if config != before:
        _keep_changes(run, before, config, progress_so_far)
    if _is_finished(config, progress_so_far):
        if not run.world_folder.is_dir():  # it was stopped before the export
            _export(config, run)
        print(
            f"{run.path} is finished: all {progress_so_far.epoch} epochs are trained; {_how_to_extend(run)}"
        )
        return run, None
    check_shares(config, group)
    agent = _new_agent(config, WorldDescription.load(run.world_file))
    if not run.state_file.is_file():
        initialize(agent, config.initialization)
    return run, (config, agent)


def _is_finished(config: TrainerConfig, progress: Progress) -> bool:
    num_epochs = schedule(config).num_epochs(progress.first_epoch_steps)
    return progress.is_finished and num_epochs is not None and progress.epoch >= num_epochs


def _keep_changes(run: RunFolder, before: TrainerConfig, config: TrainerConfig, progress: Progress) -> None:
    """Write a changed configuration, and log what follows from the changes.

    Raises:
        InvalidInputError: The new number of epochs is below the number already trained.
    """
    find_device(config.common.device)
    check_parts(config)
    lengths = [schedule(x).num_epochs(progress.first_epoch_steps) for x in (before, config)]
    if lengths[1] is not None and lengths[1] < progress.epoch:
        raise InvalidInputError(
            f"{run.path} has {progress.epoch} epochs already: training.num_epochs={lengths[1]} is too few"
        )
    write_file(run.config_file, to_yaml(config).encode())
    old = flat(before)
    for key, value in flat(config).items():
        if value != old.get(key):
            _log.info("%s=%s (was %s)", key, value, old.get(key))
    if None in lengths or lengths[0] == lengths[1]:
        return
    for name in config.training.trained_parts:
        training = getattr(config, name).training
        step = training.num_steps(progress.epoch)
        factors = [training.lr_factor(step, training.num_steps(length)) for length in lengths]
        if factors[0] != factors[1]:
            _log.info("%s: the learning rate, %.3g of its largest, becomes %.3g of it", name, *factors)


def _how_to_extend(run: RunFolder) -> str:
    return f"to train it for longer: python -m trainers.diamond resume run={run.path} training.num_epochs=N"


def _refuse_published(run: RunFolder) -> None:
    """Refuse a run of the published trainer, whose optimiser state, counts and games cannot be resumed here.

    Raises:
        CheckpointError: The run is of the published trainer.
    """
    if run.world_file.is_file() or not published_run.is_published(run.path):
        return
    game = published_run.describe(run.path).game
    known = "static_dataset.path=EPISODES" if game is None else f"game={game_name(game)}"
    data = run.path / "dataset"
    from_data = f"; with static_dataset.path={shlex.quote(str(data))} it learns from that run's episodes"
    raise CheckpointError(
        f"{run.path} is a run of the published trainer, whose state.pt this trainer cannot resume. A new run "
        f"starts from its weights: python -m trainers.diamond train {known} "
        f"initialization.path_to_ckpt={shlex.quote(str(run.path))}{from_data if data.is_dir() else ''}"
    )


def check_shares(config: TrainerConfig, group: Group) -> None:
    """Check that the processes can share every batch.

    Raises:
        InvalidInputError: A batch size is not a multiple of the number of processes.
    """
    sizes = {
        f"{name}.training.batch_size": getattr(config, name).training.batch_size
        for name in config.training.trained_parts
    }
    if config.denoiser.training.crop_size is not None and "denoiser" in config.training.trained_parts:
        sizes["denoiser.training.crop_batch_size"] = config.denoiser.training.crop_batch_size
    for key, size in sizes.items():
        if size % group.world_size:
            near = max(1, size // group.world_size) * group.world_size
            raise InvalidInputError(
                f"{key}={size} is shared by {group.world_size} processes: accepted are "
                f"multiples of {group.world_size}, such as {near}"
            )


def describe(config: TrainerConfig, command: str) -> WorldDescription:
    """Describe the world model that the run will train.

    Raises:
        InvalidInputError: No game and no data are given, a player cannot play the game, or the sampler does
            not fit the denoiser's objective.
        UnknownGameError: ale-py has no such game.
        DatasetError: The static dataset has no episodes, or there is no file of weights of steps.
    """
    path = config.static_dataset.path
    check_parts(config)
    if path is not None:
        data.check_static_dataset(Path(path))
    if (weights := config.denoiser.training.step_weights) is not None and not Path(weights).is_file():
        raise DatasetError(f"denoiser.training.step_weights={weights}: there is no such file")
    if config.game is not None:
        meanings = atari.action_meanings(config.game)
        space = ActionSpace.discrete(len(meanings))
        if path is None:
            data.check_players(config.players, config.game)
    elif path is not None:
        meanings = None
        space = data.action_space_of(Path(path), config.agent)
    else:
        raise InvalidInputError(
            "nothing to learn is given: give game=Breakout, or static_dataset.path=FOLDER"
        )
    return WorldDescription(
        agent=config.agent.with_action_space(space),
        sampler=config.world_model_env.diffusion_sampler,
        game=config.game,
        action_meanings=meanings,
        training={"command": command},
    )


def _fit(
    config: TrainerConfig, run: RunFolder, agent: Agent, device: torch.device, progress: bool, group: Group
) -> None:
    """Train the run to its end: the steps that a new and a resumed run share."""
    progress = progress and group.is_rank_zero
    if keep_freed_memory() and progress:
        _log.info(MEMORY_IS_KEPT)
    if config.training.num_threads is not None:
        torch.set_num_threads(config.training.num_threads)
    if device.type == "cuda":  # by default, torch uses TF32 in convolutions only
        torch.set_float32_matmul_precision("high" if config.training.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = config.training.tf32
    try:
        is_resumed = group.on_rank_zero(lambda: _complete_data(config, run, progress))
        train, test = load_replays(config, run, agent.action_space, progress=progress)
        if progress:
            _log.info("%s", _frames_in_words(train, agent))
        place(agent, device, config.training.backend)
        trainer = build(config, run, agent, train, test, group)
        if not (config.collects or config.training.model_free):
            group.on_rank_zero(lambda: trainer.choose_contexts().save(run.contexts_file))
        if is_resumed:
            trainer.resume()
        with closing(trainer.log), signals.deferred() as trainer.requests:
            group.on_rank_zero(lambda: trainer.log.open(trainer.epoch + 1, trainer.next_of()))
            trainer.fit(progress=progress)
            with trainer.requests.at_once():  # takes minutes, and there is no training step to finish first
                group.on_rank_zero(lambda: _export(config, run))
    except KeyboardInterrupt:
        if group.is_rank_zero:
            _log.info("stopped; to resume: python -m trainers.diamond resume run=%s", run.path)
        raise
    if progress:
        _log.info("training took %.0f MB of memory at most", peak_memory(device) / 1e6)
        _say_how_to_use(run, config)


def _frames_in_words(replay: Replay, agent: Agent) -> str:
    """Say what is learned from: frames, actions, and the memory that the frames take."""
    c, h, w = agent.config.frame_shape
    num_weights = sum(x.numel() for x in agent.parameters()) / 1e6
    return (
        f"frames of {h}x{w} with {c} channels, actions {agent.action_space}: {replay.num_steps} steps take "
        f"{replay.frame_bytes / 1e6:.0f} MB of memory, the networks have {num_weights:.2f} million weights"
    )


def _export(config: TrainerConfig, run: RunFolder) -> None:
    """Write the run's world model as a small folder, if the configuration asks for it."""
    if config.export.should:
        options = asdict(config.export)
        del options["should"]
        export(ExportOptions(run=str(run.path), out=str(run.world_folder), **options))


def _complete_data(config: TrainerConfig, run: RunFolder, progress: bool) -> bool:
    """Put the episodes on disk that training needs; return whether the run has a saved state."""
    if config.static_dataset.path is None:
        data.check_space(run.path, config.players, config.num_collected, config.frame_shape)
        assert config.game is not None
        data.collect_datasets(run, config.game, config.players, seed=config.common.seed, progress=progress)
    is_resumed = run.state_file.is_file()
    if config.collects and is_resumed:
        data.cut_back_to(run, run.load_state())
    return is_resumed


def _say_how_to_use(run: RunFolder, config: TrainerConfig) -> None:
    if config.game is None:
        use = f'diamond_gym.register_world_model("My-v0", {str(run.path)!r})'
    else:
        use = f'gymnasium.make("{env_id(config.game)}", checkpoint={str(run.path)!r})'
    print(f"finished: {run.path}\nto play in it: {use}")
