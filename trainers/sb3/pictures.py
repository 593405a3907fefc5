"""Pictures of a run: returns against steps, and films of the agent in both worlds."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from diamond_gym import untrusted
from diamond_gym.data.video import write_mp4
from diamond_gym.envs import rendering
from diamond_gym.errors import CheckpointError
from diamond_gym.evaluate.pictures import new_figure, write_figure
from trainers.sb3.player import Policy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)
_SCALE = 4
_GAP = 2
_MAX_LOG_BYTES = 2**28


def _whole(paths: Iterable[Path], read: Callable[[Path], Any]) -> list[Any]:
    """What can be read of logs; one that a killed process has left half-written is left out."""
    found = []
    for path in paths:
        try:
            found.append(read(path))
        except CheckpointError as error:
            _log.warning("left out of the learning curve: %s", error)
    return found


def write_learning_curve(path: Path, progress: list[Path], evaluations: list[Path], where: str) -> None:
    """Draw the returns of the games learned from and of the real games in between, against steps.

    Args:
        path: The PNG to write.
        progress: The CSV files that Stable-Baselines3's logger wrote, in order.
        evaluations: The NPZ files that its EvalCallback wrote, in order.
        where: Where the agent learned: "imagination" or "real".
    """
    write_figure(_curves(_read_progress(progress), _read_evaluations(evaluations), where), path)


def _read_progress(paths: list[Path]) -> tuple[list[float], list[float]]:
    """Read numbers of steps, and mean returns of the latest 100 episodes."""
    points = [point for part in _whole(paths, _read_log) for point in part]
    return [x for x, _ in points], [y for _, y in points]


def _read_log(path: Path) -> list[tuple[float, float]]:
    steps, returns, what = "time/total_timesteps", "rollout/ep_rew_mean", "the log of a run"
    text = untrusted.read_text(path, CheckpointError, what, _MAX_LOG_BYTES)
    with untrusted.reading(path, CheckpointError, what):
        rows = csv.DictReader(io.StringIO(text, newline=""))
        return [
            (float(row[steps]), float(row[returns])) for row in rows if row.get(returns) and row.get(steps)
        ]


def _read_evaluations(paths: list[Path]) -> tuple[NDArray, NDArray]:
    """Read numbers of steps (k,), and lowest, mean and highest return (k, 3) of the games played then."""
    saved = _whole(
        paths, lambda path: untrusted.read_arrays(path, CheckpointError, "the scores of an evaluation")
    )
    if not saved:
        return np.zeros(0), np.zeros((0, 3))
    played = [games for part in saved for games in part["results"]]
    returns = np.array([(games.min(), games.mean(), games.max()) for games in played])
    return np.concatenate([part["timesteps"] for part in saved]), returns


def _curves(learned: tuple[list[float], list[float]], played: tuple[NDArray, NDArray], where: str) -> Figure:
    """Draw returns against steps: of the games learned from on the left, of real games on the right."""
    figure = new_figure((9, 3.4))
    from matplotlib.ticker import EngFormatter  # after the figure, which has imported matplotlib safely

    left, right = figure.subplots(1, 2)
    left.plot(*learned)
    left.set(title=f"episodes learned from ({where})", ylabel="mean return of 100 episodes")
    steps, returns = played
    if len(steps):
        right.plot(steps, returns[:, 1], marker="o", label="mean")
        right.fill_between(steps, returns[:, 0], returns[:, 2], alpha=0.2, label="all games")
        right.legend()
    right.set(title="whole real games", ylabel="score")
    for axes in (left, right):
        axes.set_xlabel("steps learned from")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 50k
        axes.grid(alpha=0.3)
    return figure


def write_film(path: Path, worlds: list[tuple[Policy, VecEnv]], num_steps: int) -> None:
    """Film a policy in several worlds side by side (MP4)."""
    films = [_frames(policy, env) for policy, env in worlds]
    write_mp4(
        path, (_side_by_side(next(film) for film in films) for _ in range(num_steps)), rendering.RENDER_FPS
    )


def _frames(policy: Policy, env: VecEnv) -> Iterator[NDArray[np.uint8]]:
    """Yield the newest frame of the first game, without end."""
    obs, begins = env.reset(), np.ones(env.num_envs, bool)
    while True:
        assert isinstance(obs, np.ndarray)
        yield obs[0, ..., -3:]
        obs, _, begins, _ = env.step(policy(obs, begins))


def _side_by_side(frames: Iterator[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    padded = [np.pad(frame, ((0, 0), (0, _GAP), (0, 0))) for frame in frames]
    return rendering.enlarge(np.concatenate(padded, axis=1), _SCALE)
