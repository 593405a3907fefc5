"""The common parts of one imagined game and a batch: checked input, contexts, states, key bindings.

They keep `DiamondEnv` and `DiamondVectorEnv` thin. The module sees the world model as tensors and knows
Gymnasium's conventions for seeds and keys, but nothing of files, windows, or the form of results.
"""

from __future__ import annotations

import difflib
import inspect
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Shaped, UInt8
from numpy.typing import NDArray
from torch import Tensor

from diamond_gym.checkpoints import World
from diamond_gym.errors import (
    ClosedEnvironmentError,
    InvalidInputError,
    InvalidTypeError,
    ResetNeededError,
    first_line,
)
from diamond_gym.world.action_space import ActionSpace
from diamond_gym.world.checks import check_range, check_tensor
from diamond_gym.world.interface import StateLike, StepLike

_KEYS = {"UP": "w", "DOWN": "s", "LEFT": "a", "RIGHT": "d", "FIRE": " "}
_NOOP_KEY = "e"
_NUM_KEYS = 2**63
"""The streams of random numbers of games are numbered 0 .. 2**63 - 1."""
_IMPORTING_PROCESS = os.getpid()


@dataclass(frozen=True)
class Contexts:
    """The contexts of b games, in the form that Gymnasium users see.

    Attributes:
        obs: The last n real frames, oldest first.
        act: The n actions taken at them; the last one is not used.
    """

    obs: UInt8[np.ndarray, "b n h w c"]
    act: Shaped[np.ndarray, "b n *a"]

    def select(self, index: NDArray[np.intp]) -> Contexts:
        """The contexts of some of the games."""
        return Contexts(self.obs[index], self.act[index])


@dataclass(frozen=True, eq=False)
class ImaginedState:
    """The state of b imagined games, from `clone_state`: plain data that can be pickled.

    Attributes:
        game: Name of the game, or None where the checkpoint has none.
        world: The world model's state, which shares no memory with the environment.
        over: Whether each game has ended and waits for a reset.
        rng: StateLike of each game's random generator, which draws start contexts and streams of noise.
    """

    game: str | None
    world: StateLike
    over: Bool[Tensor, " b"]
    rng: tuple[dict[str, Any], ...]

    def __len__(self) -> int:
        return len(self.world)

    def select(self, games: Sequence[int]) -> ImaginedState:
        """Select the state of some of the games, repeats allowed.

        For example, `vector_env.restore_state(env.clone_state().select([0] * n))` tries n continuations of
        one game at once. Copies share their noise: they differ only where their actions do.

        Raises:
            InvalidInputError: It is not a sequence of indices of games.
        """
        given = as_array(games)
        if (
            given is None
            or given.ndim != 1
            or not (_has_integer_dtype(given) or given.size == 0)
            or not all(0 <= game < len(self) for game in given)
        ):
            raise InvalidInputError(f"games are a list of integers in 0..{len(self) - 1}, got {games!r}")
        index = torch.tensor(given, dtype=torch.int64, device=self.over.device)
        rng = tuple(self.rng[i] for i in index.tolist())
        return replace(self, world=self.world.select(index), over=self.over[index], rng=rng)


def survive_fork() -> None:
    """Limit a forked process, such as a worker of AsyncVectorEnv, to one thread; call it before computing.

    A fork inherits the state of OpenMP's threads but not the threads, and would wait for them forever.
    """
    global _IMPORTING_PROCESS
    if os.getpid() != _IMPORTING_PROCESS:
        torch.set_num_threads(1)
        _IMPORTING_PROCESS = os.getpid()


def start_games(
    world: World, rngs: Sequence[np.random.Generator], contexts: Contexts | None
) -> tuple[StateLike, Contexts]:
    """Start one game per generator, from the contexts given or drawn from the world's own.

    Each generator gives an index into the world's contexts and the key of the game's noise, whether or not
    the index is used, so the noise that follows a seed does not depend on the context.
    """
    bank = world.contexts
    draws = [(int(rng.integers(len(bank))), int(rng.integers(_NUM_KEYS))) for rng in rngs]
    if contexts is None:
        indices = [index for index, _ in draws]
        contexts = Contexts(bank.obs[indices], bank.act[indices])
    survive_fork()
    state = world.world_model.start(
        torch.tensor(contexts.obs).permute(0, 1, 4, 2, 3).contiguous(),
        torch.tensor(contexts.act),  # a copy, because the caller gets these contexts and may write into them
        torch.tensor([key for _, key in draws], dtype=torch.int64),
    )
    return state, contexts


