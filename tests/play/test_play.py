"""Play mode: every key and its effect, in a window under SDL's dummy driver."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import imageio.v2 as imageio
import numpy as np
import pygame
import pytest
from PIL import Image

from diamond_gym.data.video import Film
from diamond_gym.envs.env import DiamondEnv
from diamond_gym.envs.games import keys_to_action
from diamond_gym.play import settings, start, text
from diamond_gym.play.canvas import Canvas
from diamond_gym.play.keys import (
    DATASET_SHORTCUTS,
    Command,
    GameKeys,
    explain,
    find,
    play_shortcuts,
)
from diamond_gym.play.pacing import Pacing
from diamond_gym.play.session import PlaySession
from diamond_gym.play.view import View
from diamond_gym.play.viewer import Viewer
from diamond_gym.play.window import Keyboard, open_window, run
from tests import worlds

SIZE = 256


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> DiamondEnv:
    checkpoint = worlds.save_tiny_world(tmp_path_factory.mktemp("endless"), end_bias=-30)
    return DiamondEnv("Breakout", checkpoint=checkpoint, **worlds.PLAIN)


def make_viewer(env: DiamondEnv, folder: Path, *arguments: str) -> Viewer:
    env.set_sampler(num_denoising_steps=1, order=1, s_churn=0)
    given = settings.parse(["game=Breakout", "seed=3", "--human", f"--size={SIZE}", *arguments])
    session = start.session_in(env, given, None, tell=lambda line: None)
    return Viewer(session, Canvas(SIZE), fps=15, captures=folder / "captures", tell=lambda line: None)


@pytest.fixture
def viewer(env: DiamondEnv, tmp_path: Path) -> Viewer:
    return make_viewer(env, tmp_path)


@pytest.fixture
def game(viewer: Viewer) -> PlaySession:
    assert isinstance(viewer.session, PlaySession)
    return viewer.session


def facts(view: View) -> dict[str, str]:
    return {name: value for column in view.header for name, value in column}


def steps(viewer: Viewer, count: int, *held: str) -> list[np.ndarray]:
    """Take steps in a place and return the frame after each."""
    frames = []
    for _ in range(count):
        viewer.advance(held)
        assert isinstance(viewer.session, PlaySession)
        frames.append(viewer.session.place.trail.frame)
    return frames


# --- keys


def test_game_keys_are_those_of_gymnasiums_play(env: DiamondEnv):
    keys = GameKeys.of(env.get_action_meanings())
    assert {tuple(sorted(k)): a for k, a in keys.combinations.items()} == {
        tuple(sorted(k)): a for k, a in env.get_keys_to_action().items() if k != ("e",)
    }


ALL_18 = """NOOP FIRE UP RIGHT LEFT DOWN UPRIGHT UPLEFT DOWNRIGHT DOWNLEFT UPFIRE RIGHTFIRE LEFTFIRE DOWNFIRE
UPRIGHTFIRE UPLEFTFIRE DOWNRIGHTFIRE DOWNLEFTFIRE""".split()


@pytest.mark.parametrize("combination, action", keys_to_action(ALL_18).items())
def test_combinations_of_keys(combination: tuple[str, ...], action: int):
    held = [] if combination == ("e",) else list(combination)
    assert GameKeys.of(ALL_18).action(held) == action
    assert GameKeys.of(ALL_18).action(held[::-1]) == action


@pytest.mark.parametrize(
    "held, action",
    [
        ([], "NOOP"),
        (["w"], "NOOP"),
        (["w", "a"], "LEFT"),
        (["a", "d"], "RIGHT"),
        (["d", "a"], "LEFT"),
        ([" ", "a"], "LEFT"),
        (["a", " "], "FIRE"),
        (["m"], "NOOP"),
    ],
)
def test_keys_that_are_no_action_together(held: list[str], action: str):
    keys = GameKeys.of(worlds.ACTION_MEANINGS)
    assert keys.action_meanings[keys.action(held)] == action


def test_actions_without_names_get_a_key_each():
    keys = GameKeys.of([f"ACTION_{i}" for i in range(4)])
    assert [keys.action(held) for held in ([], ["w"], ["a"], ["s"])] == [0, 1, 2, 3]
    assert len(GameKeys.of(["A"] * 40).combinations) == 13


def test_s_is_the_games_where_there_is_a_down():
    assert find(play_shortcuts(GameKeys.of(ALL_18).keys), "s") is None
    for keys in (GameKeys.of(ALL_18).keys, GameKeys.of(worlds.ACTION_MEANINGS).keys):
        for key in ("f5", "ctrl+s"):
            shortcut = find(play_shortcuts(keys), key)
            assert shortcut is not None and shortcut.command is Command.SAVE
    shortcut = find(play_shortcuts(GameKeys.of(worlds.ACTION_MEANINGS).keys), "s")
    assert shortcut is not None and shortcut.command is Command.SAVE


@pytest.mark.parametrize("shortcuts", [play_shortcuts(GameKeys.of(ALL_18).keys), DATASET_SHORTCUTS])
def test_no_key_means_two_things_and_all_are_explained(shortcuts):
    keys = [key for shortcut in shortcuts for key in shortcut.keys]
    assert len(keys) == len(set(keys)) and not set(keys) & GameKeys.of(ALL_18).keys
    assert len(explain(shortcuts)) == len({shortcut.command for shortcut in shortcuts})


def test_every_command_has_a_key():
    used = {s.command for s in (*play_shortcuts(()), *DATASET_SHORTCUTS)}
    assert used == set(Command)


# --- the session, a key at a time


def test_enter_resets(viewer: Viewer, game: PlaySession):
    steps(viewer, 3)
    assert facts(viewer.view())["Time step"] == "3"
    viewer.press("enter")
    assert facts(viewer.view())["Time step"] == "0" and game.moment.action is None


def test_held_keys_are_actions_and_m_hands_over_to_the_policy(viewer: Viewer):
    viewer.advance(["d"])
    assert facts(viewer.view())["Action"] == "RIGHT"
    viewer.advance([" "])
    assert facts(viewer.view())["Action"] == "FIRE"
    assert facts(viewer.view())["Controller"] == "human"
    viewer.press("m")
    assert facts(viewer.view())["Controller"] == "policy (actor-critic)"
    actions = set()
    for _ in range(10):
        viewer.advance(["d"])  # keys that a person holds have no effect now
        actions.add(facts(viewer.view())["Action"])
    assert len(actions) > 1
    viewer.press("m")
    viewer.advance(["a"])
    assert facts(viewer.view())["Action"] == "LEFT"


def test_entropy_and_value_are_the_actor_critics(viewer: Viewer, game: PlaySession):
    assert facts(viewer.view())["Entropy"] == ""
    viewer.advance([])
    shown = facts(viewer.view())
    assert 0 < float(shown["Entropy"].removesuffix(" bits")) <= 2
    assert float(shown["Value"]) == pytest.approx(game.moment.value, abs=0.01)


def test_horizon(viewer: Viewer, game: PlaySession):
    for key, horizon in (("up", "51"), ("down", "50"), ("down", "49")):
        viewer.press(key)
        assert facts(viewer.view())["Horizon"] == horizon
    for _ in range(47):
        viewer.press("down")
    game.rest = 0
    steps(viewer, 2)
    assert facts(viewer.view())["Truncated / done"] == "yes / no"
    viewer.advance([])
    assert facts(viewer.view())["Time step"] == "0"
    viewer.press("down")
    viewer.press("down")
    assert facts(viewer.view())["Horizon"] == "1" and "at least 1" in viewer.view().message


def test_the_end_stays_for_a_moment(viewer: Viewer, game: PlaySession):
    game.imagined.horizon, game.rest = 1, 2
    times = []
    for _ in range(5):
        viewer.advance([])
        times.append(game.place.time)
    assert times == [1, 1, 1, 0, 1]


def test_places(viewer: Viewer, game: PlaySession):
    names = []
    for key in ("right", "right", "right", "left", "left"):
        viewer.press(key)
        names.append(facts(viewer.view())["Environment"])
    test, train, wm = "real game (test)", "real game (train)", "world model"
    assert names == [test, train, wm, train, test]
    assert len({frame.tobytes() for frame in steps(viewer, 3, " ")}) > 1


@pytest.mark.parametrize("presses, loses", [(1, False), (2, True)])
def test_a_lost_life_ends_training_episodes_only(
    viewer: Viewer, game: PlaySession, presses: int, loses: bool
):
    for _ in range(presses):
        viewer.press("right")
    game.rest = 0
    lives: Any = game.place.env.ale  # pyright: ignore[reportAttributeAccessIssue]
    count = 0
    while lives.lives() == 5 and count < 200:
        viewer.advance([" "])  # it serves and never moves
        count += 1
    assert lives.lives() == 4 and game.moment.is_over == loses


def test_pause_and_single_steps(viewer: Viewer):
    steps(viewer, 2)
    viewer.press(".")
    steps(viewer, 3)
    assert facts(viewer.view())["Time step"] == "2 (paused)"
    viewer.press("e")
    steps(viewer, 3)
    assert facts(viewer.view())["Time step"] == "3 (paused)"
    viewer.press(".")
    viewer.advance([])
    assert facts(viewer.view())["Time step"] == "4"
    viewer.press("e")
    assert "paused" in viewer.view().message


def outcomes(viewer: Viewer, count: int = 4) -> list[Any]:
    shown = []
    for i in range(count):
        viewer.advance([["d"], ["a"], [" "], []][i % 4])
        shown.append((viewer.view().picture.tobytes(), facts(viewer.view())["Return"]))
    return shown


@pytest.mark.parametrize("to_place", [[], ["right", "right"], ["c"]])
def test_a_saved_moment_has_one_future(viewer: Viewer, to_place: list[str]):
    viewer.press("l")
    assert "nothing has been saved" in viewer.view().message
    for key in (*to_place, "m"):
        viewer.press(key)
    steps(viewer, 3)
    viewer.press("s")
    saved = viewer.view().picture
    assert facts(viewer.view())["Saved state"] == "step 3"
    first = outcomes(viewer)
    viewer.press("left")
    viewer.press("l")
    assert np.array_equal(viewer.view().picture, saved)
    assert outcomes(viewer) == first
    viewer.press("l")
    assert np.array_equal(viewer.view().picture, saved)


def test_the_dream_branches(viewer: Viewer):
    viewer.advance([])
    viewer.press("s")
    right = steps(viewer, 4, "d")[-1]
    viewer.press("l")
    left = steps(viewer, 4, "a")[-1]
    assert not np.array_equal(right, left)


def test_imagination_goes_on_from_the_real_frame(viewer: Viewer, game: PlaySession):
    viewer.press("i")
    assert "imagination already" in viewer.view().message
    viewer.press("right")
    steps(viewer, 6, " ")
    real = game.place.trail.context()
    viewer.press("i")
    assert facts(viewer.view())["Environment"] == "world model"
    assert np.array_equal(game.place.trail.context()["obs"], real["obs"])
    assert np.array_equal(game.place.trail.context()["act"], real["act"]) and (real["act"] == 1).all()
    viewer.advance([])
    assert not np.array_equal(game.place.trail.frame, real["obs"][-1])


def test_side_by_side(viewer: Viewer, game: PlaySession):
    viewer.press("c")
    assert facts(viewer.view())["Environment"] == "real game (test)" and game.comparison is not None
    steps(viewer, 3, "d")
    real, imagined = game.place.trail, game.imagined.trail
    assert real.context()["act"].tolist() == imagined.context()["act"].tolist() == [2, 2, 2]
    assert game.imagined.time == game.place.time == 3
    picture, half = viewer.view().picture, SIZE // 2
    assert picture.shape == (SIZE, SIZE, 3)
    quarters = [picture[:half, :half], picture[:half, half:], picture[half:, :half]]
    side = half - text.height(8) - 4
    for quarter, frame in zip(quarters, (real.frame, imagined.frame), strict=False):
        shown = cv2.resize(frame, (side, side), interpolation=cv2.INTER_NEAREST)
        left = (half - side) // 2
        assert np.array_equal(quarter[-side:, left : left + side], shown)
    difference = np.clip(2 * np.abs(real.frame.astype(int) - imagined.frame), 0, 255)
    assert np.abs(quarters[2][-side:].mean() - difference.mean() * side / half) < 2
    viewer.press("c")
    assert game.comparison is None and facts(viewer.view())["Environment"] == "real game (test)"


def test_imagination_beside_the_real_game_is_forked_again_at_its_horizon(viewer: Viewer, game: PlaySession):
    viewer.press("c")
    game.imagined.horizon = 3
    times = []
    for _ in range(7):
        viewer.advance([])
        times.append(game.imagined.time)
    assert times == [1, 2, 3, 1, 2, 3, 1] and game.place.time == 7


def test_the_film_strip_shows_the_denoising(viewer: Viewer, game: PlaySession):
    for key in ("3", "t"):
        viewer.press(key)
    viewer.advance([])
    trajectory = game.imagined.denoising()
    assert trajectory is not None and trajectory.shape == (4, 64, 64, 3)
    cell = SIZE // 5
    strip = viewer.view().picture[-cell:]
    last = cv2.resize(game.place.trail.frame, (cell, cell), interpolation=cv2.INTER_NEAREST).astype(int)
    right = (SIZE + 4 * cell) // 2
    assert np.abs(strip[:, right - cell : right] - last).max() <= 1
    assert strip[:, right - 4 * cell : right - 3 * cell].std() > 50  # noise
    viewer.press("t")
    assert viewer.view().picture[-cell:].std() != strip.std()
    viewer.press("right")
    viewer.press("t")
    assert "do not come out of noise" in viewer.view().message


def test_sampler(viewer: Viewer, game: PlaySession):
    for n in (1, 5, 9, 2):
        viewer.press(str(n))
        assert facts(viewer.view())["Denoising"] == f"{n} x Euler"
        viewer.advance([])
        assert len(game.imagined.denoising()) == n + 1  # pyright: ignore[reportArgumentType]
    viewer.press("o")
    assert facts(viewer.view())["Denoising"] == "2 x Heun"
    for key, churn in (("+", "0.1"), ("=", "0.2"), ("-", "0.1"), ("-", "0.0"), ("-", "0.0")):
        viewer.press(key)
        assert facts(viewer.view())["Churn"] == churn
    viewer.press("o")
    assert facts(viewer.view())["Denoising"] == "2 x Euler"


def test_the_sampler_changes_the_frames(viewer: Viewer):
    viewer.press("s")
    frames = []
    for keys in ("", "4", "o", "+"):
        viewer.press("l")
        for key in keys:
            viewer.press(key)
        frames.append(steps(viewer, 1)[0].tobytes())
    assert len(set(frames)) == 4


@pytest.mark.parametrize("value", [None, 0, -1, 1.5])
def test_denoising_steps_out_of_range(viewer: Viewer, value: float | None):
    before = facts(viewer.view())["Denoising"]
    viewer.command(Command.DENOISING_STEPS, value)
    assert facts(viewer.view())["Denoising"] == before and "an integer" in viewer.view().message
    viewer.advance([])


def test_speed_is_on_the_screen(viewer: Viewer):
    assert facts(viewer.view())["Speed"] == "-"
    steps(viewer, 2)
    assert float(facts(viewer.view())["Speed"].removesuffix(" steps/s")) > 0


def test_a_world_of_no_atari_game(tmp_path: Path):
    folder = worlds.save_tiny_world(tmp_path / "world", game=None)
    given = settings.parse([folder, "device=cpu", "--human", f"--size={SIZE}"])
    viewer = Viewer(
        start.play_session(given, tell=lambda line: None), Canvas(SIZE), fps=15, captures=tmp_path
    )
    viewer.advance(["a"])
    assert facts(viewer.view())["Action"] == "ACTION_2"
    for key in ("right", "c"):
        viewer.press(key)
        assert "there is no real game" in viewer.view().message
        assert facts(viewer.view())["Environment"] == "world model"


@pytest.mark.parametrize(
    "arguments, controller",
    [([], "policy (actor-critic)"), (["--policy"], "policy (actor-critic)"), (["--human"], "human")],
)
def test_a_policy_that_has_learned_to_play_begins(env: DiamondEnv, arguments: list[str], controller: str):
    told: list[str] = []
    given = settings.parse(["game=Breakout", *arguments])
    session = start.session_in(env, given, None, tell=told.append)
    assert facts(session.view())["Controller"] == controller
    who = "you play" if controller == "human" else "the policy plays"
    assert f"{who}: M switches, H shows all keys" in told
    session.command(Command.CONTROLLER)
    assert (facts(session.view())["Controller"] == "human") != (controller == "human")


def test_you_begin_where_the_policy_has_learned_nothing():
    given = settings.parse(["game=Breakout", "device=cpu", f"--size={SIZE}"])
    session = start.play_session(given, tell=lambda line: None)
    assert facts(session.view())["Controller"] == "human"
    session.command(Command.CONTROLLER)
    assert facts(session.view())["Controller"] == "policy (scripted)"


def test_the_embedded_world_is_played_by_the_scripted_player(tmp_path: Path):
    told: list[str] = []
    given = settings.parse(
        ["game=DiamondBreakout-v0", "--policy", "device=cpu", f"--size={SIZE}", "-n", "60"]
    )
    session = start.play_session(given, tell=told.append)
    assert "policy: scripted (the checkpoint has no actor-critic)" in told
    assert [line.split() for line in told if line.startswith("  ")] == [
        ["no", "key", "NOOP"],
        ["Space", "FIRE"],
        ["D", "RIGHT"],
        ["A", "LEFT"],
    ]
    session.advance([])
    shown = facts(session.view())
    assert shown["Controller"] == "policy (scripted)" and shown["Entropy"] == shown["Value"] == ""


def test_starts_are_taken_from_an_initial_collection(env: DiamondEnv, tmp_path: Path):
    viewer = make_viewer(env, tmp_path, "-n", "40")
    viewer.press("enter")
    frame = viewer.session.place.trail.frame  # pyright: ignore[reportAttributeAccessIssue]
    assert frame.max() < 210  # a real frame of Breakout; the bank's own have a square of 250


# --- common to all sessions


def test_help_stops_the_game_and_lists_all_keys(viewer: Viewer, game: PlaySession):
    before = viewer.picture()
    viewer.press("h")
    with_help = viewer.picture()
    viewer.advance([])
    assert game.place.time == 0 and with_help.shape == before.shape
    assert not np.array_equal(with_help[-SIZE:], before[-SIZE:])
    rows = dict(row for _, section in viewer.help() for row in section)
    assert rows["Space"] == "FIRE" and rows["1-9"] == "denoising steps" and rows["Esc"] == "leave"
    viewer.press("h")
    assert np.array_equal(viewer.picture(), before)


def test_screenshot_is_what_was_shown(viewer: Viewer):
    viewer.advance([])
    shown = viewer.picture()
    viewer.press("p")
    (file,) = viewer.captures.iterdir()
    viewer.press("p")
    assert len(list(viewer.captures.iterdir())) == 2 and file.name.startswith("Breakout-")
    with Image.open(file) as saved:
        assert np.array_equal(np.asarray(saved), shown)
    assert viewer.view().message.startswith("saved Breakout-")


def test_mp4_and_gif(viewer: Viewer):
    for key in ("r", "g"):
        viewer.press(key)
        steps(viewer, 5)
        viewer.press(key)
        assert viewer.film is None and viewer.view().message.startswith("saved")
    gif, mp4 = sorted(viewer.captures.iterdir(), key=lambda path: path.suffix)
    with imageio.get_reader(mp4) as film:
        frames = [film.get_data(i) for i in range(film.count_frames())]  # pyright: ignore
    assert len(frames) == 5 and frames[0].shape == viewer.picture().shape
    with Image.open(gif) as image:
        assert image.n_frames == 5 and image.info["duration"] == 70  # pyright: ignore
        assert np.abs(np.asarray(image.convert("RGB")).astype(int)[:-SIZE] - frames[0][:-SIZE]).mean() < 20


def test_leaving_completes_a_film(viewer: Viewer):
    viewer.press("r")
    steps(viewer, 2)
    viewer.press("escape")
    assert viewer.has_left and not [
        p for p in viewer.captures.iterdir() if p.suffix == ".mp4" and p.name[0] != "."
    ]
    viewer.close()
    assert [path.suffix for path in viewer.captures.iterdir()] == [".mp4"]


def test_captures_that_cannot_be_written_are_told(env: DiamondEnv, tmp_path: Path):
    viewer = make_viewer(env, tmp_path)
    viewer.captures = Path("/dev/null/captures")
    for key in ("p", "r", "g"):
        viewer.press(key)
        assert "cannot write" in viewer.view().message and viewer.film is None
    viewer.advance([])


def test_messages_go_away(viewer: Viewer):
    viewer.press(".")
    for _ in range(60):
        assert viewer.view().message == "paused"
        viewer.advance([])
    viewer.advance([])
    assert viewer.view().message == ""


@pytest.mark.parametrize("size", [256, 640, 1000])
def test_no_text_is_clipped(viewer: Viewer, size: int):
    """Nothing reaches the edges of the header or of the help."""
    view = View(
        viewer.view().picture,
        (
            (
                ("Environment", "real game (train)"),
                ("Controller", "policy (actor-critic)"),
                ("Time step", "108000 (paused)"),
            ),
            (("Truncated / done", "yes / yes"), ("Return", "-123456"), ("Action", "DOWNRIGHTFIRE")),
            (("Entropy", "4.17 bits"), ("Denoising", "99 x Euler"), ("Saved state", "step 108000")),
        ),
        "a very long message " * 5,
    )
    view = View(np.zeros((size, size, 3), np.uint8), view.header, view.message)
    sections = [("Game keys", GameKeys.of(ALL_18).explain()), ("Keys", explain(viewer.session.shortcuts))]
    picture = Canvas(size).draw(view, sections)
    header, below = picture[:-size].max(axis=2), picture[-size:].max(axis=2)
    assert header.shape[0] % 8 == 0
    for part, dark in ((header, 24), (below, 0)):
        for edge in (part[0], part[-1], part[:, 0], part[:, -1]):
            assert edge.max() <= dark
    third = round(0.36 * (size - Canvas(size).letters))
    gap = header[: header.shape[0] // 2, third : third + Canvas(size).letters]
    assert gap.max() <= 24  # columns do not run into each other


def test_letters_that_the_font_lacks_are_spelled_out():
    assert text.width("rec_π", 20) == text.width("rec_pi", 20)
    assert text.width("日本", 20) == text.width("??", 20)


def test_without_header(env: DiamondEnv, tmp_path: Path):
    viewer = make_viewer(env, tmp_path)
    viewer.canvas = Canvas(SIZE, has_header=False)
    assert viewer.picture().shape == (SIZE, SIZE, 3)
    assert np.array_equal(viewer.picture(), viewer.view().picture)


# --- the window


@pytest.fixture
def posted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[Any]]]:
    """Make a window get these events, a list for each picture."""
    batches: list[list[Any]] = []
    monkeypatch.setattr(pygame.event, "get", lambda: batches.pop(0) if batches else [])
    yield batches
    pygame.display.quit()


def down(key: int, **more: Any) -> pygame.event.Event:
    return pygame.event.Event(pygame.KEYDOWN, {"key": key, "mod": 0, "unicode": "", **more})


def up(key: int) -> pygame.event.Event:
    return pygame.event.Event(pygame.KEYUP, {"key": key, "mod": 0})


def play(viewer: Viewer, posted: list[list[Any]], num_frames: int | None = None) -> Pacing:
    pacing = Pacing(1000)
    run(viewer, open_window("test", 1000), pacing, num_frames)
    return pacing


def test_the_window_shows_the_picture(viewer: Viewer, monkeypatch: pytest.MonkeyPatch):
    shown = []
    monkeypatch.setattr(
        pygame.display, "flip", lambda: shown.append(pygame.surfarray.array3d(pygame.display.get_surface()))
    )
    expected = []
    advance = viewer.advance
    monkeypatch.setattr(viewer, "advance", lambda held: expected.append(advance(held)) or expected[-1])
    pacing = play(viewer, [], num_frames=3)
    assert np.array_equal(np.stack(shown).swapaxes(1, 2), np.stack(expected)) and len(pacing.seconds) == 2
    assert not pygame.display.get_init()


def test_held_tapped_and_combined_keys(viewer: Viewer, game: PlaySession, posted: list[list[Any]]):
    posted += [
        [down(pygame.K_d)],  # held from here
        [],
        [up(pygame.K_d), down(pygame.K_SPACE), up(pygame.K_SPACE)],  # a tap between two pictures counts
        [],
        [down(pygame.K_a)],
        [pygame.event.Event(pygame.WINDOWFOCUSLOST)],
        [down(pygame.K_ESCAPE)],
    ]
    actions = []
    step = game.imagined.env.step
    game.imagined.env.step = lambda action: actions.append(action) or step(action)  # pyright: ignore
    play(viewer, posted)
    assert actions == [0, 2, 2, 1, 0, 3, 0]


ENTER, PLUS = pygame.K_RETURN, pygame.K_PLUS
KEYS = [
    (down(pygame.K_UP), "Horizon", "51"),
    (down(pygame.K_DOWN), "Horizon", "49"),
    (down(pygame.K_RIGHT), "Environment", "real game (test)"),
    (down(pygame.K_LEFT), "Environment", "real game (train)"),
    (down(pygame.K_m), "Controller", "policy (actor-critic)"),
    (down(pygame.K_PERIOD, unicode="."), "Time step", "1 (paused)"),
    (down(pygame.K_3, unicode="3"), "Denoising", "3 x Euler"),
    (down(pygame.K_KP3), "Denoising", "3 x Euler"),
    (down(pygame.K_o), "Denoising", "1 x Heun"),
    (down(pygame.K_RIGHTBRACKET, unicode="+"), "Churn", "0.1"),  # where + is on German keyboards
    (down(pygame.K_KP_PLUS), "Churn", "0.1"),
    (down(pygame.K_s, mod=pygame.KMOD_LCTRL), "Saved state", "step 1"),
    (down(pygame.K_s), "Saved state", "step 1"),
    (down(pygame.K_F5), "Saved state", "step 1"),
    (down(pygame.K_KP_ENTER), "Time step", "0"),
    (down(ENTER), "Time step", "0"),
]


@pytest.mark.parametrize("event, fact, value", KEYS)
def test_keys_in_the_window(viewer: Viewer, posted: list[list[Any]], event: Any, fact: str, value: str):
    posted += [[event, pygame.event.Event(pygame.QUIT)]]
    play(viewer, posted)
    assert facts(viewer.view())[fact] == value and viewer.has_left


def test_some_keys_repeat_and_others_do_not(viewer: Viewer, posted: list[list[Any]]):
    posted += [[down(pygame.K_UP)] * 3 + [down(pygame.K_m)] * 4]
    play(viewer, posted, num_frames=1)
    shown = facts(viewer.view())
    assert shown["Horizon"] == "53" and shown["Controller"].startswith("policy")


def test_fullscreen_scales_the_picture(
    viewer: Viewer, posted: list[list[Any]], monkeypatch: pytest.MonkeyPatch
):
    sizes = []
    flip = pygame.display.flip
    monkeypatch.setattr(
        pygame.display, "flip", lambda: (sizes.append(pygame.display.get_surface().get_size()), flip())
    )
    posted += [[down(pygame.K_f)], [], [up(pygame.K_f), down(pygame.K_F11)], []]
    play(viewer, posted, num_frames=4)
    height, width = viewer.picture().shape[:2]
    desktop = sizes[1]
    assert sizes == [(width, height), desktop, desktop, (width, height)] and desktop[0] > width


def test_a_keyboard_forgets_nothing_but_its_repeats():
    pygame.display.init()
    pygame.display.set_mode((8, 8))
    keyboard = Keyboard()
    for _ in range(2):
        pygame.event.post(down(pygame.K_w))
    pygame.event.post(down(pygame.K_a))
    heard: list[tuple[str, bool]] = []
    keyboard.read(lambda key, *, is_repeated: heard.append((key, is_repeated)))
    assert heard == [("w", False), ("w", True), ("a", False)] and keyboard.held() == ["w", "a"]
    pygame.display.quit()


def test_pacing_is_told():
    pacing = Pacing(15)
    assert "fewer than two" in str(pacing)
    pacing.seconds = [0.05] * 19 + [0.1]
    assert str(pacing) == "frame pacing: p50 50.0 ms, p95 52.5 ms, 19.0 fps of 15 over 21 pictures"


def test_captures_of_one_second_get_a_name_each_also_from_several_windows(
    viewer: Viewer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(time, "strftime", lambda form: "now")
    viewer.captures.mkdir()
    path = viewer._new_file(".gif")
    films = [Film(path, 15, replace=False) for _ in range(2)]  # both have seen an empty folder
    for film in films:
        film.add(np.zeros((16, 16, 3), np.uint8))
        film.close()
    assert [film.path for film in films] == [path, path.with_stem(f"{path.stem}-2")]
    assert {path.name for path in viewer.captures.iterdir()} == {film.path.name for film in films}
    viewer.press("p")
    viewer.press("p")
    assert len(list(viewer.captures.iterdir())) == 4
