"""Runs the world model: imagination from starts, and its reward/end model on real episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from tqdm import tqdm

from diamond_gym.episodes import Episode
from diamond_gym.evaluate.heldout import Starts, all_frames
from diamond_gym.pixels import to_float
from diamond_gym.world_model import WorldModel

_CHUNK = 128
"""Steps the reward/end model sees at once; its LSTM's state goes from one chunk to the next."""


@dataclass(frozen=True)
class Imagined:
    """What the world model made of the starts' actions; it goes on past its own ends.

    Attributes:
        obs: frames.
        rew: sampled rewards in {-1, 0, 1}.
        end: sampled ends.
    """

    obs: UInt8[Tensor, "b t c h w"]
    rew: Float[Tensor, "b t"]
    end: Bool[Tensor, "b t"]


@dataclass(frozen=True)
class Transitions:
    """Real transitions, all episodes in a row: the class that happened and the likeliest class predicted.

    Reward classes 0, 1, 2 are rewards of sign -1, 0, 1; end classes are 0 and 1.
    """

    rew: Int64[Tensor, " t"]
    predicted_rew: Int64[Tensor, " t"]
    end: Int64[Tensor, " t"]
    predicted_end: Int64[Tensor, " t"]


def imagine(
    world_model: WorldModel, starts: Starts, seed: int, batch_size: int, progress: bool = True
) -> Imagined:
    """Imagine from every start under the real actions.

    Args:
        world_model: in eval mode.
        starts: contexts and actions.
        seed: at least 0; start i gets the random numbers of key `seed * 2^32 + i`.
        batch_size: starts imagined at once.
        progress: show a bar on stderr.

    Returns:
        As many steps as `starts.future_act` has, on the CPU.
    """
    total, horizon = starts.future_act.shape
    parts = []
    with tqdm(total=total * horizon, unit="step", desc="imagine", disable=not progress) as bar:
        for first in range(0, total, batch_size):
            rows = slice(first, min(first + batch_size, total))
            key = torch.arange(rows.start, rows.stop) + (seed << 32)
            parts.append(_imagine_batch(world_model, starts, rows, key, bar))
    return Imagined(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _imagine_batch(
    world_model: WorldModel, starts: Starts, rows: slice, key: Tensor, bar: tqdm
) -> tuple[Tensor, Tensor, Tensor]:
    state = world_model.start(starts.obs[rows], starts.act[rows], key)
    steps = []
    for act in starts.future_act[rows].to(world_model.device).unbind(1):
        state, step = world_model.step(state, act)
        steps.append((step.obs.cpu(), step.rew.cpu(), step.end.cpu()))
        bar.update(len(act))
    obs, rew, end = (torch.stack(column, 1) for column in zip(*steps, strict=True))
    return obs, rew, end


@torch.no_grad()
def predict_transitions(world_model: WorldModel, episodes: Sequence[Episode]) -> Transitions:
    """What the reward/end model says about real transitions.

    It sees real frames only. Its LSTM runs through each whole episode; the first n - 1 transitions of an
    episode only warm it up, as a context does at play time, and are not counted.
    """
    rows = [_predict_episode(world_model, episode) for episode in episodes]
    return Transitions(*(torch.cat(column) for column in zip(*rows, strict=True)))


def _predict_episode(world_model: WorldModel, episode: Episode) -> tuple[Tensor, ...]:
    frames, act = all_frames(episode), episode.act
    hx_cx, rew_logits, end_logits = None, [], []
    for first in range(0, len(act), _CHUNK):
        obs = to_float(frames[first : first + _CHUNK + 1].to(world_model.device))[None]
        now = act[first : first + _CHUNK].to(world_model.device)[None]
        logits_rew, logits_end, hx_cx = world_model.rew_end_model.predict_rew_end(
            obs[:, :-1], now, obs[:, 1:], hx_cx
        )
        rew_logits.append(logits_rew[0])
        end_logits.append(logits_end[0])
    warm = slice(world_model.num_steps_conditioning - 1, None)
    return (
        episode.rew.sign().long()[warm] + 1,
        torch.cat(rew_logits).argmax(-1).cpu()[warm],
        episode.end.long()[warm],
        torch.cat(end_logits).argmax(-1).cpu()[warm],
    )
