"""`python -m diamond_gym.demo`: Breakout, real above imagined, from the same start under the same actions.

A scripted player plays the real game. Every 50 steps, and whenever the real or the imagined episode ends,
imagination restarts from the real game's last frames; in between it gets only the actions.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import gymnasium
import numpy as np
from numpy.typing import NDArray

import diamond_gym
from diamond_gym import cli
from diamond_gym import files as disk
from diamond_gym.backends.names import BACKENDS
from diamond_gym.cli import option
from diamond_gym.data import video
from diamond_gym.envs import rendering
from diamond_gym.envs.env import DiamondEnv
from diamond_gym.games import atari
from diamond_gym.games.atari import AtariEnv
from diamond_gym.players import loop
from diamond_gym.players.player import PLAYER_NAMES, Player, player, usual_player
from diamond_gym.progress import Bar
from diamond_gym.registration import env_id, game_name

Frame = NDArray[np.uint8]

HORIZON = 50
STRIP_STEPS = (1, 5, 10, 20, 30, 50)
SCALE = 6
_LABEL_HEIGHT = 24
_STRIP_SCALE, _STRIP_GAP, _STRIP_NAMES, _STRIP_LABELS = 4, 12, 164, 44
"""Size of the film strip's letters: at its 1 700 pixels of width they are readable at half the size too."""


@dataclass(frozen=True)
class Moment:
    """One step of both games.

    Attributes:
        real: The real frame, uint8 (64, 64, 3).
        imagined: The imagined frame, uint8 (64, 64, 3).
        age: Steps since imagination last saw the real game, >= 1.
        reward: Real and imagined reward of the step.
        seconds: Time the imagined step took.
    """

    real: Frame
    imagined: Frame
    age: int
    reward: tuple[float, float]
    seconds: float


class RealGame:
    """The real game with its player and the last n frames and actions."""

    def __init__(self, game: str, player: Player, num_steps_conditioning: int, seed: int) -> None:
        self.env = AtariEnv(game, training=True)
        self.player = player
        self.frames: deque[Frame] = deque(maxlen=num_steps_conditioning)
        self.actions: deque[int] = deque(maxlen=num_steps_conditioning)
        self._rng = np.random.default_rng(seed)
        self._begin(seed)

    def _begin(self, seed: int | None) -> None:
        obs, _ = self.env.reset(seed=seed)
        self.player.reset(int(self._rng.integers(2**31)))
        self.frames.clear()
        self.actions.clear()
        self.frames.append(obs)
        self._steps = loop.play(self.env, self.player, obs)
        while len(self.frames) < (self.frames.maxlen or 0):
            self.step()

    def step(self) -> tuple[int, float, bool]:
        """Take the player's action; return it, the sign of the reward and whether the episode ended."""
        step = next(self._steps)
        self.frames.append(step.next_obs)
        self.actions.append(step.act)
        return step.act, float(np.sign(step.rew)), step.is_over

    def restart(self) -> None:
        """Start the next episode."""
        self._begin(None)

    def context(self) -> dict[str, NDArray]:
        """Return the latest frames and the actions between them, as `reset` takes a context."""
        acts = list(self.actions)[-(len(self.frames) - 1) :]
        return {"obs": np.stack(self.frames), "act": np.array(acts, np.int64)}


def play_both(env: gymnasium.Env, real: RealGame, num_steps: int, seed: int) -> Iterator[Moment]:
    """Play the real game and its imagination side by side."""
    age, over = HORIZON, True
    env.reset(seed=seed)
    for _ in range(num_steps):
        if over or age == HORIZON:
            env.reset(options={"context": real.context()})
            age = 0
        action, reward, real_end = real.step()
        start = time.perf_counter()
        obs, imagined_reward, terminated, truncated, _ = env.step(action)
        seconds = time.perf_counter() - start
        age += 1
        yield Moment(real.frames[-1], obs, age, (reward, float(imagined_reward)), seconds)
        over = terminated or truncated or real_end
        if real_end:
            real.restart()


def picture(moment: Moment) -> Frame:
    """Draw a frame of the video: real above imagined, each with a label."""
    return np.concatenate(
        [
            _label("real", 64 * SCALE),
            rendering.enlarge(moment.real, SCALE),
            _label(f"imagined, step {moment.age}", 64 * SCALE),
            rendering.enlarge(moment.imagined, SCALE),
        ]
    )


def film_strip(moments: list[Moment]) -> Frame:
    """Draw columns of real above imagined frames, at growing distance from the start, on white."""
    size = 64 * _STRIP_SCALE + _STRIP_GAP
    names = [("", _STRIP_LABELS), ("real", size), ("imagined", size)]
    columns = [np.concatenate([_label(name, _STRIP_NAMES, height, large=True) for name, height in names])]
    for m in moments:
        label = _label(f"step {m.age}", size, _STRIP_LABELS, large=True)
        columns.append(np.concatenate([label, _tile(m.real), _tile(m.imagined)]))
    return np.concatenate(columns, axis=1)


