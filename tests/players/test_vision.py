import cv2
import numpy as np
import pytest

from diamond_gym.errors import InvalidInputError
from diamond_gym.games.atari import AtariEnv
from diamond_gym.players.player import RandomPlayer, ScriptedBreakout
from diamond_gym.players.vision import (
    breakout_ball,
    breakout_paddle,
    pong_ball,
    pong_left_paddle,
    pong_right_paddle,
)

COLOURS = [(200, 72, 72), (198, 108, 58), (180, 122, 48), (162, 162, 42), (72, 160, 72), (66, 72, 200)]


def screen(ball=None, paddle=None, cleared=(), colour=(200, 72, 72), strength=1.0):
    """Draw a screen of Breakout; `ball` and `paddle` are raw pixels of the top left corner."""
    raw = np.zeros((210, 160, 3), np.float32)
    raw[17:32] = 142
    raw[32:193, :8] = 142
    raw[32:193, 152:] = 142
    for row, brick in enumerate(COLOURS):
        for column in range(18):
            if (row, column) not in cleared:
                raw[57 + 6 * row : 63 + 6 * row, 8 + 8 * column : 16 + 8 * column] = brick
    if ball is not None:
        x, y = ball
        raw[y : y + 4, x : x + 2] = np.array(colour) * strength
    if paddle is not None:
        raw[189:193, paddle : paddle + 16] = (200, 72, 72)
    return cv2.resize(raw.round().astype(np.uint8), (64, 64), interpolation=cv2.INTER_AREA)


def centre(x, y, width=2, height=4):
    """Return the centre of a raw rectangle in the small frame."""
    return (x + width / 2) * 64 / 160 - 0.5, (y + height / 2) * 64 / 210 - 0.5


@pytest.mark.parametrize("position", [(60, 120), (8, 100), (150, 140), (101, 97), (77, 180)])
def test_ball_below_the_bricks(position):
    found = breakout_ball(screen(ball=position, paddle=70)[None])[0]
    np.testing.assert_allclose(found, centre(*position), atol=0.3)


def test_ball_above_the_bricks_is_grey():
    found = breakout_ball(screen(ball=(90, 40), colour=(142, 142, 142))[None])[0]
    np.testing.assert_allclose(found, centre(90, 40), atol=0.3)


@pytest.mark.parametrize("row", range(6))
def test_ball_in_a_gap_between_bricks(row):
    cleared = {(r, c) for r in range(row, 6) for c in (8, 9)}
    position = 79, 58 + 6 * row
    found = breakout_ball(screen(ball=position, cleared=cleared, colour=COLOURS[row])[None])[0]
    np.testing.assert_allclose(found, centre(*position), atol=0.5)


def test_no_ball_in_any_pattern_of_bricks():
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(50):
        gone = rng.random((6, 18)) < rng.random()
        frames.append(
            screen(paddle=int(rng.integers(8, 136)), cleared=set(zip(*np.nonzero(gone), strict=True)))
        )
    assert np.isnan(breakout_ball(np.stack(frames))).all()


def test_a_ghost_does_not_count_but_a_dim_ball_does():
    ghosts = np.stack([screen(ball=(60, y), strength=0.3) for y in range(100, 180, 7)])
    dim = np.stack([screen(ball=(60, y), strength=0.6) for y in range(100, 180, 7)])
    assert np.isnan(breakout_ball(ghosts)).all()
    assert not np.isnan(breakout_ball(dim)).any()


def test_a_large_blot_is_no_ball():
    frame = screen()
    frame[35:40, 20:25] = (200, 72, 72)
    assert np.isnan(breakout_ball(frame[None])).all()


@pytest.mark.parametrize("x", [20, 57, 110])
def test_paddle(x):
    found = breakout_paddle(screen(paddle=x, ball=(80, 150))[None])
    np.testing.assert_allclose(found, (x + 8) * 0.4 - 0.5, atol=0.1)


def test_no_paddle():
    assert np.isnan(breakout_paddle(screen()[None]))[0]


