"""Imagined games as a Stable-Baselines3 `VecEnv`: one batch, one network call a step.

Example::

    env = make_sb3_vec_env("DiamondBreakout-v0", num_envs=32)
    PPO("CnnPolicy", ContextFrameStack(env, 4)).learn(100_000)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, MultiBinary
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from diamond_gym.adapters.batch import make_batch
from diamond_gym.errors import InvalidInputError, MissingDependencyError

try:
    from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecMonitor
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn
except ImportError:
    raise MissingDependencyError(
        "diamond_gym.adapters.sb3 needs Stable-Baselines3: pip install 'diamond-gym[sb3]'"
    ) from None


def make_sb3_vec_env(
    env_id: str,
    num_envs: int = 1,
    *,
    seed: int | None = None,
    max_episode_steps: int | None = None,
    monitor: bool = True,
    **kwargs: Any,
) -> VecEnv:
    """Make imagined games that Stable-Baselines3's agents learn from.

    Args:
        env_id: "DiamondBreakout-v0", another id of this library, or one of `register_world_model`.
        num_envs: How many games are imagined in a batch, at least 1.
        seed: Fixes the first reset and all that follows, an integer >= 0; game i gets `seed + i`.
        max_episode_steps: Imagination horizon; None is the registered one (50).
        monitor: Whether returns and lengths of episodes are logged (`VecMonitor`), as by `make_vec_env`.
        kwargs: Keyword arguments of the environment: `checkpoint`, `device`, `num_denoising_steps`, ...

    Raises:
        InvalidInputError: The id is not that of an imagined game, or an argument is wrong.
        DiamondGymError: A keyword argument cannot be met; the subclass says how.
    """
    games = make_batch(env_id, num_envs, max_episode_steps, autoreset_mode="SAME_STEP", **kwargs)
    env: VecEnv = BatchedVecEnv(games)
    env.seed(seed)
    return VecMonitor(env) if monitor else env


class BatchedVecEnv(VecEnv):
    """A batched Gymnasium environment as a `VecEnv`.

    As in SB3's own ones, the observation that ends an episode is `infos[i]["terminal_observation"]`,
    `infos[i]["TimeLimit.truncated"]` tells a horizon from an end, and a finished game is reset at once. The
    info of that reset is in `reset_infos[i]`: the context, frames and actions to burn in a memory with.
    Rewards are float32. There are no single environments: `get_attr` and `env_method` ask the whole batch;
    a tuple has one entry for each game, any other result is the same for all games.

    Args:
        env: A batched environment with autoreset mode SAME_STEP and NumPy output.

    Raises:
        InvalidInputError: It has another autoreset mode.
    """

    def __init__(self, env: VectorEnv) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise InvalidInputError(f"Stable-Baselines3 needs autoreset_mode='SAME_STEP', got {mode}")
        self.env = env
        self._actions: NDArray[Any] | None = None
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.metadata = env.metadata

    def reset(self) -> NDArray[Any]:
        """Start all games, with the seeds and options of `seed` and `set_options`."""
        seeds = None if all(seed is None for seed in self._seeds) else self._seeds
        obs, infos = self.env.reset(seed=seeds, options=_merged(self._options))  # pyright: ignore[reportArgumentType]
        self._reset_seeds()
        self._reset_options()
        self._keep_reset_infos(infos, range(self.num_envs))
        return obs

    def step_async(self, actions: NDArray[Any]) -> None:
        """Store the actions for `step_wait`; SB3's agents give the parts of `MultiBinary` as floats."""
        is_binary = isinstance(self.action_space, MultiBinary)
        self._actions = actions.astype(self.action_space.dtype) if is_binary else actions

    def step_wait(self) -> VecEnvStepReturn:
        """Take the stored actions, one in each game."""
        obs, rewards, terminated, truncated, infos = self.env.step(self._actions)
        dones = terminated | truncated
        cut_short = truncated & ~terminated
        found: list[dict[str, Any]] = [{"TimeLimit.truncated": bool(cut)} for cut in cut_short]
        over = np.flatnonzero(dones)
        for i in over:
            found[i]["terminal_observation"] = infos["final_obs"][i]
        self._keep_reset_infos(infos, over)
        return obs, rewards.astype(np.float32), dones, found

    def close(self) -> None:
        """Close the games."""
        self.env.close()

    def get_images(self) -> Sequence[Any]:
        """A picture of each game; None where the render mode is not "rgb_array"."""
        images = self.env.render() if self.render_mode == "rgb_array" else None
        return [None] * self.num_envs if images is None else list(images)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of the batched environment, for each of some games."""
        return self._each(getattr(self.env, attr_name), indices)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the batched environment.

        Raises:
            InvalidInputError: Only some games are meant.
        """
        if set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise InvalidInputError(f"{attr_name} is one for all {self.num_envs} games: leave out indices")
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the batched environment once; return the result for each of some games."""
        return self._each(getattr(self.env, method_name)(*method_args, **method_kwargs), indices)

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Return False for each game, because there are no single environments to wrap."""
        return [False for _ in self._get_indices(indices)]

    def _each(self, answer: Any, indices: VecEnvIndices) -> list[Any]:
        is_per_game = isinstance(answer, tuple) and len(answer) == self.num_envs
        return [answer[i] if is_per_game else answer for i in self._get_indices(indices)]

    def _keep_reset_infos(self, infos: dict[str, Any], games: Any) -> None:
        context = infos.get("context")
        for i in games:
            self.reset_infos[i] = {} if context is None else {"context": _entry(context, i)}