def _tile(frame: Frame) -> Frame:
    """Enlarge a frame, with white to its left and below, so that the walls of two frames stay apart."""
    around = ((0, _STRIP_GAP), (_STRIP_GAP, 0), (0, 0))
    return np.pad(rendering.enlarge(frame, _STRIP_SCALE), around, constant_values=255)


def _label(text: str, width: int, height: int = _LABEL_HEIGHT, *, large: bool = False) -> Frame:
    """Draw a label: white letters on black, or large ones in black on white."""
    image = np.full((height, width, 3), 255 if large else 0, np.uint8)
    ink, scale, thickness = ((0, 0, 0), 1.0, 2) if large else ((255, 255, 255), 0.45, 1)
    position = (_STRIP_GAP, height // 2 + 10) if large else (6, height // 2 + 5)
    cv2.putText(image, text, position, cv2.FONT_HERSHEY_SIMPLEX, scale, ink, thickness, cv2.LINE_AA)
    return image


def longest_run(moments: list[Moment]) -> list[Moment]:
    """Return the longest stretch without a restart of imagination."""
    starts = [i for i, m in enumerate(moments) if m.age == 1] + [len(moments)]
    runs = [moments[a:b] for a, b in itertools.pairwise(starts)]
    return max(runs, key=len)


def write_video(path: Path, moments: list[Moment]) -> None:
    """Write the side-by-side video (H.264).

    Raises:
        CacheError: The folder cannot be written.
    """
    video.write_mp4(path, map(picture, moments), rendering.RENDER_FPS)


def write_strip(path: Path, moments: list[Moment]) -> None:
    """Write the film strip (PNG).

    Raises:
        CacheError: The folder cannot be written.
    """
    chosen = [m for m in longest_run(moments) if m.age in STRIP_STEPS]
    _, png = cv2.imencode(".png", cv2.cvtColor(film_strip(chosen), cv2.COLOR_RGB2BGR))
    disk.write_file(path, png.tobytes())


@dataclass
class Settings:
    """The settings of the demo.

    Raises:
        InvalidInputError: A number is out of range, or there is no such player.
    """

    game: str = option("Breakout", "the game")
    checkpoint: str = option("auto", "as in gymnasium.make", is_path=True)
    player: str | None = option(
        None, "who plays; without it scripted where the game has such a player", choices=PLAYER_NAMES
    )
    backend: str = option("auto", "what runs the world model's networks", choices=BACKENDS)
    steps: int = option(200, "imagined steps", least=1)
    seed: int = option(0, "fixes the games and the player", least=0)
    out: Path = option(Path(), "folder for demo.mp4 and demo.png")

    def __post_init__(self) -> None:
        cli.check(self)


def run(settings: Settings) -> None:
    """Play, write the files and print what happened.

    Raises:
        UnknownGameError: There is no such game.
        CacheError: The folder cannot be written.
        CheckpointError: There is no such world model.
    """
    game, out = game_name(settings.game), settings.out
    disk.prepare_folder(out)
    name = settings.player or usual_player(game)
    who = player(name, game, atari.num_actions(game), settings.seed, repeat=4)
    moments = play(game, settings.checkpoint, who, settings.steps, settings.seed, backend=settings.backend)
    write_video(out / "demo.mp4", moments)
    write_strip(out / "demo.png", moments)
    report(moments, out)


def play(
    game: str,
    checkpoint: str,
    player: Player,
    num_steps: int,
    seed: int,
    num_denoising_steps: int | None = None,
    backend: str = "auto",
) -> list[Moment]:
    """Play both games with a player that sees the real frames."""
    env = gymnasium.make(
        env_id(game),
        checkpoint=checkpoint,
        max_episode_steps=HORIZON + 1,
        num_denoising_steps=num_denoising_steps,
        backend=backend,
    )
    assert isinstance(env.unwrapped, DiamondEnv)
    real = RealGame(game, player, env.unwrapped.world.world_model.num_steps_conditioning, seed)
    moments = list(Bar(play_both(env, real, num_steps, seed), total=num_steps, unit="step"))
    env.close()
    return moments


def report(moments: list[Moment], out: Path) -> None:
    """Print speed, rewards and where the files are."""
    seconds = np.median([m.seconds for m in moments])
    rewards = np.sum([m.reward for m in moments], axis=0)
    print(f"diamond_gym {diamond_gym.__version__}: {len(moments)} steps imagined")
    print(f"speed: {1 / seconds:.1f} steps/s (median; {1e3 * seconds:.1f} ms a step)")
    print(f"reward: {rewards[0]:.0f} real, {rewards[1]:.0f} imagined")
    print(f"video: {(out / 'demo.mp4').resolve()}")
    print(f"film strip: {(out / 'demo.png').resolve()}")


COMMAND = cli.Command("python -m diamond_gym.demo", __doc__ or "", Settings, run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say; return the exit code."""
    return cli.main(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())
