"""One imagined game as a `gymnasium.Env`, a thin layer over `WorldModel`.

The module knows Gymnasium's conventions, but nothing of networks or of the origin of weights and contexts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import gymnasium
import numpy as np
import torch
from gymnasium import logger
from gymnasium.spaces import Box
from numpy.typing import NDArray
from torch import Tensor

from diamond_gym.backends.names import accepts_compile
from diamond_gym.checkpoints import load_world
from diamond_gym.envs import games as imagination
from diamond_gym.envs import rendering
from diamond_gym.envs.games import ImaginedState
from diamond_gym.errors import ResetNeededError
from diamond_gym.world.interface import StateLike

_SKIPPING = ("MaxAndSkipObservation", "MaxAndSkipEnv", "AtariPreprocessing")
"""Names of the wrappers of Gymnasium and Stable-Baselines3 that repeat actions."""
_IS_PREPROCESSED = (
    "its frames have 64x64 pixels already, and a step is four raw frames: leave out AtariPreprocessing, "
    "MaxAndSkip and Stable-Baselines3's AtariWrapper. gymnasium.wrappers.FrameStackObservation, or "
    "diamond_gym.adapters.sb3.ContextFrameStack, stacks frames"
)


class DiamondEnv(gymnasium.Env[NDArray[np.uint8], Any]):
    """One imagined game.

    Observations are uint8 (64, 64, 3), actions are indices into the game's minimal action set, rewards are
    -1.0, 0.0 or 1.0. A step is four raw frames of the console. `terminated` is the predicted end of the
    episode: a lost life, as in training. `truncated` is always False, because the imagination horizon is
    Gymnasium's TimeLimit, which `gymnasium.make` applies (50 steps unless `max_episode_steps` is given).
    A world of another environment has the frames and the action space of its training data.

    `reset(seed=s)` fixes everything that follows. It draws a context, n real frames and the actions taken at
    them, or starts from the caller's: `options={"context": {"obs": uint8 (n, 64, 64, 3), "act": n or
    n - 1 actions}}`. `info["context"]` returns the context with n actions; the last one, which the recorded
    player took after the last frame (0 when not given), does not influence the game.

    The wrappers that preprocess ALE's own environments (`AtariPreprocessing`, `MaxAndSkipObservation`,
    Stable-Baselines3's `AtariWrapper`) are not needed: they would do it a second time. The real game with the
    same spaces is `DiamondReal<Game>-v0`.

    Example:
        >>> import gymnasium as gym, diamond_gym
        >>> env = gym.make("DiamondBreakout-v0")
        >>> obs, info = env.reset(seed=0)
        >>> obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
        >>> obs.shape, obs.dtype
        ((64, 64, 3), dtype('uint8'))

    Args:
        game: Name of an Atari game; may be None when the checkpoint names it.
        checkpoint: "auto" (embedded, else cached, else from the Hub), "embedded", "hub",
            "hub:user/name" (a repository of the Hub), or a path to a `.safetensors`, a `.pt` or a run folder.
        device: "auto" (CUDA where available, else the CPU), "cpu", "cuda", "cuda:1", ...
        dtype: Precision of the networks: "auto", "float32", "bfloat16", on CUDA also "float16".
        backend: What runs the networks: "eager" PyTorch, "inductor" (PyTorch's compiler), "openvino" (for a
            single game on the CPU, in vector environments for up to 16; extra `openvino`), "cuda_graph" (on
            CUDA), or "auto": "cuda_graph" on CUDA; on the CPU "openvino" where it is installed and a trial,
            made once on a processor, finds it faster; else "eager". The deprecated keyword `compile` is
            accepted too.
        num_denoising_steps: Denoising steps per frame; None for the checkpoint's own, as for the next three.
        order: 1 for Euler, 2 for Heun.
        s_churn: Amount of noise added back while denoising, >= 0.
        contexts: Path of a file of contexts or a folder of recorded episodes that games start from.
        render_mode: None, "rgb_array" (512x512 pictures) or "human" (a pygame window).

    Raises:
        DiamondGymError: A keyword argument cannot be met; the subclass says how.
    """

    metadata: dict[str, Any] = rendering.METADATA

    @accepts_compile
    def __init__(
        self,
        game: str | None = None,
        *,
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
        imagination.refuse_unknown(unknown, DiamondEnv)
        imagination.check_choice("render_mode", render_mode, [None, *self.metadata["render_modes"]])
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
        )
        self.observation_space = Box(0, 255, self.world.contexts.obs.shape[2:], np.uint8)
        self.action_space = self.world.action_space.to_gymnasium()
        self._state: StateLike | None = None
        self._trajectory: Sequence[Tensor] | None = None
        self._context: dict[str, NDArray[Any]] = {}
        self._over = False
        self._closed = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start a game.

        Args:
            seed: An integer >= 0 fixes everything that follows; None continues the present random numbers.
            options: None, or a dict with "context" as the class describes it.

        Returns:
            The observation, which is the last frame of the context, and the info, whose "context" is a dict
            of "obs" and "act".

        Raises:
            InvalidInputError: The seed, an option or the context is not accepted; the environment is
                unchanged.
        """
        imagination.require_open(self._closed)
        for wrapper in imagination.wrappers_in_use(self, gymnasium.Wrapper):
            if imagination.is_named(wrapper, "", _SKIPPING):
                logger.warn(f"{type(wrapper).__name__}: {_IS_PREPROCESSED}")
        seed = imagination.check_seed(seed)
        options = dict(imagination.check_options(options, ["context"]))
        given = imagination.check_context(self.world, options.get("context"))
        super().reset(seed=seed)
        self._state, contexts = imagination.start_games(self.world, [self.np_random], given)
        self._trajectory = None
        self._over = False
        self._show()
        self._context = {"obs": contexts.obs[0], "act": contexts.act[0]}
        return self._observe(), self._info()

    def step(
        self, action: int | np.integer | NDArray[Any] | Tensor
    ) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Imagine one step (four raw frames of the console).

        Args:
            action: An integer, or a 0-d integer array or tensor; an array where actions are not discrete.

        Returns:
            Observation, reward in {-1.0, 0.0, 1.0}, predicted end, False, and the info of `reset`.

        Raises:
            InvalidInputError: It is not an action of the game; the game is unchanged.
            ResetNeededError: No game has been started, or it is over.
        """
        state = imagination.require_started(self._closed, self._state, "step")
        if self._over:
            raise ResetNeededError("the episode is over (terminated was True): call reset() before step()")
        act = torch.as_tensor(imagination.check_action(action, self.world), device=state.act.device)
        self._state, step = imagination.advance_games(self.world, state, act[None])
        self._trajectory = step.trajectory
        frames, rew, end = imagination.to_host(imagination.latest_frames(self._state), step.rew, step.end)
        self._over = bool(end[0])
        self._show()
        return np.ascontiguousarray(frames[0]), float(rew[0]), self._over, False, self._info()

    def render(self) -> NDArray[np.uint8] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the latest frame, uint8 (512, 512, 3); in "human" mode, show it and return None.

        Raises:
            ResetNeededError: No game has been started.
        """
        imagination.require_started(self._closed, self._state, "render")
        if self.render_mode is None:
            logger.warn(
                'render() does nothing without a render mode: pass render_mode="rgb_array"', stacklevel=2
            )
        if self.render_mode == "rgb_array":
            return rendering.enlarge(self._observe())
        self._show()
        return None

    def close(self) -> None:
        """Close the window and forbids further use. Closing twice is harmless."""
        self._closed = True
        self._state = None
        if self._window is not None:
            self._window.close()

    def clone_state(self) -> ImaginedState:
        """Copy the state of the game, random numbers included.

        The count of a TimeLimit around the environment is not part of the state.

        Raises:
            ResetNeededError: No game has been started.
        """
        state = imagination.require_started(self._closed, self._state, "clone_state")
        return imagination.clone_state(self.world, state, torch.tensor([self._over]), [self.np_random])

    def restore_state(self, state: ImaginedState) -> NDArray[np.uint8]:
        """Restore a cloned state, any number of times, here or in another environment of the same world.

        The same actions then give the same future. No `reset` is needed before.

        Returns:
            The observation in that state.

        Raises:
            InvalidInputError: It is not a state of one game of this world; the environment is unchanged.
        """
        imagination.require_open(self._closed)
        self._state, over = imagination.check_state(self.world, state, 1)
        self._over = bool(over)
        self._trajectory = None
        imagination.restore_rngs([self.np_random], state)
        return self._observe()

    def set_sampler(
        self,
        *,
        num_denoising_steps: int | None = None,
        order: int | None = None,
        s_churn: float | None = None,
    ) -> None:
        """Change how the next frames are sampled, within the current game. None keeps a number as it is.

        Raises:
            InvalidInputError: A number is out of range, or this world cannot be sampled like this; the
                environment is unchanged.
        """
        self.world = self.world.resampled(num_denoising_steps, order, s_churn)

    def denoising_trajectory(self) -> NDArray[np.float32] | None:
        """The denoising of the latest frame, step by step.

        float32 (steps + 1, h, w, c), noise first, in about [-1, 1]; None when the latest frame was not
        imagined by a `step` of this environment.
        """
        if not self._trajectory:
            return None
        return torch.stack(list(self._trajectory))[:, 0].permute(0, 2, 3, 1).float().cpu().numpy()

    @property
    def ale(self) -> NoReturn:
        """Raises an error with advice: an imagined game has no emulator, which wrappers for ALE ask for."""
        raise AttributeError(f"an imagined game has no emulator (env.ale): {_IS_PREPROCESSED}")

    def get_action_meanings(self) -> list[str]:
        """Return the name of each action, such as "NOOP", "FIRE", "RIGHT", or of each part of one."""
        return list(self.world.action_meanings)

    def get_keys_to_action(self) -> dict[tuple[str, ...], int]:
        """Return each action's keys, for `gymnasium.utils.play`: WASD, space to fire, E to do nothing."""
        is_discrete = self.world.action_space.is_discrete
        return imagination.keys_to_action(self.world.action_meanings) if is_discrete else {}

    def _info(self) -> dict[str, Any]:
        """The context in new arrays: the same keys after `reset` and `step`, which recorders need."""
        return {"context": {name: x.copy() for name, x in self._context.items()}}

    def _observe(self) -> NDArray[np.uint8]:
        assert self._state is not None
        return np.ascontiguousarray(imagination.latest_frames(self._state)[0].cpu().numpy())

    def _show(self) -> None:
        if self._window is not None:
            self._window.show(rendering.enlarge(self._observe()))
