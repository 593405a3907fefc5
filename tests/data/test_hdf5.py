"""The import of HDF5 files: robomimic's layout, D4RL's, and files that are neither or are broken."""

import re
import tracemalloc

import numpy as np
import pytest

from diamond_gym.errors import DatasetError
from tests.others_data import assert_same, importer, made, write_d4rl, write_robomimic
from trainers.diamond.cli import main

h5py = pytest.importorskip("h5py")

imported = importer("hdf5")
COMPRESSED = {"chunks": (3, 64, 64, 3), "compression": "gzip"}


@pytest.mark.parametrize("keywords", [{}, COMPRESSED])
def test_robomimic_is_exact(tmp_path, keywords):
    episodes = [made(4 + i, i) for i in range(12)]  # demo_10 comes after demo_2
    path = write_robomimic(tmp_path / "demos.hdf5", episodes, **keywords)
    report, (train, test) = imported(path, tmp_path / "data")
    assert [len(train), len(test)] == [11, 1] and report.num_ends == 12 and report.num_actions == 3
    for episode, source in zip([*train, *test], [*episodes[:9], *episodes[10:], episodes[9]], strict=True):
        assert_same(episode, source, has_final=True)


def test_robomimic_without_the_frame_after_the_end(tmp_path):
    episodes = [made(4, i) for i in range(3)]
    path = write_robomimic(tmp_path / "demos.hdf5", episodes, next_obs=False)
    report, (train, _) = imported(path, tmp_path / "data")
    assert_same(train[1], episodes[1], has_final=False)
    assert "3 of 3 ends lack the frame after them" in str(report)


def test_steps_after_an_end_are_left_out(tmp_path):
    """Robomimic marks every step at which a task is solved."""
    episodes = [made(8, i) for i in range(2)]
    path = write_robomimic(tmp_path / "demos.hdf5", episodes, next_obs=False)
    with h5py.File(path, "r+") as file:
        file["data/demo_0/dones"][4:] = 1
    report, (train, _) = imported(path, tmp_path / "data")
    assert len(train[0]) == 5 and np.array_equal(train[0].obs.permute(0, 2, 3, 1), episodes[0].obs[:5])
    final = train[0].final_observation
    assert final is not None and np.array_equal(final.permute(1, 2, 0), episodes[0].obs[5])
    assert report.skipped == ["data/demo_0: 3 steps after its end"]


@pytest.mark.parametrize("next_obs", [False, True])
@pytest.mark.parametrize("keywords", [{}, COMPRESSED])
def test_d4rl_is_exact(tmp_path, next_obs, keywords):
    episodes = [made(4 + i, i) for i in range(4)]
    path = write_d4rl(tmp_path / "d4rl.hdf5", episodes, next_obs=next_obs, **keywords)
    report, (train,) = imported(path, tmp_path / "data", test_every=0)
    assert len(train) == 4 and report.num_ends == 2
    for i in (0, 2):
        assert_same(train[i], episodes[i], has_final=next_obs)
    assert train[1].trunc.tolist() == [0, 0, 0, 0, 1] and not train[1].end.any()
    assert_same(train[3], episodes[3], has_final=False, terminated=False)


def test_arrays_of_other_names(tmp_path):
    """A file as ALOHA's, or Minari's own: an episode a group, one frame more than actions."""
    episodes = [made(4, i) for i in range(2)]
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for i, episode in enumerate(episodes):
            group = file.create_group(f"episode_{i}")
            group["images/top"], group["move"] = episode.obs.transpose(0, 3, 1, 2), episode.act[:, None] + 1
            group["r"], group["over"] = episode.rew[:, None], np.arange(4) == 3
    report, (train,) = imported(
        tmp_path / "a.hdf5",
        tmp_path / "data",
        test_every=0,
        obs_key="images/top",
        act_key="move",
        rew_key="r",
        terminated_key="over",
        action_low=[1],
        action_high=[5],
    )
    assert report.num_actions == 5
    for episode, source in zip(train, episodes, strict=True):
        assert_same(episode, source, has_final=True)


def test_missing_rewards_and_ends_are_said(tmp_path):
    path = write_robomimic(tmp_path / "demos.hdf5", [made(4, i) for i in range(2)])
    with h5py.File(path, "r+") as file:
        for i in range(2):
            del file[f"data/demo_{i}/rewards"], file[f"data/demo_{i}/dones"]
    report, (train, _) = imported(path, tmp_path / "data")
    assert "there are no 'rewards': all rewards are 0" in str(report)
    assert "there are no 'dones': no episode terminates" in str(report)
    assert not train[0].rew.any() and not train[0].is_finished


