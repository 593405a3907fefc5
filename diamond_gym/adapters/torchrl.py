"""Imagined games as a TorchRL environment: one batch, and every tensor stays on the world model's device.

Example::

    env = DiamondTorchRLEnv("DiamondBreakout-v0", num_envs=32)
    rollout = env.rollout(50)
"""

from __future__ import annotations

from typing import Any

import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from diamond_gym.adapters.batch import make_batch
from diamond_gym.errors import InvalidInputError, MissingDependencyError

try:
    from tensordict import TensorDict, TensorDictBase
    from torchrl.data import Bounded, Categorical, Composite, MultiCategorical, Unbounded
    from torchrl.envs import EnvBase
except ImportError:
    raise MissingDependencyError(
        "diamond_gym.adapters.torchrl needs TorchRL: pip install 'diamond-gym[torchrl]'"
    ) from None


class DiamondTorchRLEnv(EnvBase):
    """Imagined games of batch size (num_envs,).

    "pixels" is uint8 (num_envs, 64, 64, 3), as `GymEnv(from_pixels=True)` has it: `ToTensorImage` makes it
    what convolutions take. "action" is categorical (bounded where the world's actions are continuous),
    "reward" a sign (float32), "terminated" the predicted end, "truncated" the imagination horizon. Resets may
    be partial ("_reset"), so collectors reset each game when it is over.

    Args:
        env_id: "DiamondBreakout-v0", another id of this library, or one of `register_world_model`.
        num_envs: How many games are imagined in a batch, at least 1.
        seed: Fixes the first reset and all that follows; None for a random one.
        max_episode_steps: Imagination horizon; None is the registered one (50).
        with_context: Whether each step also holds the game's "context", the frames and actions that it
            started from, to burn in a memory with: five times the bytes.
        kwargs: Keyword arguments of the environment: `checkpoint`, `device`, `num_denoising_steps`, ...

    Raises:
        InvalidInputError: The id is not that of an imagined game, or an argument is wrong.
        DiamondGymError: A keyword argument cannot be met; the subclass says how.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int = 1,
        *,
        seed: int | None = None,
        max_episode_steps: int | None = None,
        with_context: bool = False,
        **kwargs: Any,
    ) -> None:
        games = make_batch(
            env_id, num_envs, max_episode_steps, autoreset_mode="DISABLED", output="torch", **kwargs
        )
        obs, infos = games.reset(seed=seed)
        super().__init__(device=obs.device, batch_size=torch.Size([num_envs]))
        self.games = games
        self._seed_of_reset = seed
        self._context = _contexts(infos) if with_context else {}
        self._make_specs()

    def _make_specs(self) -> None:
        batch, device = self.batch_size, self.device
        space = self.games.single_action_space
        one_each = torch.Size([*batch, 1])
        frames = torch.Size(self.games.observation_space.shape or ())
        shown: dict[str, Any] = {"pixels": Bounded(0, 255, frames, device, torch.uint8)}
        if self._context:
            past = Bounded(0, 255, self._context["obs"].shape, device, torch.uint8)
            acts = _action_spec(space, self._context["act"].shape, device)
            shown["context"] = Composite({"obs": past, "act": acts}, shape=batch)
        self.observation_spec = Composite(shown, shape=batch)
        self.action_spec = _action_spec(space, torch.Size([*batch, *(space.shape or ())]), device)
        self.reward_spec = Unbounded(one_each, device, torch.float32)
        flags = ("done", "terminated", "truncated")
        self.done_spec = Composite(
            {name: Categorical(2, one_each, device, torch.bool) for name in flags}, shape=batch
        )

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        options = None if mask is None else {"reset_mask": mask.reshape(self.batch_size).cpu().numpy()}
        obs, infos = self.games.reset(seed=self._seed_of_reset, options=options)
        self._seed_of_reset = None
        if self._context:
            self._context = _merged(self._context, _contexts(infos), mask)
        nothing = torch.zeros(*self.batch_size, 1, dtype=torch.bool, device=self.device)
        flags = {name: nothing.clone() for name in ("done", "terminated", "truncated")}
        return self._out(obs, flags)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        obs, rew, end, trunc, _ = self.games.step(tensordict["action"])
        flags = {"done": end | trunc, "terminated": end, "truncated": trunc}
        out = self._out(obs, {name: flag[:, None] for name, flag in flags.items()})
        return out.set("reward", rew[:, None])

    def _out(self, obs: torch.Tensor, flags: dict[str, torch.Tensor]) -> TensorDict:
        shown: dict[str, Any] = {"pixels": obs, **flags}
        if self._context:
            shown["context"] = {name: x.clone() for name, x in self._context.items()}
        return TensorDict(shown, self.batch_size, device=self.device)

    def _set_seed(self, seed: int | None) -> None:
        self._seed_of_reset = seed

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close the games."""
        if not self.is_closed:
            self.games.close()
        super().close(raise_if_closed=raise_if_closed)


def _action_spec(space: Any, shape: torch.Size, device: Any) -> Any:
    """The spec of actions of a space, of which a tensor of this shape holds some."""
    if isinstance(space, Discrete):
        return Categorical(int(space.n), shape, device, torch.int64)
    if isinstance(space, MultiDiscrete) and space.nvec.ndim == 1:
        return MultiCategorical(torch.from_numpy(space.nvec), shape, device, torch.int64)
    if isinstance(space, Box):
        low, high = (torch.from_numpy(x).to(device).expand(shape) for x in (space.low, space.high))
        return Bounded(low, high, shape, device, torch.float32)
    if isinstance(space, MultiBinary):
        return Bounded(0, 1, shape, device, torch.int64)
    raise InvalidInputError(f"TorchRL has no spec for actions of {space}: use MultiDiscrete with one axis")


def _contexts(infos: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: infos["context"][name] for name in ("obs", "act")}


def _merged(
    before: dict[str, torch.Tensor], fresh: dict[str, torch.Tensor], mask: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """The fresh contexts of the games that were reset, all without a mask, beside those of the others."""
    if mask is None:
        return fresh
    return {
        name: torch.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, before[name]) for name, x in fresh.items()
    }