def advance_games(world: World, state: StateLike, act: Shaped[Tensor, "b *a"]) -> tuple[StateLike, StepLike]:
    """Take one action in each game; the given state is not modified."""
    survive_fork()
    return world.world_model.step(state, act)


def latest_frames(state: StateLike) -> UInt8[Tensor, "b h w c"]:
    """Copy the newest frame of each game, channels last: a view of a contiguous (b, c, h, w) tensor."""
    return state.obs[:, -1].clone(memory_format=torch.contiguous_format).permute(0, 2, 3, 1)


def to_host(*tensors: Tensor) -> list[NDArray[Any]]:
    """Turn tensors of one device into arrays: CPU tensors share their memory, GPU tensors are copied.

    The copies from a GPU are asynchronous and synchronised once.
    """
    device = tensors[0].device
    if device.type != "cuda":
        return [x.cpu().numpy() for x in tensors]
    # PyTorch reuses pinned memory, so the results are copies
    pinned = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in tensors]
    for target, x in zip(pinned, tensors, strict=True):
        target.copy_(x.contiguous(), non_blocking=True)
    torch.cuda.current_stream(device).synchronize()
    return [x.numpy().copy() for x in pinned]


def clone_state(
    world: World, state: StateLike, over: Bool[Tensor, " b"], rngs: Iterable[np.random.Generator]
) -> ImaginedState:
    """Copy everything that the games' futures depend on, besides the actions to come."""
    rng = tuple(dict(rng.bit_generator.state) for rng in rngs)
    return ImaginedState(world.game, state.clone(), over.clone(), rng)


def check_state(world: World, state: Any, num_games: int) -> tuple[StateLike, Bool[Tensor, " b"]]:
    """Check a cloned state; return its tensors on this world's device and in its precision.

    Raises:
        InvalidInputError: It is not an `ImaginedState`, or one of another game, world or number of games.
    """
    if not isinstance(state, ImaginedState):
        raise InvalidInputError(f"expected a state from clone_state(), got {type(state).__name__}")
    try:
        return _checked_state(world, state, num_games)
    except InvalidInputError:
        raise
    except Exception as error:  # any error that states made by hand can cause
        raise InvalidInputError(f"the state is not one of clone_state(): {first_line(error)}") from error


def _checked_state(
    world: World, state: ImaginedState, num_games: int
) -> tuple[StateLike, Bool[Tensor, " b"]]:
    if state.game != world.game:
        raise InvalidInputError(f"this world imagines {world.game}, the state is of {state.game}")
    if len(state) != num_games:
        raise InvalidInputError(
            f"this environment has {num_games} game(s), the state {len(state)}; see state.select([...])"
        )
    given, n_games = state.world, (num_games,)
    n, h, w, c = world.contexts.obs.shape[1:]
    space = world.action_space
    check_tensor("obs", given.obs, torch.uint8, (num_games, n, c, h, w))
    check_tensor("act", given.act, space.torch_dtype, (num_games, n, *space.shape))
    check_tensor("key", given.key, torch.int64, n_games)
    check_tensor("time", given.time, torch.int64, n_games)
    check_tensor("over", state.over, torch.bool, n_games)
    if not bool(space.contains(given.act).all()):
        raise InvalidInputError(f"the state's act must be {space.accepted()}, got {given.act.tolist()}")
    check_range("key", given.key, _NUM_KEYS)
    check_range("time", given.time, 2**62)
    _check_rngs(state.rng, num_games)
    model = world.world_model
    return model.adopt(given, num_games), state.over.to(model.device)


