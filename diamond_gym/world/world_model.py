"""The learned simulator as batched PyTorch: contexts in, frames, rewards and ends out.

`WorldModel.start(contexts) -> state` and `WorldModel.step(state, act) -> state, step`. States are plain data:
a state that is kept gives the same future again. The module does not depend on Gymnasium, files or training.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int64, Shaped, UInt8
from torch import Tensor

from diamond_gym.errors import InvalidInputError
from diamond_gym.world import ddpm, noise, sampler
from diamond_gym.world.action_space import ActionSpace
from diamond_gym.world.checks import check_range, check_tensor
from diamond_gym.world.models import Conditioners, Denoiser, LSTMState, RewEndModel
from diamond_gym.world.pixels import quantize, to_float, to_uint8
from diamond_gym.world.policy import draw_class
from diamond_gym.world.sampler import DiffusionSamplerConfig


@dataclass(frozen=True)
class WorldModelState:
    """Everything that the future of b games depends on, besides the actions to come.

    Attributes:
        obs: The last n frames, oldest first.
        act: The last n actions, int64 or float32; `act[:, i]` was taken at `obs[:, i]`, and the last entry is
            yet to be taken.
        hx: Hidden state of the reward/end LSTM.
        cx: Cell state of the reward/end LSTM.
        key: Key of each game's stream of random numbers, >= 0.
        time: Steps imagined since `start`.
        padding: How many of the oldest frames are padding, which networks see as 0, mid grey; None where
            there is never any.
    """

    obs: UInt8[Tensor, "b n c h w"]
    act: Shaped[Tensor, "b n *a"]
    hx: Float[Tensor, "b d"]
    cx: Float[Tensor, "b d"]
    key: Int64[Tensor, " b"]
    time: Int64[Tensor, " b"]
    padding: Int64[Tensor, " b"] | None = None

    def __len__(self) -> int:
        return self.key.shape[0]

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the fields in order, without `padding` if it is None."""
        values = (getattr(self, f.name) for f in fields(self))
        return tuple(x for x in values if x is not None)

    def clone(self) -> WorldModelState:
        """Return a copy that shares no memory."""
        return WorldModelState(*(x.clone() for x in self.tensors()))

    def select(self, index: Int64[Tensor, " k"]) -> WorldModelState:
        """Select the state of some of the games; a repeated index forks a game."""
        return WorldModelState(*(x[index] for x in self.tensors()))

    def replace(self, index: Int64[Tensor, " k"], other: WorldModelState) -> WorldModelState:
        """Return this state with the games at `index` replaced by those of `other`."""
        return WorldModelState(
            *(x.index_copy(0, index, y) for x, y in zip(self.tensors(), other.tensors(), strict=True))
        )


@dataclass(frozen=True)
class WorldModelStep:
    """The result of one imagined step.

    Attributes:
        obs: The next frame.
        rew: Reward in {-1, 0, 1}.
        end: Whether the episode ended.
        logits_rew: Logits of the reward classes -1, 0, 1.
        logits_end: Logits of the classes "continues" and "ends".
        trajectory: The frame at every noise level, from noise to `obs`, float32, about [-1, 1].
    """

    obs: UInt8[Tensor, "b c h w"]
    rew: Float[Tensor, " b"]
    end: Bool[Tensor, " b"]
    logits_rew: Float[Tensor, "b 3"]
    logits_end: Float[Tensor, "b 2"]
    trajectory: list[Float[Tensor, "b c h w"]]


def blank(frames: Float[Tensor, "b n ..."], padding: Int64[Tensor, " b"] | None) -> Float[Tensor, "b n ..."]:
    """Set the oldest `padding` frames of each game to 0, in place."""
    if padding is None:
        return frames
    is_padding = torch.arange(frames.shape[1], device=frames.device) < padding[:, None]
    return frames.masked_fill_(is_padding[(..., *[None] * (frames.ndim - 2))], 0)


