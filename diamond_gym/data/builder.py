"""The steps of an episode while it is played, used wherever episodes are recorded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from diamond_gym.data.episodes import Episode


@dataclass
class EpisodeBuilder:
    """The steps of one episode so far, as lists.

    Attributes:
        obs: The frame before each step, an array (h, w, c) or tensor (c, h, w); empty when not recorded.
        act: The actions: integers, or arrays where they are not discrete.
        rew: The raw rewards.
    """

    obs: list[NDArray[np.uint8] | Tensor] = field(default_factory=list)
    act: list[Any] = field(default_factory=list)
    rew: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.act)

    def actions(self) -> NDArray[Any]:
        """The actions as one array, int64 or float32."""
        actions = np.array(self.act)
        return actions.astype(np.float32 if actions.dtype.kind == "f" else np.int64)

    @property
    def total_reward(self) -> float:
        """Sum of the raw rewards."""
        return sum(self.rew)

    def add(self, obs: NDArray[np.uint8] | Tensor | None, act: Any, rew: float) -> None:
        """Add a step: the frame before it (None when not recorded), the action and its reward."""
        if obs is not None:
            self.obs.append(obs)
        self.act.append(act)
        self.rew.append(rew)

    def episode(
        self,
        *,
        end: bool = False,
        trunc: bool = False,
        final_obs: NDArray[np.uint8] | Tensor | None = None,
        info: dict[str, Any] | None = None,
    ) -> Episode:
        """Build the episode.

        Args:
            end: Whether the last step terminated it.
            trunc: Whether the last step truncated it.
            final_obs: The frame after the last step; None if the episode is unfinished.
            info: Further data to keep with the episode.
        """
        import torch  # imported here, because plain recording does not need torch

        from diamond_gym.data.episodes import Episode, channels_first

        flags = torch.zeros(2, len(self), dtype=torch.uint8)
        flags[0, -1], flags[1, -1] = end, trunc
        final = {} if final_obs is None else {"final_observation": channels_first(final_obs)}
        return Episode(
            obs=torch.stack([channels_first(obs) for obs in self.obs]),
            act=torch.from_numpy(self.actions()),
            rew=torch.tensor(self.rew, dtype=torch.float32),
            end=flags[0],
            trunc=flags[1],
            info={**final, **(info or {})},
        )
