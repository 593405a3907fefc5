"""From a configuration to a trained run, and from an unfinished run to its end.

Builds the parts (networks, data) and hands them to the trainer. Every step can be repeated: what an earlier,
killed process has finished is found in the run folder and left alone. Of several processes, the first does
whatever writes, and the others read the episodes from the run folder.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from diamond_gym import signals
from diamond_gym.backends.choose import can_compile, choose_upsampling, pick_device
from diamond_gym.backends.memory import keep_freed_memory
from diamond_gym.checkpoints import WorldDescription, load_agent, published_run
from diamond_gym.data.episodes import EpisodeDataset
from diamond_gym.errors import CheckpointError, DeviceError, InvalidInputError
from diamond_gym.files import write_file
from diamond_gym.games import atari
from diamond_gym.registration import env_id, game_name
from diamond_gym.world.models import Agent, RewEndModel
from diamond_gym.world.world_model import noise_levels
from trainers.diamond import data
from trainers.diamond import trainer as schedule
from trainers.diamond.config import (
    PARTS,
    WORLD_MODEL_PARTS,
    TrainerConfig,
    changed,
    flat,
    from_yaml,
    to_yaml,
)
from trainers.diamond.distributed import SINGLE_PROCESS, Group
from trainers.diamond.logging import RunLog, check_dependencies
from trainers.diamond.publish import ExportOptions, export
from trainers.diamond.run_folder import RunFolder, find_source
from trainers.diamond.trainer import Progress, Trainer

# --- initial weights
# Where training starts, where that is not each layer's own initialisation.


_log = logging.getLogger(__name__)
_DIFFERENCE_GAIN = 15.0
"""Changes between frames are sparse and small."""
_RECURRENT_GAIN = 3.0
"""Without it too little of a rare event reaches the loss; one batch ends at 0.33 instead of 0.002."""


@torch.no_grad()
def start_with_differences(model: RewEndModel) -> None:
    """Lets the first convolution see only what changes between the frames, and LSTM and head hear it."""
    weight = model.encoder.conv_in.weight  # (out, 2 c p^2, 3, 3): the frame before, then the frame after
    half = weight.shape[1] // 2
    weight[:, half:] *= _DIFFERENCE_GAIN
    weight[:, :half] = -weight[:, half:]
    torch.nn.init.zeros_(model.encoder.conv_in.bias)  # pyright: ignore[reportArgumentType]
    model.lstm.get_parameter("weight_ih_l0").mul_(_RECURRENT_GAIN)
    model.head[-1].get_parameter("weight").mul_(_RECURRENT_GAIN)


# --- launch


def train(
    config: TrainerConfig,
    *,
    outputs: Path,
    command: str,
    folder: Path | None = None,
    progress: bool = True,
    group: Group = SINGLE_PROCESS,
) -> Path:
    """Trains from an empty run folder to the last epoch.

    Everything that can be wrong with the configuration is found before the folder is made.

    Args:
        config: The run.
        outputs: Where `YYYY-MM-DD/hh-mm-ss` is made.
        command: The command line, for the record.
        folder: The run folder instead; it must not exist, or be empty.
        progress: Show what happens.
        group: The processes that train it together; each calls this.

    Returns:
        The run folder.

    Raises:
        InvalidInputError: No game and no data are given, a player cannot play the game, or the processes
            cannot share a batch.
        DatasetError: The static dataset has no episodes, or they do not fit.
        DeviceError: The device is not available.
        CheckpointError: The initial weights cannot be read or do not fit.
        CacheError: The run folder cannot be written.
        DivergedError: A loss is no longer finite; the last good epoch is kept.
        KeyboardInterrupt: It was interrupted; the run can be resumed.
        ProcessLostError: Another of the processes is gone.
    """
    device = find_device(config.common.device, group)
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
    """A run folder, locked until the stack ends, and networks."""
    description, agent = prepare(config, command, group)
    place = outputs.absolute() / "run" if folder is None else folder.absolute()
    data.check_space(config, place, sum(x.numel() for x in agent.parameters()))
    run = RunFolder.new(outputs.absolute()) if folder is None else RunFolder.at(folder.absolute())
    stack.enter_context(run.locked())
    description.save(run.world_file)
    write_file(run.config_file, to_yaml(config).encode())
    run.write_source(find_source())
    run.write_resume_script(sys.executable)
    return run, agent


def prepare(
    config: TrainerConfig, command: str = "", group: Group = SINGLE_PROCESS
) -> tuple[WorldDescription, Agent]:
    """What the run's world model will be, and its networks with their first weights, on the CPU.

    Finds whatever is wrong with a configuration, but for its device (`find_device`).

    Raises:
        DiamondGymError: As `train` does.
    """
    check_shares(config, group)
    check_dependencies(config.wandb)
    description = describe(config, command)
    agent = new_agent(config, description)
    initialize(agent, config)
    return description, agent


def resume(
    path: Path, *, changes: Sequence[str] = (), progress: bool = True, group: Group = SINGLE_PROCESS
) -> Path:
    """Goes on with a run from where it was stopped or killed; on the CPU, exactly as if it had not been.

    The number of processes may be another than before.

    Args:
        path: The run folder.
        changes: `key=value` arguments of keys that may change, see `config.changed`; they are kept.
        progress: Show what happens.
        group: The processes that train it together; each calls this.

    Returns:
        The run folder. A run that is finished is left alone, unless it is given more epochs.

    Raises:
        InvalidInputError: A key may not change, or a value is not accepted.
        CheckpointNotFoundError: The folder is not that of a run.
        CheckpointError: It is a run of the published trainer, or damaged.
        RunInUseError: Another process is training it.
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
    """A run folder, locked until the stack ends, and what is to be trained, if anything."""
    run = RunFolder.existing(path.absolute())
    _refuse_published(run)
    stack.enter_context(run.locked())
    before, config = from_yaml(run.config_file), changed(run.config_file, changes)
    progress_so_far = Progress.of(run.load_state()) if run.state_file.is_file() else Progress()
    if config != before:
        _keep_changes(run, before, config, progress_so_far)
    if _is_finished(config, progress_so_far):
        if not run.world_folder.is_dir():  # it was stopped in between
            _export(config, run)
        print(
            f"{run.path} is finished: all {progress_so_far.epoch} epochs are trained; {_how_to_extend(run)}"
        )
        return run, None
    check_shares(config, group)
    agent = new_agent(config, WorldDescription.load(run.world_file))
    if not run.state_file.is_file():
        initialize(agent, config)
    return run, (config, agent)