def test_against_the_memory_of_the_real_game():
    """RAM holds the ball (99, 101) and the paddle (72): the detector agrees, smear of pooling included."""
    env = AtariEnv("Breakout", training=False)
    player = ScriptedBreakout(seed=3)
    obs, _ = env.reset(seed=3)
    frames, ram = [], []
    for _ in range(900):
        obs, *_, terminated, _, _ = env.step(player.act(obs))
        if terminated:
            break
        frames.append(obs)
        ram.append(env.ale.getRAM()[[99, 101, 72]].astype(int))
    ball_x, ball_y, paddle_x = np.array(ram).T
    truth = np.stack(centre(ball_x - 49, ball_y + 9), 1)
    ball, paddle = breakout_ball(np.stack(frames)), breakout_paddle(np.stack(frames))

    below_bricks = (truth[:, 1] > 29) & (truth[:, 1] < 56)
    assert below_bricks.sum() > 300
    error = np.linalg.norm(ball - truth, axis=1)[below_bricks]
    assert not np.isnan(error).any()
    assert np.median(error) < 0.5
    assert error.max() < 1.5
    off_screen = ball_y > 200
    assert off_screen.any()
    assert np.isnan(ball[off_screen]).all()
    shown = (paddle_x - 47 >= 8) & (paddle_x - 47 <= 136)
    paddle_error = np.abs(paddle - ((paddle_x - 47 + 8) * 0.4 - 0.5))[shown]
    assert np.median(paddle_error) < 0.3
    assert paddle_error.max() < 2.6  # its position in RAM runs a raw frame ahead of the screen


def test_an_even_picture_shows_no_paddle():
    assert np.isnan(breakout_paddle(np.full((1, 64, 64, 3), 120, np.uint8)))[0]


def test_pong_against_the_memory_of_the_real_game():
    """RAM holds the ball (49, 54) and the paddles' heights (50, 51)."""
    env = AtariEnv("Pong", training=False)
    player = RandomPlayer(6, seed=1, repeat=4)
    obs, _ = env.reset(seed=1)
    frames, ram = [], []
    for _ in range(500):
        obs, *_ = env.step(player.act(obs))
        frames.append(obs)
        ram.append(env.ale.getRAM()[[49, 54, 50, 51]].astype(int))
    ball_x, ball_y, left_y, right_y = np.array(ram).T
    frames = np.stack(frames)
    playing = (ball_y > 51) & (ball_y < 200) & (ball_x > 53) & (ball_x < 200)
    assert playing.sum() > 200
    error = np.linalg.norm(pong_ball(frames) - np.stack(centre(ball_x - 49, ball_y - 14), 1), axis=1)[playing]
    assert not np.isnan(error).any()
    assert np.median(error) < 0.5
    assert error.max() < 1.5
    assert np.isnan(pong_ball(frames)[(ball_x == 0) & (ball_y == 0)]).all()
    left, right = (centre(0, y - off, height=16)[1] for y, off in ((left_y, 15), (right_y, 13)))
    assert np.median(np.abs(pong_left_paddle(frames) - left)[playing]) < 0.5
    whole = playing & (right_y > 47) & (right_y < 191)
    assert np.abs(pong_right_paddle(frames) - right)[whole].max() < 3  # RAM runs a raw frame ahead


def test_pong_without_anything():
    empty = np.full((1, 64, 64, 3), (144, 72, 17), np.uint8)
    assert np.isnan(pong_ball(empty)).all()
    assert np.isnan(pong_left_paddle(empty)).all()
    assert np.isnan(pong_right_paddle(empty)).all()


def test_many_frames_agree_with_single_ones():
    rng = np.random.default_rng(1)
    frames = np.stack([screen(ball=(int(x), 120), paddle=40) for x in rng.integers(8, 150, 600)])
    found = breakout_ball(frames)
    assert found.shape == (600, 2)
    np.testing.assert_array_equal(found[555], breakout_ball(frames[555:556])[0])
    assert breakout_ball(frames[:0]).shape == (0, 2)
    assert breakout_paddle(frames[:0]).shape == (0,)


@pytest.mark.parametrize(
    "frames", [np.zeros((64, 64, 3), np.uint8), np.zeros((2, 3, 64, 64), np.uint8), np.zeros((1, 64, 64, 3))]
)
def test_other_shapes_and_types_are_refused(frames):
    with pytest.raises(InvalidInputError, match=r"uint8 of shape \(b, 64, 64, 3\)"):
        breakout_ball(frames)
    with pytest.raises(InvalidInputError, match="got"):
        breakout_paddle(frames)