class ContextFrameStack(VecEnvWrapper):
    """`VecFrameStack` (the last frames, along the channels) whose games begin with their contexts.

    `VecFrameStack` puts black frames before the first one. Imagined games last for tens of steps, and the
    real one looks like that only at its very start, so here the frames before the first one are the real
    frames that the game started from. A game without a context gets black frames.

    Args:
        venv: Games with frames (h, w, c); the innermost `VecEnv` holds contexts in `reset_infos`, or not.
        n_stack: Frames, at least 1; the newest is last.

    Raises:
        InvalidInputError: The games have other observations, or there is nothing to stack.
    """

    def __init__(self, venv: VecEnv, n_stack: int) -> None:
        space = venv.observation_space
        if not isinstance(space, Box) or len(space.shape) != 3 or n_stack < 1:
            raise InvalidInputError(
                f"frames (h, w, c) and n_stack >= 1 are needed, got {space} and {n_stack}"
            )
        self.n_stack, self._channels = n_stack, space.shape[2]
        low, high = (np.repeat(bound, n_stack, axis=-1) for bound in (space.low, space.high))
        self._frames = np.zeros((venv.num_envs, *low.shape), low.dtype)
        super().__init__(venv, Box(low, high, dtype=low.dtype.type))

    def reset(self) -> NDArray[Any]:
        """Start all games."""
        obs = self.venv.reset()
        assert isinstance(obs, np.ndarray)
        for i in range(self.num_envs):
            self._begin(i, obs[i])
        return self._frames.copy()

    def step_wait(self) -> VecEnvStepReturn:
        """The stacks after the step; of a game that is over, the stack that the next one begins with."""
        obs, rewards, dones, infos = self.venv.step_wait()
        assert isinstance(obs, np.ndarray)
        self._frames[..., : -self._channels] = self._frames[..., self._channels :]
        self._frames[..., -self._channels :] = obs
        for i in np.flatnonzero(dones):
            self._frames[i, ..., -self._channels :] = infos[i]["terminal_observation"]
            infos[i]["terminal_observation"] = self._frames[i].copy()
            self._begin(i, obs[i])
        return self._frames.copy(), rewards, dones, infos

    def _begin(self, game: int | np.integer, obs: NDArray[Any]) -> None:
        context = self.unwrapped.reset_infos[game].get("context")
        past = [] if context is None else list(context["obs"][:-1])
        known = [*past, obs][-self.n_stack :]
        self._frames[game] = 0
        self._frames[game, ..., -self._channels * len(known) :] = np.concatenate(known, axis=-1)


def burn_in(agent: Any, env: VecEnv) -> Any:
    """Compute a recurrent agent's memory of each game's context, up to before the game's first frame.

    Example::

        env = make_sb3_vec_env("DiamondBreakout-v0", num_envs=32)
        obs = env.reset()
        act, state = agent.predict(obs, state=burn_in(agent, env), episode_start=np.zeros(32, bool))

    Imagined games start in the middle of real ones. After some games have been reset, call this again and
    copy the entries of those games.

    Args:
        agent: A `RecurrentPPO`, or another whose `predict` takes and returns a state; it sees single frames.
        env: Games that have been reset; the innermost `VecEnv` holds contexts in `reset_infos`.

    Returns:
        The agent's state, which for `RecurrentPPO` is a pair of float32 arrays (layers, num_envs, hidden).
        None for games whose contexts have a single frame.

    Raises:
        InvalidInputError: The games have no contexts.
    """
    infos = env.unwrapped.reset_infos
    if not all("context" in info for info in infos):
        raise InvalidInputError("burning in needs games with contexts: imagined ones, after a reset")
    past = np.stack([info["context"]["obs"][:-1] for info in infos], axis=1)
    state, begins = None, np.ones(env.num_envs, bool)
    for obs in past:
        _, state = agent.predict(obs, state=state, episode_start=begins)
        begins = np.zeros(env.num_envs, bool)
    return state


def _entry(context: dict[str, Any], game: int) -> dict[str, Any]:
    return {name: x[game] for name, x in context.items() if not name.startswith("_")}


def _merged(options: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Each game's options as those of the batch.

    Raises:
        InvalidInputError: Games have options other than "context", or only some have one.
    """
    if not any(options):
        return None
    if any(set(given) != {"context"} for given in options):
        raise InvalidInputError(
            f"options are {{'context': ...}} for all {len(options)} games or for none, got {options}"
        )
    contexts = [given["context"] for given in options]
    return {"context": {name: np.stack([np.asarray(c[name]) for c in contexts]) for name in contexts[0]}}