def _keep_changes(run: RunFolder, before: TrainerConfig, config: TrainerConfig, progress: Progress) -> None:
    """Writes a changed configuration, and says what follows from it.

    Raises:
        InvalidInputError: It has fewer epochs than are trained.
    """
    find_device(config.common.device)
    _check_export(config)
    lengths = [schedule.num_epochs(x, progress.first_epoch_steps) for x in (before, config)]
    if lengths[1] is not None and lengths[1] < progress.epoch:
        raise InvalidInputError(f"{run.path} has {progress.epoch} epochs already, {lengths[1]} are too few")
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
    """Another trainer's optimisers, counts and games under way would not go on as they were.

    Raises:
        CheckpointError: It is a run of the published trainer.
    """
    if run.world_file.is_file() or not published_run.is_published(run.path):
        return
    game = published_run.describe(run.path).game
    known = "static_dataset.path=EPISODES" if game is None else f"game={game_name(game)}"
    data = run.path / "dataset"
    from_data = f"; with static_dataset.path={shlex.quote(str(data))} it learns from that run's episodes"
    raise CheckpointError(
        f"{run.path} is a run of the published trainer, whose state.pt this one cannot go on from. A new run "
        f"starts from its weights: python -m trainers.diamond train {known} "
        f"initialization.path_to_ckpt={shlex.quote(str(run.path))}{from_data if data.is_dir() else ''}"
    )


def _is_finished(config: TrainerConfig, progress: Progress) -> bool:
    num_epochs = schedule.num_epochs(config, progress.first_epoch_steps)
    return progress.is_finished and num_epochs is not None and progress.epoch >= num_epochs


