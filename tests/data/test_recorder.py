"""Recordings of Gymnasium environments: the wrapper, the random player, and the files."""

import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import AddRenderObservation, FrameStackObservation

import tests.moving_dot
from diamond_gym.data.record import RecordOptions, record
from diamond_gym.data.recorder import RecordedEpisode, RecordEpisodes
from diamond_gym.errors import DatasetError, InvalidInputError
from trainers.diamond.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:.*share an object")


def fields(length=3, **changes):
    """Return the fields of an episode that terminated."""
    last = np.arange(length) == length - 1
    return {
        "obs": np.zeros((length + 1, 6, 5, 3), np.uint8),
        "act": np.arange(length) % 2,
        "rew": np.ones(length),
        "terminated": last,
        "truncated": np.zeros(length, bool),
        **changes,
    }


def make(folder, **kwargs):
    return RecordEpisodes(gymnasium.make("MovingDot-v0", **kwargs), folder)


def load_all(folder):
    return [RecordedEpisode.load(path) for path in sorted(folder.glob("*.npz"))]


def test_every_episode_becomes_a_file(tmp_path):
    env = make(tmp_path / "recordings")
    first, _ = env.reset(seed=0)
    first, steps = first.copy(), []
    terminated = False
    while not terminated:
        obs, reward, terminated, _, _ = env.step(2)
        steps.append((obs.copy(), reward))
    env.reset()
    for _ in range(20):  # MovingDot-v0 lasts 20 steps
        _, _, _, truncated, _ = env.step(1)
    assert truncated
    env.reset()
    env.step(0)
    env.reset()  # cuts an episode off
    env.step(1)
    env.step(1)
    env.close()
    ended, truncated, cut, closed = load_all(tmp_path / "recordings")
    assert (ended.obs[0] == first).all() and len(ended) == len(steps)
    for i, (obs, reward) in enumerate(steps):
        assert (ended.obs[i + 1] == obs).all() and ended.rew[i] == reward
    assert ended.act.tolist() == [2] * len(steps) and ended.num_actions == 3
    assert ended.terminated.tolist() == [False] * (len(steps) - 1) + [True]
    assert len(truncated) == 20 and truncated.truncated[-1] and not truncated.terminated.any()
    assert [len(cut), len(closed)] == [1, 2] and not cut.is_finished and not closed.is_finished


def test_a_second_recording_goes_on_after_the_first(tmp_path):
    for _ in range(2):
        env = make(tmp_path)
        env.reset()
        env.step(1)
        env.close()
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "episode_000000.npz",
        "episode_000001.npz",
    ]


def test_actions_are_counted_from_zero(tmp_path):
    env = make(tmp_path, start=5)
    env.reset()
    env.step(5)
    env.step(7)
    env.close()
    (episode,) = load_all(tmp_path)
    assert episode.act.tolist() == [0, 2] and episode.num_actions == 3


def test_what_an_environment_draws_can_be_recorded(tmp_path):
    env = RecordEpisodes(
        AddRenderObservation(gymnasium.make("MovingDot-v0", grey=True, render_mode="rgb_array")), tmp_path
    )
    env.reset()
    env.step(1)
    env.close()
    (episode,) = load_all(tmp_path)
    assert episode.obs.shape == (2, 64, 64, 3)


def test_games_of_ale_are_known_by_their_ids(tmp_path):
    command = ["-m", "trainers.diamond", "record", "env=ALE/Pong-v5", f"out={tmp_path}", "num_steps=3"]
    subprocess.run([sys.executable, *command], check=True)  # where nobody has imported ale_py
    (episode,) = load_all(tmp_path)
    assert episode.obs.shape == (4, 210, 160, 3)


@pytest.mark.parametrize(
    "env, message",
    [
        (lambda: gymnasium.make("CartPole-v1"), "AddRenderObservation"),
        (lambda: FrameStackObservation(gymnasium.make("MovingDot-v0"), 4), "only uint8 images"),
        (lambda: gymnasium.make("Pendulum-v1"), "only uint8 images"),
    ],
)
def test_what_cannot_be_recorded_is_refused(env, message, tmp_path):
    with pytest.raises(InvalidInputError, match=message):
        RecordEpisodes(env(), tmp_path / "recordings")
    assert not list(tmp_path.iterdir())


def test_the_random_player_can_be_repeated(tmp_path, capsys):
    arguments = ["record", "env=tests.moving_dot:MovingDot-v0", "num_steps=100", "seed=3", "repeat=3"]
    for name in ("one", "two"):
        assert main([*arguments, f"out={tmp_path / name}"]) == 0
    one, two = load_all(tmp_path / "one"), load_all(tmp_path / "two")
    assert sum(map(len, one)) == 100 and len(one) > 2
    assert f"{len(one)} episodes recorded" in capsys.readouterr().out
    for a, b in zip(one, two, strict=True):
        assert (a.obs == b.obs).all() and (a.act == b.act).all()
    assert {int(act) for episode in one for act in episode.act} == {0, 1, 2}
    assert all(episode.is_finished for episode in one[:-1])


