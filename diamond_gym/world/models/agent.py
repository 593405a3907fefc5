"""The three networks of a DIAMOND agent, under the names in its checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar, get_type_hints

from torch import nn

from diamond_gym.errors import InvalidInputError
from diamond_gym.world.action_space import ActionSpace
from diamond_gym.world.models.actor_critic import ActorCritic, ActorCriticConfig
from diamond_gym.world.models.denoiser import Denoiser, DenoiserConfig
from diamond_gym.world.models.rew_end_model import RewEndModel, RewEndModelConfig

T = TypeVar("T")


def config_from_dict(cls: type[T], values: dict[str, Any]) -> T:
    """Build a (nested) config dataclass from plain dicts, as `dataclasses.asdict` makes them.

    Raises:
        InvalidInputError: A key is not a field of the config.
    """
    if not isinstance(values, dict):
        raise InvalidInputError(f"{cls.__name__}: expected a mapping of fields, got {values!r}")
    hints = get_type_hints(cls)
    names = [f.name for f in fields(cls)]  # pyright: ignore[reportArgumentType]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise InvalidInputError(f"{cls.__name__}: unknown field(s) {unknown}; accepted: {names}")
    return cls(
        **{
            name: config_from_dict(hints[name], value) if is_dataclass(hints[name]) else value
            for name, value in values.items()
        }
    )


@dataclass
class AgentConfig:
    """Sizes of the three networks and of the action set they share.

    Attributes:
        denoiser: The denoiser.
        rew_end_model: The reward/end model.
        actor_critic: The actor-critic.
        num_actions: Size of the action set; None until the game is known, and where actions are not discrete.
        actions: The action space where it is not discrete, as `str(ActionSpace)` writes it, such as
            "box(-2.0..2.0)" or "multi_discrete(3, 2)"; a dataset says it, so that it need not be given.
    """

    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    rew_end_model: RewEndModelConfig = field(default_factory=RewEndModelConfig)
    actor_critic: ActorCriticConfig = field(default_factory=ActorCriticConfig)
    num_actions: int | None = None
    actions: str | None = None

    def __post_init__(self) -> None:
        if self.actions is not None:
            self.actions = str(ActionSpace.parse(self.actions))

    @property
    def action_space(self) -> ActionSpace | None:
        """The actions; None until they are known."""
        if self.actions is not None:
            return ActionSpace.parse(self.actions)
        return None if self.num_actions is None else ActionSpace.discrete(self.num_actions)

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Shape (c, h, w) of a frame."""
        return self.rew_end_model.img_channels, *self.rew_end_model.frame_size

    def with_frames(self, shape: tuple[int, int, int]) -> AgentConfig:
        """Return the same networks for frames of shape (c, h, w).

        Raises:
            InvalidInputError: The networks' patches do not divide the frames.
        """
        c, h, w = shape
        p = math.lcm(self.denoiser.inner_model.patch_size, self.rew_end_model.patch_size)
        if h % p or w % p:
            near = "x".join(str(max(1, round(side / p)) * p) for side in (h, w))
            raise InvalidInputError(
                f"frames have {h}x{w} pixels, which patches of {p}x{p} do not divide "
                "(agent.denoiser.inner_model.patch_size, agent.rew_end_model.patch_size): import them with "
                f"size={near}, or set patch sizes that do, such as 1"
            )
        frames = {"img_channels": c, "img_size": h, "img_width": None if w == h else w}
        inner = replace(self.denoiser.inner_model, img_channels=c)
        return replace(
            self,
            denoiser=replace(self.denoiser, inner_model=inner),
            rew_end_model=replace(self.rew_end_model, **frames),
            actor_critic=replace(self.actor_critic, **frames),
        )

    def with_action_space(self, space: ActionSpace) -> AgentConfig:
        """Return the same sizes for other actions."""
        if space.num_actions is not None:
            return self.with_num_actions(space.num_actions)
        return replace(self, num_actions=None, actions=str(space))

    def with_num_actions(self, num_actions: int) -> AgentConfig:
        """Return the same sizes for a game of `num_actions` actions."""
        return AgentConfig(
            denoiser=replace(
                self.denoiser, inner_model=replace(self.denoiser.inner_model, num_actions=num_actions)
            ),
            rew_end_model=replace(self.rew_end_model, num_actions=num_actions),
            actor_critic=replace(self.actor_critic, num_actions=num_actions),
            num_actions=num_actions,
        )


class Agent(nn.Module):
    """A world model (denoiser, reward/end model) and an actor-critic.

    Args:
        config: Sizes of the networks; `num_actions` or `actions` must be set.
        with_actor_critic: False for a world model without a policy (as embedded ones are); `actor_critic` is
            then None.
    """

    def __init__(self, config: AgentConfig, *, with_actor_critic: bool = True) -> None:
        super().__init__()
        space = config.action_space
        if space is None:
            raise InvalidInputError("AgentConfig.num_actions must be set before the networks can be built")
        config = config.with_action_space(space)
        self.config = config
        self.denoiser = Denoiser(config.denoiser, space)
        self.rew_end_model = RewEndModel(config.rew_end_model, space)
        self.actor_critic = ActorCritic(config.actor_critic, space) if with_actor_critic else None

    @property
    def action_space(self) -> ActionSpace:
        """The actions that all networks know."""
        return self.denoiser.action_space