def check_shares(config: TrainerConfig, group: Group) -> None:
    """Makes sure that the processes can share every batch.

    Raises:
        InvalidInputError: The size of one is not a multiple of their number.
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


def find_device(name: str, group: Group = SINGLE_PROCESS) -> torch.device:
    """The device of a name; "auto" is CUDA where available, and each process of several has its own GPU.

    Raises:
        DeviceError: There is no such device here.
    """
    if group.world_size > 1 and name not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"common.device={name} with several processes: accepted are auto, cpu, cuda")
    try:
        device = pick_device(name)
        if group.world_size > 1 and device.type == "cuda":
            device = pick_device(f"cuda:{group.local_rank}")
    except (DeviceError, InvalidInputError) as error:
        raise DeviceError(f"common.device={name} is not available: {error}") from error
    if device.type == "cuda" and group.world_size > 1:
        torch.cuda.set_device(device)
    return device


def describe(config: TrainerConfig, command: str) -> WorldDescription:
    """What the run's world model will be.

    Raises:
        InvalidInputError: No game and no data are given, a player cannot play the game, or the sampler does
            not go with the denoiser's objective.
        UnknownGameError: ale-py has no such game.
        DatasetError: The static dataset has no episodes.
    """
    path = config.static_dataset.path
    _check_frames(config)
    noise_levels(config.agent.denoiser.objective, config.world_model_env.diffusion_sampler)
    _check_playing(config)
    _check_segments(config)
    _check_crops(config)
    _check_export(config)
    if path is not None:
        data.check_static_dataset(Path(path))
    if config.game is not None:
        meanings = atari.action_meanings(config.game)
        num_actions = len(meanings)
        if path is None:
            data.check_players(config, config.game)
    elif path is not None:
        meanings = None
        num_actions = config.agent.num_actions or data.count_actions(Path(path))
    else:
        raise InvalidInputError("what to learn? give game=Breakout, or static_dataset.path=FOLDER")
    return WorldDescription(
        agent=config.agent.with_num_actions(num_actions),
        sampler=config.world_model_env.diffusion_sampler,
        game=config.game,
        action_meanings=meanings,
        training={"command": command},
    )


def new_agent(config: TrainerConfig, description: WorldDescription) -> Agent:
    """Networks with fresh weights, fixed by the seed, on the CPU.

    Raises:
        InvalidInputError: Networks of these sizes cannot be built, or cannot run.
        CheckpointError: The description lacks the sizes.
    """
    if description.agent is None:
        raise CheckpointError("config/world.json does not say how large the networks are")
    torch.manual_seed(config.common.seed)
    try:
        agent = Agent(description.agent, with_actor_critic=config.learns_to_play)
        if config.rew_end_model.training.difference_init:
            start_with_differences(agent.rew_end_model)
        _try_out(agent)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InvalidInputError(f"networks of the sizes in agent.* do not work: {reason}") from error
    return agent


def initialize(agent: Agent, config: TrainerConfig) -> None:
    """Takes the weights of the parts that `initialization` names from its checkpoint.

    Raises:
        CheckpointNotFoundError: There is no checkpoint.
        CheckpointError: It is damaged, or its networks are of other sizes.
    """
    initialization, num_actions = config.initialization, agent.config.num_actions
    if initialization.path_to_ckpt is None:
        return
    assert num_actions is not None
    given = load_agent(initialization.path_to_ckpt)
    sizes = given.config.with_num_actions(num_actions) if initialization.new_actions else given.config
    for name in PARTS:
        is_wanted = getattr(initialization, f"load_{name}")
        if not is_wanted or getattr(agent, name) is None or getattr(given, name) is None:
            continue
        ours, theirs = getattr(agent.config, name), getattr(sizes, name)
        if ours != theirs:
            other = given.config.num_actions != num_actions and not initialization.new_actions
            hint = ", or initialization.new_actions=true to start from another game's" if other else ""
            raise CheckpointError(
                f"the {name} of {initialization.path_to_ckpt} is of other sizes: {theirs}, the run's is "
                f"{ours}. Set agent.{name} accordingly, or initialization.load_{name}=false{hint}"
            )
        _take_weights(name, getattr(agent, name), getattr(given, name))


def _take_weights(name: str, ours: nn.Module, theirs: nn.Module) -> None:
    """All that have our shapes; what depends on another number of actions stays as it is."""
    weights = ours.state_dict()
    taken = {key: x for key, x in theirs.state_dict().items() if x.shape == weights[key].shape}
    ours.load_state_dict(weights | taken)
    if len(taken) < len(weights):
        anew = ", ".join(sorted(weights.keys() - taken.keys()))
        _log.info("%s: other actions, %s start anew", name, anew)


def _check_playing(config: TrainerConfig) -> None:
    """Who learns to play needs a game, or a world that has learned one."""
    training, initialization = config.training, config.initialization
    if not config.learns_to_play:
        return
    if config.game is None and (config.collects or training.model_free):
        raise InvalidInputError("what to play? give game=Breakout")
    given = [
        part
        for part in WORLD_MODEL_PARTS
        if initialization.path_to_ckpt is not None and getattr(initialization, f"load_{part}")
    ]
    missing = [part for part in WORLD_MODEL_PARTS if part not in (*training.trained_parts, *given)]
    if missing and not training.model_free:
        raise InvalidInputError(
            f"training.parts={training.parts} learns to play in imagination, and its {' and '.join(missing)} "
            "would stay untrained: give initialization.path_to_ckpt=FOLDER, or train all parts"
        )


def _check_segments(config: TrainerConfig) -> None:
    """Segments of the reward/end model that go on in imagination need frames to start from."""
    n, training = config.agent.denoiser.inner_model.num_steps_conditioning, config.rew_end_model.training
    if training.imagined_fraction > 0 and training.seq_length <= n:
        raise InvalidInputError(
            f"rew_end_model.training.imagined_fraction={training.imagined_fraction} needs segments longer "
            f"than the {n} frames that imagination starts from: rew_end_model.training.seq_length is "
            f"{training.seq_length}"
        )


def _check_export(config: TrainerConfig) -> None:
    """A world model that was not trained cannot be exported, and one of no game not be evaluated."""
    export, training = config.export, config.training
    if not export.should:
        return
    if training.model_free:
        raise InvalidInputError("export.should=true exports a world model, training.model_free=true has none")
    if export.evaluate and config.game is None:
        raise InvalidInputError("export.evaluate=true plays the real game: give game=Breakout")


def _check_crops(config: TrainerConfig) -> None:
    """Crops must lie within the frame, and be divided by the network as it is."""
    size, side = config.denoiser.training.crop_size, config.agent.rew_end_model.img_size
    divides = config.agent.denoiser.inner_model.divides
    if size is not None and (size > side or size % divides):
        accepted = ", ".join(map(str, range(divides, side + 1, divides))) or "null"
        raise InvalidInputError(
            f"denoiser.training.crop_size={size}: frames have {side}x{side} pixels, {divides}x{divides} of "
            f"which become one at the bottom of the network; accepted are {accepted}"
        )


def _check_frames(config: TrainerConfig) -> None:
    """The networks must take the same frames, and those of the real game where it is played."""
    denoiser, rew_end = config.agent.denoiser.inner_model, config.agent.rew_end_model
    if denoiser.img_channels != rew_end.img_channels:
        raise InvalidInputError(
            f"agent.denoiser.inner_model.img_channels={denoiser.img_channels} and "
            f"agent.rew_end_model.img_channels={rew_end.img_channels} must be equal"
        )
    given = (rew_end.img_channels, rew_end.img_size)
    is_played = config.static_dataset.path is None or (config.learns_to_play and config.game is not None)
    if is_played and given != (3, atari.SCREEN_SIZE):
        raise InvalidInputError(
            f"img_channels={given[0]}, img_size={given[1]}: real games have colour frames of "
            f"{atari.SCREEN_SIZE}x{atari.SCREEN_SIZE} pixels"
        )
    actor_critic = config.agent.actor_critic
    seen = (actor_critic.img_channels, actor_critic.img_size)
    if config.learns_to_play and seen != (rew_end.img_channels, rew_end.img_size):
        raise InvalidInputError(
            f"agent.actor_critic has img_channels={seen[0]}, img_size={seen[1]}, agent.rew_end_model "
            f"{rew_end.img_channels}, {rew_end.img_size}: they must be equal"
        )


@torch.no_grad()
def _try_out(agent: Agent) -> None:
    """Runs the networks once, so that sizes that do not go together are found before any work is done."""
    inner, rew_end = agent.config.denoiser.inner_model, agent.config.rew_end_model
    n, frame = inner.num_steps_conditioning, torch.zeros(1, 1, rew_end.img_channels, *[rew_end.img_size] * 2)
    act = torch.zeros(1, n, dtype=torch.int64)
    denoiser, past = agent.denoiser, frame.expand(1, n, -1, -1, -1).flatten(1, 2)
    denoiser.denoise(frame[:, 0], denoiser.conditioners(torch.ones(1)), denoiser.fold_past(past), act)
    agent.rew_end_model.predict_rew_end(frame, act[:, :1], frame)
    if agent.actor_critic is not None:
        agent.actor_critic.predict_act_value(frame[:, 0], agent.actor_critic.initial_state(1))


def _fit(
    config: TrainerConfig, run: RunFolder, agent: Agent, device: torch.device, progress: bool, group: Group
) -> None:
    """Everything that a resumed run repeats."""
    progress = progress and group.is_rank_zero
    if config.training.num_threads is not None:
        torch.set_num_threads(config.training.num_threads)
    if device.type == "cuda":  # by default, torch uses TF32 in convolutions only
        torch.set_float32_matmul_precision("high" if config.training.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = config.training.tf32
    try:
        is_resumed = group.on_rank_zero(lambda: _complete_data(config, run, progress))
        assert agent.config.num_actions is not None
        train, test = data.load_replays(config, run, agent.config.num_actions, progress=progress)
        if not (config.collects or config.training.model_free):
            group.on_rank_zero(lambda: data.choose_contexts(config, run).save(run.contexts_file))
        place(agent, device, config)
        dataset = EpisodeDataset(run.dataset("train"), create=True) if config.collects else None
        log = RunLog(run, config)
        trainer = Trainer(config, run, agent, train, test, dataset, log, group)
        if is_resumed:
            trainer.resume()
        with closing(log), signals.deferred() as trainer.requests:
            group.on_rank_zero(lambda: log.open(trainer.epoch + 1, trainer.next_of()))
            trainer.fit(progress=progress)
            with trainer.requests.at_once():  # minutes, in which nothing is trained
                group.on_rank_zero(lambda: _export(config, run))
    except KeyboardInterrupt:
        if group.is_rank_zero:
            _log.info("stopped; to resume: python -m trainers.diamond resume run=%s", run.path)
        raise
    if progress:
        _say_how_to_use(run, config)


def _export(config: TrainerConfig, run: RunFolder) -> None:
    """Writes the run's world model as a small folder, where it is to be."""
    if config.export.should:
        options = asdict(config.export)
        del options["should"]
        export(ExportOptions(run=str(run.path), out=str(run.world_folder), **options))


def place(agent: Agent, device: torch.device, config: TrainerConfig) -> None:
    """Puts networks on their device so that they train fast: memory, its layout, upsampling, compilation.

    Affects the whole process, see `keep_freed_memory`.
    """
    keep_freed_memory()
    agent.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    choose_upsampling(agent, device)
    if config.training.compile and can_compile(device):
        # in place: the names of the weights stay; a graph for each shape, of crops and of whole frames
        agent.denoiser.inner_model.compile(dynamic=False)


def _complete_data(config: TrainerConfig, run: RunFolder, progress: bool) -> bool:
    """Puts the episodes on disk with which training goes on; whether it has begun before."""
    if config.static_dataset.path is None:
        data.check_space(config, run.path)
        data.collect_datasets(config, run, progress=progress)
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