def noise_levels(objective: str, config: DiffusionSamplerConfig) -> list[float]:
    """Return the noise levels of the sampler: sigmas down to 0 for "edm", timesteps for "ddpm".

    Raises:
        InvalidInputError: The objective cannot be sampled like this.
    """
    if objective == "edm":
        return sampler.build_sigmas(config).tolist()
    if config.order != 1 or config.s_churn != 0:
        raise InvalidInputError(
            "a denoiser with denoiser.objective=ddpm needs order=1 and s_churn=0, "
            f"got order={config.order} and s_churn={config.s_churn}"
        )
    return [*map(float, ddpm.sampling_timesteps(config.num_steps_denoising))]


def with_action(history: Shaped[Tensor, "b n *a"], act: Shaped[Tensor, "b *a"]) -> Shaped[Tensor, "b n *a"]:
    """The last n actions, with the one that is taken now in the place of the last."""
    return torch.cat([history[:, :-1], act[:, None]], dim=1)


def moved_on(
    obs: UInt8[Tensor, "b n c h w"], act: Shaped[Tensor, "b n *a"], frame: UInt8[Tensor, "b c h w"]
) -> tuple[UInt8[Tensor, "b n c h w"], Shaped[Tensor, "b n *a"]]:
    """The last n frames and actions after a step that gave `frame`; the last action is yet to be taken."""
    return torch.cat([obs[:, 1:], frame[:, None]], dim=1), torch.cat([act[:, 1:], act[:, -1:]], dim=1)


