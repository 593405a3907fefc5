"""Many imagined games in one batch as a `gymnasium.vector.VectorEnv`, a thin layer over `WorldModel`.

Game i is the same game as a `DiamondEnv` with its seed. Ends and resets follow Gymnasium's SyncVectorEnv.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import logger
from gymnasium.spaces import Box
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from diamond_gym.backends.names import accepts_compile
from diamond_gym.checkpoints import load_world
from diamond_gym.envs import games as imagination
from diamond_gym.envs import rendering
from diamond_gym.envs.games import Contexts, ImaginedState
from diamond_gym.errors import InvalidInputError, InvalidTypeError, ResetNeededError
from diamond_gym.world.interface import StateLike

Array = NDArray[Any] | Tensor
"""A NumPy array with `output="numpy"`, a tensor on the world model's device with `output="torch"`."""

_MAX_ENVS, _MAX_STEPS = 2**16, 2**31


_NUMPY_WRAPPERS = tuple(
    """
    DtypeObservation FlattenObservation GrayscaleObservation NormalizeObservation NormalizeReward NumpyToTorch
    RecordEpisodeStatistics RescaleObservation ReshapeObservation ResizeObservation
    """.split()
)
"""Gymnasium's vector wrappers that compute in NumPy, or take NumPy arrays."""


