"""A game that a person or a policy plays: explicit state, changed by named commands and held keys.

The module does not depend on windows, browsers or text on the screen.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diamond_gym.errors import CacheError, InvalidInputError
from diamond_gym.play import pictures
from diamond_gym.play.keys import Command, GameKeys, PartKeys, Shortcut, Slider, play_shortcuts
from diamond_gym.play.places import (
    Comparison,
    ImaginedPlace,
    Outcome,
    Place,
    PlaceState,
    RealPlace,
    check_horizon,
)
from diamond_gym.play.recording import RecordedStep, Recorder
from diamond_gym.play.view import Facts, View
from diamond_gym.players.player import Player
from diamond_gym.world.pixels import mean_squared_error, psnr
from diamond_gym.world.world_model import WorldModel

_SOLVERS = {1: "Euler", 2: "Heun"}
_CHURN_STEP = 0.1
_SPEED_STEPS = 15
"""Number of steps whose median time is the speed on the screen."""


@dataclass(frozen=True)
class Moment:
    """The latest step.

    Attributes:
        action: The action; None before the first step.
        entropy: Entropy of the player's choice at the frame before the step; see `Player`.
        value: The player's expected return there.
        outcome: The result; None before the first step.
        episode_return: Sum of rewards so far.
    """

    action: Any = None
    entropy: float | None = None
    value: float | None = None
    outcome: Outcome | None = None
    episode_return: float = 0.0

    @property
    def is_over(self) -> bool:
        """Whether the episode has ended."""
        return self.outcome is not None and self.outcome.is_over


@dataclass(frozen=True)
class Saved:
    """A state to return to."""

    where: int
    place: PlaceState
    imagined: PlaceState | None
    imagined_outcome: Outcome | None
    imagined_return: float
    moment: Moment
    player: Player
    recorded: tuple[RecordedStep, ...]


class PlaySession:
    """A session of play in the world model and in the real game.

    Args:
        title: The title of the window.
        imagined: The world model.
        real: The places of the real game; empty where there is no such game.
        player: The player, when no person plays.
        game_keys: The keys of the actions.
        size: Pictures are size x size.
        recorder: Records finished episodes; None to record none.
        rest: Pictures for which the end of an episode stays on the screen.
        is_human: Whether a person begins.
    """

    def __init__(
        self,
        title: str,
        imagined: ImaginedPlace,
        real: Sequence[RealPlace],
        player: Player,
        game_keys: GameKeys | PartKeys,
        *,
        size: int,
        recorder: Recorder | None = None,
        rest: int = 0,
        is_human: bool = True,
    ) -> None:
        self.title, self.size, self.rest = title, size, rest
        self.game_keys, self.player, self.recorder = game_keys, player, recorder
        self.shortcuts: tuple[Shortcut, ...] = play_shortcuts(game_keys.keys)
        self.imagined, self.places = imagined, (imagined, *real)
        self.where = 0
        self.comparison: Comparison | None = None
        self.is_human, self.is_paused, self.shows_strip = is_human, False, False
        self.moment = Moment()
        self.message = ""
        self._is_stepping = False
        self._resting = 0
        self._seconds: deque[float] = deque(maxlen=_SPEED_STEPS)
        self._saved: Saved | None = None
        self._commands = self._table()
        self._begin_episode()

    @property
    def place(self) -> Place:
        """The place where the game is played now; the real game in a comparison."""
        return self.places[self.where]

    def command(self, command: Command, value: float | None = None) -> None:
        """See `Session.command`; DENOISING_STEPS needs a value."""
        if command is Command.DENOISING_STEPS:
            self._set_denoising_steps(value)
        elif command in self._commands:
            self._commands[command]()

    def advance(self, held: Sequence[str]) -> None:
        """Take a step, unless the game is paused or still shows the end of an episode."""
        is_stepping, self._is_stepping = self._is_stepping, False
        if self.is_paused and not is_stepping:
            return
        if self._resting > 0 and not is_stepping:
            self._resting -= 1
        elif self.moment.is_over:
            self._reset()
        else:
            self._step(held)

    def instructions(self) -> list[tuple[str, str]]:
        """Return the game's keys."""
        return self.game_keys.explain()

    def held_keys(self) -> list[tuple[str, str]]:
        """Return the game's keys and their actions."""
        return self.game_keys.alone()

    def sliders(self) -> list[Slider]:
        """Return the continuous parts of the game's actions."""
        return self.game_keys.sliders()

    def close(self) -> str:
        """Write the episodes that are not written yet.

        Raises:
            CacheError: They cannot be written.
        """
        if self.recorder is None:
            return ""
        self.recorder.flush()
        text = f"{self.recorder.num_saved} episode(s) saved under {self.recorder.root}"
        unfinished = len(self.recorder.steps)
        return f"{text}; an unfinished one of {unfinished} steps was not" if unfinished else text

    # --- steps

    def _step(self, held: Sequence[str]) -> None:
        frame, original = self.place.trail.frame, self._original()
        choice = self.player.act(frame)
        action = self.game_keys.action(held) if self.is_human else choice
        outcome = self._timed(action)
        total = self.moment.episode_return + outcome.reward
        entropy, value = (getattr(self.player, told, None) for told in ("entropy", "value"))
        self.moment = Moment(action, entropy, value, outcome, total)
        if self.recorder is not None:
            kept = RecordedStep(frame, action, outcome.reward, self.is_human, original, self._trajectory())
            self.recorder.add(kept)
        if outcome.is_over:
            self._finish(outcome)

    def _timed(self, action: Any) -> Outcome:
        start = time.perf_counter()
        outcome = (self.comparison or self.place).step(action)
        self._seconds.append(time.perf_counter() - start)
        return outcome

    def _finish(self, outcome: Outcome) -> None:
        self._resting = self.rest
        if self.recorder is None:
            return
        try:
            folder = self.recorder.finish(
                self._env_name(), self.place.trail.frame, self._original(), terminated=outcome.terminated
            )
            self.message = f"episode saved in {folder}"
        except CacheError as error:
            self.message = str(error)

    def _env_name(self) -> str:
        return f"{self.title}-{self.place.slug}".replace("/", "-")

    def _original(self) -> np.ndarray | None:
        is_wanted = self.recorder is not None and self.recorder.store_original
        return self.place.original() if is_wanted else None

    def _trajectory(self) -> np.ndarray | None:
        is_wanted = self.recorder is not None and self.recorder.store_trajectory
        if not is_wanted or self.place is not self.imagined:
            return None
        trajectory = self.imagined.denoising()
        return None if trajectory is None else trajectory.astype(np.float16)

    # --- commands

    def _table(self) -> dict[Command, Callable[[], None]]:
        return {
            Command.RESET: self._reset,
            Command.CONTROLLER: self._switch_controller,
            Command.PAUSE: self._pause,
            Command.STEP: self._single_step,
            Command.LONGER_HORIZON: lambda: self._change_horizon(1),
            Command.SHORTER_HORIZON: lambda: self._change_horizon(-1),
            Command.NEXT_PLACE: lambda: self._go(1),
            Command.PREVIOUS_PLACE: lambda: self._go(-1),
            Command.SAVE: self._save,
            Command.LOAD: self._load,
            Command.IMAGINE: self._imagine,
            Command.COMPARE: self._compare,
            Command.STRIP: self._switch_strip,
            Command.ORDER: self._switch_order,
            Command.MORE_CHURN: lambda: self._change_churn(_CHURN_STEP),
            Command.LESS_CHURN: lambda: self._change_churn(-_CHURN_STEP),
        }

    def _reset(self) -> None:
        self.place.reset()
        if self.comparison is not None:
            self.comparison.fork()
        self._begin_episode()

    def _begin_episode(self) -> None:
        self._resting = 0
        self.moment = Moment()
        self.player.reset(past=self.place.trail.context()["obs"][:-1])
        if self.recorder is not None:
            self.recorder.forget()

    def _switch_controller(self) -> None:
        self.is_human = not self.is_human
        self.message = "you play" if self.is_human else f"the {name_of(self.player)} policy plays"

    def _pause(self) -> None:
        self.is_paused = not self.is_paused
        self.message = "paused" if self.is_paused else "resumed"

    def _single_step(self) -> None:
        if self.is_paused:
            self._is_stepping = True
        else:
            self.message = "a single step needs a paused game"

    def _change_horizon(self, change: int) -> None:
        self.imagined.horizon = check_horizon(self.imagined.horizon + change)

    def _go(self, direction: int) -> None:
        if len(self.places) == 1:
            raise InvalidInputError("there is no real game of this world to go to")
        self.comparison = None
        self._seconds.clear()
        self.where = (self.where + direction) % len(self.places)
        self._reset()
        self.message = self.place.name

    def _save(self) -> None:
        comparison = self.comparison
        self._saved = Saved(
            where=self.where,
            place=self.place.save(),
            imagined=None if comparison is None else comparison.imagined.save(),
            imagined_outcome=None if comparison is None else comparison.outcome,
            imagined_return=0.0 if comparison is None else comparison.imagined_return,
            moment=self.moment,
            player=copy.deepcopy(self.player),
            recorded=() if self.recorder is None else self.recorder.steps,
        )
        self.message = f"step {self.place.time} of the {self.place.name} saved"

    def _load(self) -> None:
        saved = self._saved
        if saved is None:
            raise InvalidInputError("nothing has been saved yet")
        self.where, self.moment, self.player = saved.where, saved.moment, copy.deepcopy(saved.player)
        self.place.restore(saved.place)
        self.comparison = None
        if saved.imagined is not None:
            assert isinstance(self.place, RealPlace)
            self.comparison = Comparison(self.place, self.imagined)
            self.imagined.restore(saved.imagined)
            self.comparison.outcome = saved.imagined_outcome
            self.comparison.imagined_return = saved.imagined_return
        if self.recorder is not None:
            self.recorder.steps = saved.recorded
        self._resting = 0
        self.message = f"back at step {self.place.time} of the {self.place.name}"

    def _imagine(self) -> None:
        real = self.place
        if not isinstance(real, RealPlace):
            raise InvalidInputError("this is imagination already: go to the real game first")
        self.comparison = None
        self.imagined.imagine_from(real.trail.context())
        self.where, self.moment, self._resting = 0, Moment(), 0
        if self.recorder is not None:
            self.recorder.forget()
        self.message = f"imagined from here on: step {real.time} of the {real.name} was the last real one"

    def _compare(self) -> None:
        if self.comparison is not None:
            self.comparison = None
            return
        if len(self.places) == 1:
            raise InvalidInputError("there is no real game of this world to compare with")
        if self.place is self.imagined:
            self._go(1)
        assert isinstance(self.place, RealPlace)
        self.comparison = Comparison(self.place, self.imagined)
        self.message = "imagination was forked from the real game, and gets the same actions"

    def _switch_strip(self) -> None:
        self.shows_strip = not self.shows_strip
        if self.shows_strip and self.place is not self.imagined and self.comparison is None:
            self.message = "real frames do not come out of noise: go to the world model"

    def _set_denoising_steps(self, value: float | None) -> None:
        if value is None or value != int(value):
            raise InvalidInputError(f"denoising steps are an integer of at least 1, got {value}")
        self.imagined.env.set_sampler(num_denoising_steps=int(value))
        self._seconds.clear()

    def _switch_order(self) -> None:
        self.imagined.env.set_sampler(order=3 - self.imagined.env.world.diffusion_model.config.order)
        self._seconds.clear()

    def _change_churn(self, change: float) -> None:
        sampler = self.imagined.env.world.diffusion_model.config
        churn = round(max(0.0, sampler.s_churn + change), 3)
        self.imagined.env.set_sampler(s_churn=churn)

    # --- views

    def view(self) -> View:
        """Return the picture, with comparison and film strip if they are on, and the facts."""
        picture = self._picture()
        trajectory = self._shown_trajectory()
        if trajectory is not None:
            picture = pictures.with_strip(picture, trajectory)
        return View(picture, (self._where_facts(), self._step_facts(), self._model_facts()), self.message)

    def _picture(self) -> pictures.Picture:
        frame = self.place.trail.frame
        if self.comparison is None:
            return pictures.scaled(frame, self.size)
        imagined = self.imagined.trail.frame
        panels = [
            ("real", frame),
            ("imagined", imagined),
            (f"difference x {pictures.GAIN}", pictures.difference(frame, imagined)),
        ]
        return pictures.quarters(panels, self._comparison_lines(), self.size)

    def _shown_trajectory(self) -> list[pictures.Picture] | None:
        is_imagining = self.place is self.imagined or self.comparison is not None
        trajectory = self.imagined.denoising() if self.shows_strip and is_imagining else None
        return None if trajectory is None else pictures.visible(trajectory)

    def _comparison_lines(self) -> list[str]:
        assert self.comparison is not None
        outcome, real = self.comparison.outcome, self.moment.outcome
        quality = psnr(mean_squared_error(self.place.trail.frame, self.imagined.trail.frame))
        imagined_end = "-" if outcome is None else _yes_no(outcome.terminated)
        return [
            f"imagined step {self.imagined.time} of {self.imagined.horizon}",
            f"PSNR {quality:.1f} dB",
            f"reward {_number(real and real.reward)}, imagined {_number(outcome and outcome.reward)}",
            f"imagined return {_number(self.comparison.imagined_return)}",
            f"done {_yes_no(self.moment.is_over)}, imagined {imagined_end}",
        ]

    def _where_facts(self) -> Facts:
        controller = "human" if self.is_human else f"policy ({name_of(self.player)})"
        paused = " (paused)" if self.is_paused else ""
        recorded = "off" if self.recorder is None else f"{self.recorder.num_saved} episodes"
        return (
            ("Environment", self.place.name),
            ("Controller", controller),
            ("Time step", f"{self.place.time}{paused}"),
            ("Horizon", str(self.imagined.horizon)),
            ("Recording", recorded),
        )

    def _step_facts(self) -> Facts:
        outcome = self.moment.outcome or Outcome(0.0, False, False)
        action = self.moment.action
        reward = None if self.moment.outcome is None else outcome.reward
        return (
            ("Truncated / done", f"{_yes_no(outcome.truncated)} / {_yes_no(outcome.terminated)}"),
            ("Reward", _number(reward)),
            ("Return", _number(self.moment.episode_return)),
            ("Action", "-" if action is None else self.game_keys.name(action)),
            ("Speed", f"{1 / statistics.median(self._seconds):.0f} steps/s" if self._seconds else "-"),
        )

    def _sampler_facts(self) -> Facts:
        model = self.imagined.env.world.world_model
        if not isinstance(model, WorldModel):
            return (("Denoising", "-"), ("Churn", "-"))
        sampler = model.config
        return (
            ("Denoising", f"{sampler.num_steps_denoising} x {_SOLVERS[sampler.order]}"),
            ("Churn", f"{sampler.s_churn:.1f}"),
        )

    def _model_facts(self) -> Facts:
        saved = "none" if self._saved is None else f"step {self._saved.place.time}"
        return (
            ("Entropy", "" if self.moment.entropy is None else f"{self.moment.entropy:.2f} bits"),
            ("Value", "" if self.moment.value is None else f"{self.moment.value:.2f}"),
            *self._sampler_facts(),
            ("Saved state", saved),
        )


def name_of(player: Player) -> str:
    """Return a name of a player, in a word or two."""
    return getattr(player, "name", "player")


def _yes_no(flag: bool) -> str:
    return "yes" if flag else "no"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