class WorldModel:
    """Imagined games, from a denoiser and a reward/end model.

    `start` takes contexts and returns a state, `step` takes a state and actions and returns the next state
    and what was imagined. Frames are sampled in float32.

    Example:
        >>> import torch
        >>> from diamond_gym.checkpoints import load_world
        >>> world = load_world("Breakout", "embedded")
        >>> obs = torch.from_numpy(world.contexts.obs[:2]).permute(0, 1, 4, 2, 3)
        >>> act = torch.from_numpy(world.contexts.act[:2])
        >>> state = world.world_model.start(obs, act, key=torch.tensor([0, 1]))
        >>> state, step = world.world_model.step(state, act=torch.tensor([2, 3]))
        >>> step.obs.shape, step.rew.shape
        (torch.Size([2, 3, 64, 64]), torch.Size([2]))

    Args:
        denoiser: The denoiser, in eval mode.
        rew_end_model: The reward/end model, in eval mode and on the same device.
        config: How frames are sampled; None for the defaults.

    Raises:
        InvalidInputError: The denoiser cannot be sampled as `config` says.
    """

    def __init__(
        self, denoiser: Denoiser, rew_end_model: RewEndModel, config: DiffusionSamplerConfig | None = None
    ) -> None:
        self.denoiser = denoiser
        self.rew_end_model = rew_end_model
        self.config = config or DiffusionSamplerConfig()
        self.levels = noise_levels(denoiser.config.objective, self.config)
        self._conditioners: dict[float, Conditioners] = {}

    def resampled(self, config: DiffusionSamplerConfig) -> WorldModel:
        """Return a world model on the same networks with another sampler.

        Raises:
            InvalidInputError: The denoiser cannot be sampled as `config` says.
        """
        return type(self)(self.denoiser, self.rew_end_model, config)

    @property
    def num_steps_conditioning(self) -> int:
        """Number of frames and actions that a step is conditioned on (n)."""
        return self.denoiser.config.inner_model.num_steps_conditioning

    @property
    def action_space(self) -> ActionSpace:
        """The actions."""
        return self.denoiser.action_space

    @property
    def device(self) -> torch.device:
        """The device of the networks."""
        return self.denoiser.inner_model.conv_in.weight.device

    @torch.no_grad()
    def start(
        self,
        obs: UInt8[Tensor, "b n c h w"],
        act: Shaped[Tensor, "b n *a"],
        key: Int64[Tensor, " b"],
        padding: Int64[Tensor, " b"] | None = None,
    ) -> WorldModelState:
        """Start b games from real frames, which also burn in the reward/end LSTM.

        Args:
            obs: The last n frames, oldest first.
            act: The actions taken at them; the last one is ignored (the first `step` replaces it).
            key: Key of each game's random numbers, >= 0.
            padding: How many of the oldest frames, at most n - 1, are padding: the episode began after them.

        Raises:
            InvalidInputError: A shape or dtype is wrong.
        """
        n = self.num_steps_conditioning
        if obs.dtype != torch.uint8 or obs.ndim != 5 or obs.shape[1] != n:
            raise InvalidInputError(
                f"context frames must be uint8 of shape (b, {n}, c, h, w), got {obs.dtype} {tuple(obs.shape)}"
            )
        obs, act, key = (x.to(self.device) for x in (obs, act, key))
        padding = None if padding is None else padding.to(self.device)
        hx, cx = self.burn_in(obs, act, padding)
        return WorldModelState(obs, act, hx[0], cx[0], key, torch.zeros_like(key), padding)

    def burn_in(
        self,
        obs: UInt8[Tensor, "b n c h w"],
        act: Shaped[Tensor, "b n *a"],
        padding: Int64[Tensor, " b"] | None = None,
    ) -> LSTMState:
        """Return the state of the reward/end LSTM after the transitions between the given frames."""
        frames = blank(to_float(obs), padding)
        if obs.shape[1] == 1:
            return self.rew_end_model.initial_state(len(obs))
        _, _, hx_cx = self.rew_end_model.predict_rew_end(frames[:, :-1], act[:, :-1], frames[:, 1:])
        return hx_cx

    @torch.no_grad()
    def step(
        self, state: WorldModelState, act: Shaped[Tensor, "b *a"]
    ) -> tuple[WorldModelState, WorldModelStep]:
        """Take one action in each game.

        Args:
            state: From `start` or an earlier `step`; it is not modified.
            act: Actions of the action space.

        Returns:
            The next state, and the frame, reward and end.
        """
        act_history = with_action(state.act, act)
        init_noise, u = noise.normal_and_uniform(
            state.key, state.time, noise.Draw.FRAME, tuple(state.obs.shape[2:]), noise.Draw.REW_END, (2,)
        )
        trajectory = self._sample(state, act_history, init_noise)
        next_obs = trajectory[-1]
        frame = to_uint8(next_obs)
        logits_rew, logits_end, (hx, cx) = self.rew_end_model.predict_rew_end(
            to_float(state.obs[:, -1:]), act[:, None], next_obs[:, None], (state.hx[None], state.cx[None])
        )
        step = WorldModelStep(
            obs=frame,
            rew=(draw_class(logits_rew[:, 0], u[:, 0]) - 1).float(),
            end=draw_class(logits_end[:, 0], u[:, 1]).bool(),
            logits_rew=logits_rew[:, 0],
            logits_end=logits_end[:, 0],
            trajectory=trajectory,
        )
        return self._after(state, act_history, frame, hx[0], cx[0]), step

    def adopt(self, state: object, num_games: int) -> WorldModelState:
        """Check the LSTM's part of a state, and move the state to this model's device and precision.

        Raises:
            InvalidInputError: It is not a state of this kind of world model and number of games.
        """
        if not isinstance(state, WorldModelState):
            raise InvalidInputError(f"the state is of another world model: it is a {type(state).__name__}")
        hx, _ = self.rew_end_model.initial_state(num_games)
        if state.hx.shape != hx[0].shape:
            raise InvalidInputError(
                f"the state is of another world model: this one has an LSTM of {hx.shape[-1]}, the state has "
                f"{tuple(state.hx.shape)}"
            )
        for name in ("hx", "cx"):
            check_tensor(name, getattr(state, name), None, tuple(hx[0].shape))
        if state.padding is not None:
            check_tensor("padding", state.padding, torch.int64, (num_games,))
            check_range("padding", state.padding, self.num_steps_conditioning)
        moved = WorldModelState(*(x.to(self.device) for x in state.tensors()))
        return replace(moved, hx=moved.hx.to(hx.dtype), cx=moved.cx.to(hx.dtype))

    @torch.no_grad()
    def imagine(
        self,
        obs: UInt8[Tensor, "b n c h w"],
        act: Shaped[Tensor, "b n *a"],
        key: Int64[Tensor, " b"],
        actions: Shaped[Tensor, "b k *a"],
        padding: Int64[Tensor, " b"] | None = None,
    ) -> UInt8[Tensor, "b k c h w"]:
        """Imagine the frames of `start` and k times `step`, without the rewards and ends and what they cost.

        Args:
            obs: See `start`, as for `act`, `key` and `padding`.
            act: The last one is ignored.
            key: Key of each game's random numbers.
            actions: Actions of the action space, to be taken one after the other.
            padding: How many of the oldest frames stand for what was before the episode.
        """
        hx, cx = self.rew_end_model.initial_state(len(obs))
        obs, act, key = (x.to(self.device) for x in (obs, act, key))
        padding = None if padding is None else padding.to(self.device)
        state = WorldModelState(obs, act, hx[0], cx[0], key, torch.zeros_like(key), padding)
        frames = []
        for action in actions.unbind(1):
            act_history = with_action(state.act, action)
            init_noise = noise.normal(key, state.time, noise.Draw.FRAME, tuple(obs.shape[2:]))
            frames.append(to_uint8(self._sample(state, act_history, init_noise)[-1]))
            state = self._after(state, act_history, frames[-1], state.hx, state.cx)
        return torch.stack(frames, dim=1)

    @staticmethod
    def _after(
        state: WorldModelState,
        act_history: Shaped[Tensor, "b n *a"],
        frame: UInt8[Tensor, "b c h w"],
        hx: Float[Tensor, "b d"],
        cx: Float[Tensor, "b d"],
    ) -> WorldModelState:
        """The state after a step that gave `frame`."""
        obs, act = moved_on(state.obs, act_history, frame)
        return WorldModelState(
            obs=obs,
            act=act,
            hx=hx,
            cx=cx,
            key=state.key,
            time=state.time + 1,
            padding=None if state.padding is None else (state.padding - 1).clamp(min=0),
        )

    def _sample(
        self,
        state: WorldModelState,
        act_history: Shaped[Tensor, "b n *a"],
        init_noise: Float[Tensor, "b c h w"],
    ) -> list[Float[Tensor, "b c h w"]]:
        def step_noise(i: int) -> Tensor:
            return noise.normal(state.key, state.time, noise.Draw.CHURN + i, tuple(init_noise.shape[1:]))

        return self.sample_frame(state.obs, act_history, init_noise, step_noise, state.padding)

    def sample_frame(
        self,
        obs: UInt8[Tensor, "b n c h w"],
        act: Int64[Tensor, "b n"],
        init_noise: Float[Tensor, "b c h w"],
        step_noise: sampler.ChurnNoise,
        padding: Int64[Tensor, " b"] | None = None,
    ) -> list[Float[Tensor, "b c h w"]]:
        """Sample the next frame with given noise; return its trajectory, see `WorldModelStep`.

        Args:
            obs: The last n frames, oldest first.
            act: The actions taken at them; the newest is the one being taken.
            init_noise: Unit normal noise.
            step_noise: Unit normal noise of a denoising step, called for the steps that add noise.
            padding: See `start`.
        """
        past = self.denoiser.fold_frames(obs)
        if padding is not None:
            blank(past.unflatten(1, (self.num_steps_conditioning, -1)), padding)

        def denoise(x: Tensor, level: float) -> Tensor:
            return self.denoiser.denoise(x, self._conditioners_at(level), past, act)

        if self.denoiser.config.objective == "ddpm":
            *trajectory, frame = ddpm.sample(denoise, init_noise, self.levels, step_noise)
            return [*trajectory, quantize(frame)]
        return sampler.sample(denoise, init_noise, self.levels, self.config, step_noise)

    def _conditioners_at(self, level: float) -> Conditioners:
        """Preconditioning at one of the few noise levels that sampling visits, computed once."""
        if level not in self._conditioners:
            self._conditioners[level] = self.denoiser.conditioners(torch.tensor([level], device=self.device))
        return self._conditioners[level]