class DiamondVectorEnv(VectorEnv[Array, Array, Array]):
    """Imagined games that advance together.

    Observations are uint8 (num_envs, 64, 64, 3), rewards (num_envs,) in {-1, 0, 1}; `terminated` is the
    predicted end, `truncated` the imagination horizon. A game's seed, contexts, noise and resets are those of
    a `DiamondEnv` under TimeLimit; `infos` has SyncVectorEnv's form.

    `reset(options=...)` takes "reset_mask", a boolean array of the games to reset, and "context", as
    `DiamondEnv` does: without a leading axis every game that is reset starts from it; with a leading axis of
    `num_envs` each has its own, and the entries of games that are not reset are ignored, but must be valid.

    With `output="torch"`, observations (a channels-last view of a contiguous (num_envs, 3, 64, 64) tensor),
    rewards (float32), `terminated`, `truncated`, `infos["final_obs"]` and the arrays in `infos["context"]`
    are tensors on the world model's device, zero where their mask is False; the masks are NumPy arrays.
    Gymnasium's vector wrappers that compute in NumPy (`RecordEpisodeStatistics`, `NormalizeObservation` and
    others) need `output="numpy"`; `reset` raises an error otherwise.

    The keyword arguments `checkpoint`, `device`, `dtype`, `backend`, `num_denoising_steps`, `order`,
    `s_churn` and `contexts` are those of `DiamondEnv`.

    Example:
        >>> import gymnasium as gym, diamond_gym
        >>> envs = gym.make_vec("DiamondBreakout-v0", num_envs=3)
        >>> obs, infos = envs.reset(seed=0)
        >>> obs, rewards, terminated, truncated, infos = envs.step(envs.action_space.sample())
        >>> obs.shape, rewards.shape
        ((3, 64, 64, 3), (3,))

    Args:
        num_envs: Number of games, at least 1.
        game: Name of an Atari game; may be None when the checkpoint names it.
        max_episode_steps: Steps after which a game is truncated; None or -1 for never.
        autoreset_mode: One of Gymnasium's AutoresetMode, its name or its value: "NEXT_STEP" resets a finished
            game in the step that follows (which ignores its action), "SAME_STEP" at once, "DISABLED" leaves
            it to the caller. As text it keeps the environment's EnvSpec expressible in JSON.
        output: "numpy" for arrays, or "torch" for tensors on the world model's device.
        render_mode: None, "rgb_array" (a tuple of 512x512 pictures) or "human" (a window with all games).

    Raises:
        DiamondGymError: A keyword argument cannot be met; the subclass says how.
    """

    metadata: dict[str, Any] = {**rendering.METADATA, "autoreset_mode": AutoresetMode.NEXT_STEP}

    @accepts_compile
    def __init__(
        self,
        num_envs: int = 1,
        game: str | None = None,
        *,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        output: Literal["numpy", "torch"] = "numpy",
        checkpoint: str = "auto",
        device: str = "auto",
        dtype: str = "auto",
        backend: str = "auto",
        num_denoising_steps: int | None = None,
        order: int | None = None,
        s_churn: float | None = None,
        contexts: str | None = None,
        render_mode: str | None = None,
        **unknown: Any,
    ) -> None:
        imagination.refuse_unknown(unknown, DiamondVectorEnv)
        imagination.check_choice("render_mode", render_mode, [None, *self.metadata["render_modes"]])
        imagination.check_choice("output", output, ["numpy", "torch"])
        self.num_envs = _check_count("num_envs", num_envs, _MAX_ENVS)
        self._horizon = (
            None
            if max_episode_steps in (None, -1)
            else _check_count("max_episode_steps", max_episode_steps, _MAX_STEPS)
        )
        self.autoreset_mode = _check_autoreset_mode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.output = output
        self.render_mode = render_mode
        self._window = rendering.Window(f"DIAMOND {game or ''}") if render_mode == "human" else None
        imagination.survive_fork()
        self.world = load_world(
            game,
            checkpoint,
            device=device,
            dtype=dtype,
            backend=backend,
            num_denoising_steps=num_denoising_steps,
            order=order,
            s_churn=s_churn,
            contexts=contexts,
            num_games=self.num_envs,
        )
        self.single_observation_space = Box(0, 255, self.world.contexts.obs.shape[2:], np.uint8)
        self.single_action_space = self.world.action_space.to_gymnasium()
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._rngs: list[np.random.Generator | None] = [None] * self.num_envs
        self._seeds: list[int | None] = [None] * self.num_envs
        self._state: StateLike | None = None
        self._over = torch.zeros(self.num_envs, dtype=torch.bool, device=self.world.world_model.device)

    @property
    def np_random(self) -> tuple[np.random.Generator, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Each game's random generator, as in SyncVectorEnv."""
        return tuple(self._rng(i) for i in range(self.num_envs))

    @property
    def np_random_seed(self) -> tuple[int | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Each game's seed, as in SyncVectorEnv."""
        assert len(self.np_random) == self.num_envs  # a generator that was never seeded gets a random seed
        return tuple(self._seeds)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Array, dict[str, Any]]:
        """Start all games, or those of `options["reset_mask"]`.

        Args:
            seed: None, an integer >= 0 (game i gets `seed + i`), or one integer or None per game.
            options: None, or a dict with "reset_mask" and "context" as the class describes them.

        Returns:
            The observations of all games, and the infos, whose "context" holds the contexts of the games
            that were started.

        Raises:
            InvalidInputError: A seed, an option, the mask or a context is not accepted; the environment is
                unchanged.
            ResetNeededError: The first reset leaves out a game.
        """
        imagination.require_open(self.closed)
        if self.output == "torch":
            _refuse_numpy_wrappers(imagination.wrappers_in_use(self, VectorWrapper))
        seeds = imagination.check_seeds(seed, self.num_envs)
        options = dict(imagination.check_options(options, ["reset_mask", "context"]))
        contexts = imagination.check_context(self.world, options.get("context"), self.num_envs)
        games = self._games_to_reset(options.get("reset_mask"))
        for game in games:
            if seeds[game] is not None:
                self._seed(game, seeds[game])
        infos = self._start(games, None if contexts is None else contexts.select(games))
        self._show()
        return self._observe(), infos

    def step(self, actions: Any) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Imagine one step of every game.

        Args:
            actions: Integers (num_envs,) of any integer dtype, or arrays (num_envs, *shape) where actions are
                not discrete: array, sequence, or tensor on any device. The action of a game that this step
                resets is ignored, but must be valid.

        Returns:
            The observations, rewards, terminations, truncations and infos.

        Raises:
            InvalidInputError: An action is not accepted; all games are unchanged.
            ResetNeededError: No game has been started, or in "DISABLED" mode one is over.
        """
        state = imagination.require_started(self.closed, self._state, "step")
        act = imagination.check_actions(actions, self.num_envs, self.world)
        over = self._over.cpu().numpy()
        if self.autoreset_mode == AutoresetMode.DISABLED and over.any():
            raise ResetNeededError(
                f"games {np.flatnonzero(over).tolist()} are over: "
                'call reset(options={"reset_mask": terminated | truncated}) before step()'
            )
        state, step = imagination.advance_games(self.world, state, act)
        self._state = state
        rewards, terminated, truncated = step.rew, step.end, self._at_horizon(state)
        infos: dict[str, Any] = {}
        if over.any():
            fresh = ~self._over
            infos = self._start(np.flatnonzero(over), None)
            rewards, terminated, truncated = rewards * fresh, terminated & fresh, truncated & fresh
        self._over = terminated | truncated
        if self.autoreset_mode == AutoresetMode.SAME_STEP:
            infos = self._reset_finished()
        self._show()
        frames = imagination.latest_frames(self._state)
        obs, rewards, terminated, truncated = self._out(frames, rewards, terminated, truncated)
        return obs, rewards, terminated, truncated, infos

    def render(self) -> tuple[UInt8[np.ndarray, "h w 3"], ...] | None:
        """Return each game's latest frame, uint8 (512, 512, 3); in "human" mode, show all and return None.

        Raises:
            ResetNeededError: No game has been started.
        """
        imagination.require_started(self.closed, self._state, "render")
        if self.render_mode is None:
            logger.warn(
                'render() does nothing without a render mode: pass render_mode="rgb_array"', stacklevel=2
            )
        if self.render_mode == "rgb_array":
            return tuple(rendering.enlarge(frame) for frame in self._frames())
        self._show()
        return None

    def close_extras(self, **kwargs: Any) -> None:
        """Close the window; called by `close`."""
        self._state = None
        window: rendering.Window | None = getattr(self, "_window", None)
        if window is not None:
            window.close()

    def clone_state(self) -> ImaginedState:
        """Copy the state of all games, random numbers included.

        Raises:
            ResetNeededError: No game has been started.
        """
        return imagination.clone_state(
            self.world,
            imagination.require_started(self.closed, self._state, "clone_state"),
            self._over,
            self.np_random,
        )

    def restore_state(self, state: ImaginedState) -> Array:
        """Restore a cloned state, any number of times, here or in another environment of the same world.

        The same actions then give the same future. No `reset` is needed before.

        Returns:
            The observations in that state.

        Raises:
            InvalidInputError: It is not a state of `num_envs` games of this world; the environment is
                unchanged.
        """
        imagination.require_open(self.closed)
        self._state, self._over = imagination.check_state(self.world, state, self.num_envs)
        imagination.restore_rngs(self.np_random, state)
        return self._observe()

    def get_action_meanings(self) -> list[str]:
        """Return the name of each action, such as "NOOP", "FIRE", "RIGHT", or of each part of one."""
        return list(self.world.action_meanings)

    def _start(self, games: NDArray[np.intp], contexts: Contexts | None) -> dict[str, Any]:
        """Start some games, or all of them the first time; return infos with their contexts."""
        started, contexts = imagination.start_games(self.world, [self._rng(i) for i in games], contexts)
        if self._state is None:
            self._state, self._over = started, torch.zeros_like(self._over)
        else:
            index = torch.from_numpy(games).to(self._over.device)
            self._state = self._state.replace(index, started)
            self._over = self._over.index_fill(0, index, False)
        return self._context_infos(games, contexts, started)

    def _reset_finished(self) -> dict[str, Any]:
        """Reset the games that are over; return infos with their last frames and new contexts."""
        games = np.flatnonzero(self._over.cpu().numpy())
        if not len(games):
            return {}
        infos = self._final_infos(games)
        return infos | self._start(games, None)

    def _final_infos(self, games: NDArray[np.intp]) -> dict[str, Any]:
        """Return infos with `final_obs` and the (empty) `final_info`."""
        mask = self._mask(games)
        final_obs = self._observe()
        infos: dict[str, Any] = {"final_info": {}, "_final_info": mask, "_final_obs": mask.copy()}
        if isinstance(final_obs, Tensor):
            infos["final_obs"] = final_obs * torch.from_numpy(mask).to(final_obs.device)[:, None, None, None]
        else:
            infos["final_obs"] = np.full(self.num_envs, None, dtype=object)
            for game in games:
                infos["final_obs"][game] = final_obs[game].copy()
        return infos

    def _context_infos(
        self, games: NDArray[np.intp], contexts: Contexts, started: StateLike
    ) -> dict[str, Any]:
        """Return infos with `context`, in the form that SyncVectorEnv gives to infos of environments."""
        obs, act = contexts.obs, contexts.act
        if self.output == "torch":
            device = started.obs.device
            index = torch.from_numpy(games).to(device)
            frames = started.obs.new_zeros(self.num_envs, *started.obs.shape[1:])
            actions = started.act.new_zeros(self.num_envs, *act.shape[1:])
            frames.index_copy_(0, index, started.obs)
            actions.index_copy_(0, index, torch.from_numpy(act).to(device))
            context: dict[str, Any] = {"obs": frames.permute(0, 1, 3, 4, 2), "act": actions}
        else:
            context = {
                name: np.zeros((self.num_envs, *x.shape[1:]), x.dtype)
                for name, x in (("obs", obs), ("act", act))
            }
            context["obs"][games], context["act"][games] = obs, act
        context |= {"_obs": self._mask(games), "_act": self._mask(games)}
        return {"context": context, "_context": self._mask(games)}

    def _mask(self, games: NDArray[np.intp]) -> NDArray[np.bool_]:
        mask = np.zeros(self.num_envs, dtype=np.bool_)
        mask[games] = True
        return mask

    def _games_to_reset(self, mask: Any) -> NDArray[np.intp]:
        if mask is None:
            return np.arange(self.num_envs)
        given = imagination.as_array(mask) if isinstance(mask, Tensor) and mask.dtype == torch.bool else mask
        is_mask = isinstance(given, np.ndarray) and given.dtype == np.bool_
        if not isinstance(given, np.ndarray) or not is_mask or given.shape != (self.num_envs,):
            got = f"{given.dtype} {given.shape}" if isinstance(given, np.ndarray) else imagination.told(mask)
            error = InvalidInputError if is_mask else InvalidTypeError  # as Gymnasium's own environments do
            raise error(f'options["reset_mask"] is a boolean array ({self.num_envs},), got {got}')
        if not given.any():
            raise InvalidInputError('options["reset_mask"] must be True for at least one game')
        if self._state is None and not given.all():
            raise ResetNeededError("the first reset starts all games: call reset() without a reset_mask")
        return np.flatnonzero(given)

    def _rng(self, game: int) -> np.random.Generator:
        rng = self._rngs[game]
        return self._seed(game, None) if rng is None else rng

    def _seed(self, game: int, seed: int | None) -> np.random.Generator:
        rng, self._seeds[game] = seeding.np_random(seed)
        self._rngs[game] = rng
        return rng

    def _at_horizon(self, state: StateLike) -> Bool[Tensor, " b"]:
        if self._horizon is None:
            return torch.zeros_like(self._over)
        return state.time >= self._horizon

    def _observe(self) -> Array:
        assert self._state is not None
        (obs,) = self._out(imagination.latest_frames(self._state))
        return obs

    def _frames(self) -> UInt8[np.ndarray, "b h w 3"]:
        assert self._state is not None
        (frames,) = imagination.to_host(imagination.latest_frames(self._state))
        return frames

    def _out(
        self, *tensors: UInt8[Tensor, "b h w c"] | Float[Tensor, " b"] | Bool[Tensor, " b"]
    ) -> Sequence[Array]:
        """Copy results into fresh memory for the caller; NumPy rewards are float64, as in SyncVectorEnv."""
        if self.output == "torch":
            return [x.clone() if x.ndim == 1 else x for x in tensors]
        arrays = imagination.to_host(*tensors)
        is_copied = tensors[0].device.type == "cuda"
        dtypes = [np.float64 if x.dtype == np.float32 else x.dtype for x in arrays]
        return [x.astype(t, order="C", copy=not is_copied) for x, t in zip(arrays, dtypes, strict=True)]

    def _show(self) -> None:
        if self._window is not None:
            self._window.show(rendering.tile(self._frames()))


def _refuse_numpy_wrappers(wrappers: Iterable[VectorWrapper]) -> None:
    for wrapper in wrappers:
        if imagination.is_named(wrapper, "gymnasium.", _NUMPY_WRAPPERS):
            raise InvalidInputError(
                f"{type(wrapper).__name__} computes in NumPy and would get tensors: make the "
                "environment with output='numpy', or leave the wrapper out"
            )


def _check_count(name: str, value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 1 <= value <= most:
        raise InvalidInputError(f"{name} is an integer >= 1, and at most {most}, got {value!r}")
    return int(value)


def _check_autoreset_mode(value: Any) -> AutoresetMode:
    if isinstance(value, AutoresetMode | str):
        for mode in AutoresetMode:
            if value in (mode, mode.name, mode.value):
                return mode
    accepted = ", ".join(f'"{mode.name}"' for mode in AutoresetMode)
    raise InvalidInputError(f"autoreset_mode is one of {accepted}, got {value!r}")