def _check_rngs(states: Any, num_games: int) -> None:
    """Raise an error unless there is a state of a random generator for each game."""
    if not isinstance(states, tuple | list) or len(states) != num_games:
        raise InvalidInputError(f"the state's rng must be {num_games} states of random generators")
    for state in states:
        np.random.Generator(np.random.PCG64(0)).bit_generator.state = state


def restore_rngs(rngs: Iterable[np.random.Generator], state: ImaginedState) -> None:
    """Restore the state of each game's generator."""
    for rng, rng_state in zip(rngs, state.rng, strict=True):
        rng.bit_generator.state = rng_state


def require_open(closed: bool) -> None:
    """Raise `ClosedEnvironmentError` when the environment has been closed."""
    if closed:
        raise ClosedEnvironmentError("this environment has been closed: make another one")


def require_started(closed: bool, state: StateLike | None, method: str) -> StateLike:
    """Return the games' state.

    Raises:
        ClosedEnvironmentError: The environment has been closed.
        ResetNeededError: No game has been started.
    """
    require_open(closed)
    if state is None:
        raise ResetNeededError(f"no game has been started: call reset() before {method}()")
    return state


def check_action(action: Any, world: World) -> int | NDArray[Any]:
    """Check one action; return it as an int, or as an array where actions are not discrete.

    Raises:
        InvalidInputError: It is not an action of the world: an integer in range (a Python or NumPy integer,
            or a 0-d integer array or tensor), or an array, sequence or tensor of the space's shape.
    """
    space, action_meanings = world.action_space, world.action_meanings
    if not space.is_discrete:
        given = as_array(action)
        converted = None if given is None or given.shape != space.shape else space.convert(given)
        if converted is None:
            raise InvalidInputError(f"an action is {space.accepted()}, got {told(action)}")
        return converted
    integral = (
        not isinstance(action, bool | np.bool_)
        if isinstance(action, int | np.integer)
        else isinstance(action, np.ndarray | Tensor)
        and action.ndim == 0
        and _has_integer_dtype(action)
        and (isinstance(action, np.ndarray) or _is_dense(action))
    )
    if not integral or not 0 <= int(action) < len(action_meanings):
        raise InvalidInputError(
            f"an action is an integer in 0..{len(action_meanings) - 1} ({_menu(action_meanings)}), "
            f"got {action!r} of type {type(action).__name__}"
        )
    return int(action)


def check_actions(actions: Any, num_games: int, world: World) -> Shaped[Tensor, "b *a"]:
    """Check the actions of a batch and return them as a tensor on the world model's device.

    Tensors on a GPU are checked there: one boolean crosses to the host, because an action out of range would
    otherwise end the process's use of the GPU.

    Raises:
        InvalidInputError: They are not of shape (num_games, *shape of an action), or one is not in the space.
    """
    space, shape = world.action_space, (num_games, *world.action_space.shape)
    given = actions if isinstance(actions, Tensor) and _is_dense(actions) else as_array(actions)
    if given is None or tuple(given.shape) != shape or not space.has_dtype(given):
        kind = f"{given.dtype} of shape {tuple(given.shape)}" if given is not None else told(actions)
        is_one = isinstance(actions, int | float | None)
        raise (InvalidTypeError if is_one else InvalidInputError)(
            f"actions must be {'numbers' if space.is_continuous else 'integers'} of shape {shape}, got {kind}"
        )
    act = torch.as_tensor(given if isinstance(given, Tensor) else given.astype(space.dtype))
    act = act.to(space.torch_dtype)
    valid = space.contains(act)
    if not valid.all():
        game = int(valid.logical_not().nonzero()[0, 0])
        names = f" ({_menu(world.action_meanings)})" if space.is_discrete else ""
        raise InvalidInputError(f"actions are {space.accepted()}{names}, got {given[game]} for game {game}")
    return act.to(world.world_model.device)


def check_seed(seed: Any) -> int | None:
    """Check a seed as Gymnasium takes it.

    Raises:
        InvalidInputError: It is neither None nor an integer >= 0.
    """
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise InvalidInputError(
            f"a seed is an integer >= 0 or None, got {seed!r} of type {type(seed).__name__}"
        )
    return int(seed)