KINDS = {
    "box": (np.float32, {"action_low": [-1], "action_high": [1]}, "box(-1.0..1.0, -1.0..1.0)"),
    "box of single numbers": (
        np.float32,
        {"action_low": [-1, -2], "action_high": [1, 3]},
        "box(-1.0..1.0, -2.0..3.0)",
    ),
    "multi_discrete": (np.int64, {"action_high": [3, 2]}, "multi_discrete(4, 3)"),
    "multi_binary": (np.bool_, {}, "multi_binary(2)"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_actions_are_exact(tmp_path, kind):
    dtype, options, space = KINDS[kind]
    path = write_robomimic(tmp_path / "demos.hdf5", [made(4, i) for i in range(3)])
    rng, given = np.random.default_rng(0), []
    with h5py.File(path, "r+") as file:
        for i in range(3):
            act = (
                rng.uniform(-1, 1, (4, 2)).astype(dtype)
                if dtype == np.float32
                else rng.integers(0, 2, (4, 2)) > 0
            )
            given.append(act.astype(dtype))
            del file[f"data/demo_{i}/actions"]
            file[f"data/demo_{i}/actions"] = given[-1]
    report, (train,) = imported(path, tmp_path / "data", test_every=0, **options)
    assert str(report.action_space) == str(train.action_space) == space and f"actions {space}" in str(report)
    for episode, act in zip(train, given, strict=True):
        assert np.array_equal(episode.act, act.astype(np.float32 if dtype == np.float32 else np.int64))


def test_actions_out_of_their_range(tmp_path, capsys):
    path = write_robomimic(tmp_path / "demos.hdf5", [made(4, i) for i in range(2)])
    with h5py.File(path, "r+") as file:
        put("data/demo_0/actions", np.full((4, 2), 1.5))(file)
    arguments = ["action_low=-1", "action_high=1", f"out={tmp_path / 'data'}"]
    assert main(["import-episodes", f"hdf5={path}", *arguments]) == 1
    assert "must be actions of box(-1.0..1.0, -1.0..1.0)" in capsys.readouterr().err


def test_frames_are_never_held_whole(tmp_path):
    """270 megabytes of pictures in one episode pass through a tenth of that, in blocks."""
    path = tmp_path / "demos.hdf5"
    with h5py.File(path, "w") as file:
        group = file.create_group("data/demo_0")
        shape = (300, 480, 640, 3)
        frames = group.create_dataset(
            "obs/a_image", shape, np.uint8, chunks=(1, *shape[1:]), compression="lzf"
        )
        for i in range(len(frames)):
            frames[i] = i % 256
        group["actions"] = np.zeros(300, int)
    tracemalloc.start()
    try:
        _, (train,) = imported(path, tmp_path / "data", test_every=0, size="64")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 27e6 + 2**24
    assert train[0].obs[:, 0, 0, 0].tolist() == [i % 256 for i in range(300)]


# --- what cannot be read


def two_cameras(file):
    file["data/demo_0/obs/wrist_image"] = file["data/demo_0/obs/agentview_image"][:]


def another_length(file):
    file["data/demo_1/obs/front_image"] = file["data/demo_1/obs/agentview_image"][:2]
    for i in range(2):
        group = file[f"data/demo_{i}/obs"]
        if i == 0:
            group["front_image"] = group["agentview_image"][:]
        del group["agentview_image"]


def put(path, values):
    def change(file):
        if path in file:
            del file[path]
        file[path] = values

    return change


def huge(file):
    del file["data/demo_0/obs/agentview_image"]
    file["data/demo_0/obs"].create_dataset(
        "agentview_image", (4, 9000, 9000, 3), np.uint8, chunks=(1, 9000, 9000, 3), compression="gzip"
    )


def huge_chunks(file):
    del file["data/demo_0/obs/agentview_image"]
    file["data/demo_0/obs"].create_dataset(
        "agentview_image", (4, 64, 64, 3), np.uint8, chunks=(2**16, 64, 64, 3), maxshape=(None, 64, 64, 3)
    )


def endless(file):
    for name, shape in (("actions", ()), ("rewards", ()), ("dones", ())):
        del file[f"data/demo_0/{name}"]
        file["data/demo_0"].create_dataset(name, (10**10, *shape), np.uint8, chunks=(2**20,))


def linked(file):
    del file["data/demo_0/actions"]
    file["data/demo_0/actions"] = h5py.ExternalLink("/etc/passwd", "/")


def external(file):
    del file["data/demo_0/actions"]
    file["data/demo_0"].create_dataset("actions", (4,), np.uint8, external=[("/etc/passwd", 0, 4)])


@pytest.mark.parametrize(
    "change, message",
    [
        (two_cameras, "has 2 cameras, choose one: obs_key=obs/agentview_image or obs_key=obs/wrist_image"),
        (another_length, "4 actions and 2 frames: t actions need t or t+1 frames"),
        (
            put("data/demo_0/actions", np.zeros((4, 7))),
            "float32 of 7 number(s) a step, here from 0 to 0: say",
        ),
        (put("data/demo_0/actions", np.zeros((4, 2), int)), "int64 of 2 number(s) a step"),
        (put("data/demo_0/actions", [0, 1, -1, 0]), "act holds -1: accepted are 0 and more"),
        (put("data/demo_0/rewards", [0.0, np.nan, 0, 0]), "not finite"),
        (put("data/demo_0/rewards", [0.0]), "4 actions and 1 rows of rewards"),
        (put("data/demo_0/dones", [0, 2, 0, 1]), "dones must be booleans"),
        (put("data/demo_0/actions", np.array([b"up"] * 4)), "actions must be an array of numbers"),
        (put("data/demo_0/obs/agentview_image", np.zeros((4, 8, 8, 3))), "frames must be uint8, 0..255"),
        (put("data/demo_0/obs/agentview_image", np.zeros((4, 8, 8, 4), np.uint8)), "a frame must be"),
        (put("data/demo_0/actions", np.zeros(0, int)), "0 actions and 4 rows of rewards"),
        (huge, "a frame has 243 MB, accepted are 67"),
        (huge_chunks, "has chunks of 805 MB"),
        (endless, "10000000004 steps need"),
        (linked, "actions in it is a link to another place, which is not followed"),
        (external, "actions takes its numbers from another file, which is not read"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, change, message, capsys):
    path = write_robomimic(tmp_path / "demos.hdf5", [made(4, i) for i in range(2)], next_obs=False)
    with h5py.File(path, "r+") as file:
        change(file)
    assert main(["import-episodes", f"hdf5={path}", f"out={tmp_path / 'data'}"]) == 1
    error = capsys.readouterr().err
    assert message in error and ("demos.hdf5" in error or "steps need" in error)
    assert "Traceback" not in error and not (tmp_path / "data").exists()


@pytest.mark.parametrize("given", ["action_low=0.5", "action_high=2,3", "action_low=nan"])
def test_bounds_of_single_actions_are_integers(tmp_path, given, capsys):
    path = write_robomimic(tmp_path / "demos.hdf5", [made(4, i) for i in range(2)])
    assert main(["import-episodes", f"hdf5={path}", given, f"out={tmp_path / 'data'}"]) == 1
    name, value = given.split("=")
    assert f"an action is one integer, so {name} must be one, got {value}" in capsys.readouterr().err


def test_files_that_are_no_episodes(tmp_path):
    def error_of(**options):
        with pytest.raises(DatasetError) as error:
            imported(tmp_path / "a.hdf5", tmp_path / "data", **options)
        return str(error.value)

    assert re.search(r"a\.hdf5 cannot be read as a file of episodes: No such file", error_of())
    (tmp_path / "a.hdf5").write_text("not this")
    assert "cannot be read as a file of episodes" in error_of()
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["numbers"] = np.zeros(3)
    assert "it holds no episodes" in error_of() and "found numbers" in error_of()
    write_robomimic(tmp_path / "a.hdf5", [made(4)])
    assert "there is no 'obs/top' (obs_key) in /data/demo_0; found actions, " in error_of(obs_key="obs/top")
    assert "there is no 'success' (terminated_key)" in error_of(terminated_key="success")
    content = (tmp_path / "a.hdf5").read_bytes()
    (tmp_path / "a.hdf5").write_bytes(content[: len(content) // 2])
    assert "truncated file" in error_of()
    (tmp_path / "a.hdf5").unlink()
    (tmp_path / "a.hdf5").mkdir()
    assert "cannot be read as a file of episodes" in error_of()