def test_the_random_player_knows_other_first_actions(tmp_path):
    gymnasium.register("MovingDotFrom2-v0", "tests.moving_dot:MovingDot", kwargs={"start": 2})
    try:
        assert record(RecordOptions("MovingDotFrom2-v0", str(tmp_path), num_steps=9), progress=False) >= 1
    finally:
        del gymnasium.registry["MovingDotFrom2-v0"]
    assert max(int(episode.act.max()) for episode in load_all(tmp_path)) == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["env=MovingDt-v0"], "env=MovingDt-v0 cannot be made: Environment `MovingDt` doesn't exist"),
        (["env=no_such_module:Game-v0"], "env=no_such_module:Game-v0 cannot be made"),
        (["env=MovingDot-v0", "num_steps=0"], "num_steps must be at least 1, got 0"),
        (["env=MovingDot-v0", "render=yes"], "render must be true or false, got 'yes'"),
        ([], "missing: env=..."),
    ],
)
def test_errors_of_the_command_are_one_line(arguments, message, tmp_path, capsys):
    assert main(["record", f"out={tmp_path / 'out'}", *arguments]) == 2
    errors = capsys.readouterr().err
    assert message in errors and errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_other_names_of_the_fields_are_known(tmp_path):
    names = {
        "obs": "observations",
        "act": "actions",
        "rew": "rewards",
        "terminated": "terminations",
        "truncated": "truncations",
    }
    np.savez_compressed(tmp_path / "0.npz", **{names[name]: value for name, value in fields().items()})
    episode = RecordedEpisode.load(tmp_path / "0.npz")
    assert len(episode) == 3 and episode.num_actions is None and episode.is_finished


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"obs": np.zeros((3, 6, 5, 3), np.uint8)}, "t steps need t\\+1 frames"),
        ({"obs": np.zeros((4, 6, 5, 3), np.float32)}, "obs must be uint8, 0..255, got float32"),
        ({"obs": np.zeros((4, 3, 6, 5), np.uint8)}, "channels last"),
        ({"obs": np.zeros((4, 0, 5, 3), np.uint8)}, "got \\(4, 0, 5, 3\\)"),
        ({"act": np.zeros((3, 2), int)}, "act must be integers"),
        ({"act": np.zeros(3)}, "act must be integers \\(t,\\), got float64"),
        ({"act": np.array([0, -1, 0])}, "act holds -1"),
        ({"act": np.array([0, 4, 0]), "num_actions": 4}, "act holds 4: accepted are 0..3"),
        ({"rew": np.array([0, np.nan, 0])}, "not finite"),
        ({"rew": np.array(["a", "b", "c"])}, "rew must be numbers"),
        ({"terminated": np.array([0, 2, 0])}, "terminated must be booleans"),
        ({"terminated": np.array([0, 1, 1])}, "ends at step 1 and continues to step 2: one episode a file"),
        ({"truncated": np.zeros(2, bool)}, "truncated has 2 steps"),
        (fields(0), "at least one step"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_files_of_another_form_are_refused_by_name(changes, message, tmp_path):
    np.savez(tmp_path / "bad.npz", **fields(**changes))
    with pytest.raises(DatasetError, match=f"bad.npz cannot be read as a recorded episode: .*{message}"):
        RecordedEpisode.load(tmp_path / "bad.npz")


def test_a_missing_field_is_named(tmp_path):
    content = fields()
    del content["truncated"]
    np.savez(tmp_path / "bad.npz", **content)
    with pytest.raises(DatasetError, match=r"has no truncated or truncations; .*found obs, act"):
        RecordedEpisode.load(tmp_path / "bad.npz")


@pytest.mark.parametrize("kind", ["empty", "cut", "flipped", "text", "pickled", "npy"])
def test_damaged_files_are_refused_and_never_run(kind, tmp_path):
    path = tmp_path / "bad.npz"
    np.savez_compressed(
        path, **fields(50, obs=np.random.default_rng(0).integers(0, 255, (51, 9, 9, 3), np.uint8))
    )
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    if kind == "pickled":
        np.savez(path, **fields(act=np.array([0, print, 1], object)))
    elif kind == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        contents = {"empty": b"", "cut": content[:500], "flipped": content, "text": b"episode"}
        path.write_bytes(contents[kind])
    with pytest.raises(DatasetError, match=r"bad\.npz cannot be read"):
        RecordedEpisode.load(path)


def test_environments_share_a_folder_without_losing_an_episode(tmp_path):
    envs = [
        RecordEpisodes(tests.moving_dot.MovingDot(), tmp_path) for _ in range(3)
    ]  # all have seen an empty folder
    for env in envs:
        for seed in range(2):
            env.reset(seed=seed)
            while not env.step(2)[2]:
                pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"episode_{i:06d}.npz" for i in range(6)]
    (tmp_path / "episode_000006.npz").symlink_to(tmp_path / "elsewhere")
    envs[0].reset()
    envs[0].step(1)
    envs[0].close()
    assert (tmp_path / "episode_000007.npz").is_file() and not (tmp_path / "elsewhere").exists()