def check_seeds(seed: Any, num_games: int) -> list[int | None]:
    """Return the seeds of a batch: `seed + i` for game i, or the sequence given (None entries allowed).

    Raises:
        InvalidInputError: A seed is not valid, or their number is not that of the games.
    """
    if (isinstance(seed, Sequence) and not isinstance(seed, str | bytes)) or (
        isinstance(seed, np.ndarray) and seed.ndim == 1
    ):
        if len(seed) != num_games:
            raise InvalidInputError(f"a list of seeds has one per game, {num_games}, got {len(seed)}")
        return [check_seed(s) for s in seed]
    first = check_seed(seed)
    return [None if first is None else first + i for i in range(num_games)]


def check_options(options: Any, accepted: Sequence[str]) -> Mapping[str, Any]:
    """Check the options of `reset`.

    Raises:
        InvalidInputError: They are neither None nor a mapping of accepted keys.
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise InvalidInputError(f"options is a dict or None, got {type(options).__name__}")
    unknown = [key for key in options if key not in accepted]
    if unknown:
        raise InvalidInputError(f"unknown reset option(s) {unknown}; accepted: {list(accepted)}")
    return options


def check_context(world: World, context: Any, num_games: int | None = None) -> Contexts | None:
    """Check the contexts given by the caller; return None when there are none.

    Args:
        world: The world that the context must fit.
        context: {"obs": uint8 (n, h, w, c), "act": n or n - 1 actions}; arrays or tensors. With `num_games`
            both may have a leading axis of that size.
        num_games: Number of games to start; None means one, without a leading axis.

    Returns:
        One context per game, copied.

    Raises:
        InvalidInputError: A key is missing or unknown, or a shape, dtype or action is wrong.
    """
    if context is None:
        return None
    if not isinstance(context, Mapping) or set(context) != {"obs", "act"}:
        got = sorted(map(str, context)) if isinstance(context, Mapping) else type(context).__name__
        raise InvalidInputError(f'options["context"] is a dict with the keys "obs" and "act", got {got}')
    obs = _check_context_obs(context["obs"], world.contexts.obs.shape[1:], num_games)
    act = _check_context_act(context["act"], obs.shape[:-3], world.action_space)
    if obs.ndim == 5:
        return Contexts(obs, act)
    repeats = num_games or 1
    return Contexts(np.repeat(obs[None], repeats, axis=0), np.repeat(act[None], repeats, axis=0))


def _check_context_obs(value: Any, shape: tuple[int, ...], num_games: int | None) -> NDArray[np.uint8]:
    accepted = [shape] if num_games is None else [shape, (num_games, *shape)]
    obs = as_array(value)
    if obs is None or obs.dtype != np.uint8 or obs.shape not in accepted:
        got = f"{obs.dtype} {obs.shape}" if obs is not None else type(value).__name__
        raise InvalidInputError(
            f'options["context"]["obs"] is uint8 of shape {" or ".join(map(str, accepted))}, got {got}'
        )
    return obs.copy()


def _check_context_act(value: Any, shape: tuple[int, ...], space: ActionSpace) -> NDArray[Any]:
    accepted = [(*shape, *space.shape), (*shape[:-1], shape[-1] - 1, *space.shape)]
    act = as_array(value)
    if act is None or not (space.has_dtype(act) or act.size == 0) or act.shape not in accepted:
        got = f"{act.dtype} {act.shape}" if act is not None else type(value).__name__
        kind = "numbers" if space.is_continuous else "integers"
        raise InvalidInputError(
            f'options["context"]["act"] is {kind} of shape {" or ".join(map(str, accepted))}, got {got}'
        )
    converted = space.convert(act) if act.size else act
    if converted is None:
        raise InvalidInputError(
            f'options["context"]["act"] holds actions, {space.accepted()}, got {act.min()}..{act.max()}'
        )
    padded = np.broadcast_to(space.idle, accepted[0]).copy()
    padded[(..., slice(act.shape[len(shape) - 1]), *[slice(None)] * len(space.shape))] = converted
    return padded


def check_choice(name: str, value: Any, accepted: Sequence[str | None]) -> None:
    """Raise `InvalidInputError` unless a keyword argument has one of the accepted values."""
    if not (value is None or isinstance(value, str)) or value not in accepted:
        raise InvalidInputError(f"{name} is one of {list(accepted)}, got {value!r}")


_MEANT = {"horizon": "max_episode_steps", "num_steps_denoising": "num_denoising_steps"}
"""Names of the same settings in other programs or our trainers, and the keywords that they mean."""


def refuse_unknown(unknown: Mapping[str, Any], kind: type) -> None:
    """Raise `InvalidTypeError` if there are keyword arguments of unknown names, and say what was meant.

    Args:
        unknown: Keyword arguments that the constructor does not name.
        kind: The class of the constructor.
    """
    known = [name for name in inspect.signature(kind).parameters if name != "unknown"]
    for name, value in unknown.items():
        near = [_MEANT[name]] if name in _MEANT else difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        if near == ["max_episode_steps"] and near[0] not in known:
            hint = f"gymnasium.make(..., max_episode_steps={value!r}) sets how long a game is imagined"
        elif name == "output":
            hint = "a single game gives NumPy arrays; gymnasium.make_vec(..., output='torch') gives tensors"
        else:
            hint = f"did you mean {near[0]}?" if near else f"accepted are {', '.join(known)}"
        raise InvalidTypeError(f"got an unexpected keyword argument {name!r}: {hint}")


def wrappers_in_use(env: Any, kind: type, depth: int = 30) -> list[Any]:
    """Find the wrappers through which a method of an environment is being called.

    Gymnasium gives an environment no reference to its wrappers, and only the outermost wrapper knows them all
    (`spec.additional_wrappers`), but they are on the call stack.

    Args:
        env: The environment.
        kind: Gymnasium's base class of the wrappers to find.
        depth: How many calls to look back.
    """
    found, frame = [], sys._getframe(1)
    while frame is not None and depth > 0:
        caller = frame.f_locals.get("self")
        if isinstance(caller, kind) and getattr(caller, "unwrapped", None) is env:
            found.append(caller)
        frame, depth = frame.f_back, depth - 1
    return found


def is_named(wrapper: Any, module: str, names: Sequence[str]) -> bool:
    """Whether the class of a wrapper, or a base class, has one of these names and is in this module."""
    return any(cls.__name__ in names and cls.__module__.startswith(module) for cls in type(wrapper).__mro__)


def keys_to_action(action_meanings: Sequence[str]) -> dict[tuple[str, ...], int]:
    """Return the keys of each action, as ale_py binds them: WASD to move, space to fire, E to do nothing.

    Actions whose name is not one of ALE's have no keys.
    """
    bindings = {}
    for action, meaning in enumerate(action_meanings):
        keys = _keys_of(meaning)
        if keys:
            bindings[keys] = action
    return bindings


def _keys_of(meaning: str) -> tuple[str, ...]:
    if meaning == "NOOP":
        return (_NOOP_KEY,)
    keys = []
    for part, key in _KEYS.items():
        if meaning.startswith(part):
            meaning = meaning[len(part) :]
            keys.append(key)
    return tuple(keys) if not meaning else ()


def told(value: Any) -> str:
    """Describe a value for an error message; unlike `repr`, this works for tensors without data too."""
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype}, {value.layout}, on {value.device}"
    return repr(value)


def _menu(action_meanings: Sequence[str]) -> str:
    return ", ".join(f"{i} {meaning}" for i, meaning in enumerate(action_meanings))


def _has_integer_dtype(x: np.ndarray | Tensor) -> bool:
    if isinstance(x, np.ndarray):
        return np.issubdtype(x.dtype, np.integer)
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def as_array(value: Any) -> np.ndarray | None:
    """Return the value as an array, or None when it is none (ragged, text, a dtype NumPy lacks, ...)."""
    try:
        if isinstance(value, Tensor):
            return value.detach().cpu().numpy() if _is_dense(value) else None
        return np.asarray(value) if isinstance(value, np.ndarray | list | tuple) else None
    except Exception:  # any error that the items of a list raise
        return None


def _is_dense(x: Tensor) -> bool:
    """Whether a tensor has data that can be read."""
    return x.layout == torch.strided and not x.is_meta
