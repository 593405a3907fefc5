"""Episodes recorded while playing: what is in them, training on them, Minari, the dataset mode."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from diamond_gym import cli
from diamond_gym.data.episodes import Episode, EpisodeDataset
from diamond_gym.data.import_episodes import ImportOptions, import_episodes
from diamond_gym.envs.env import DiamondEnv
from diamond_gym.errors import CacheError, DatasetError, InvalidInputError, MissingDependencyError
from diamond_gym.play import export_minari, settings, start
from diamond_gym.play.browser import DatasetBrowser, find_datasets
from diamond_gym.play.keys import DATASET_SHORTCUTS, Command, find
from diamond_gym.play.recording import ORIGINAL_OBS, TRAJECTORY, Recorder
from diamond_gym.play.session import PlaySession
from tests import recordings, worlds
from trainers.diamond import data
from trainers.diamond.cli import main as train

SIZE = 256


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> DiamondEnv:
    checkpoint = worlds.save_tiny_world(tmp_path_factory.mktemp("endless"), end_bias=-30)
    return DiamondEnv("Breakout", checkpoint=checkpoint, **worlds.PLAIN)


def make_session(
    env: DiamondEnv, root: Path, *, store_trajectory: bool = False, store_original: bool = False
) -> PlaySession:
    """Make a session with a horizon of 6."""
    env.set_sampler(num_denoising_steps=1, order=1, s_churn=0)
    given = settings.parse(["game=Breakout", "seed=3", f"--size={SIZE}", "--horizon=6", "--human"])
    session = start.session_in(
        env, given, Recorder(root, store_trajectory, store_original), tell=lambda line: None
    )
    session.rest = 0
    return session


def play(session: PlaySession, count: int, *held: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Take steps and return the frames before and after each."""
    frames = []
    for _ in range(count):
        before = session.place.trail.frame
        session.advance(held)
        frames.append((before, session.place.trail.frame))
    return frames


def channels_first(frame: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frame.transpose(2, 0, 1))


def test_finished_episodes_are_saved_as_they_were(env: DiamondEnv, tmp_path: Path):
    session = make_session(env, tmp_path / "dataset")
    first = play(session, 6, "d")
    assert "episode saved in" in session.message and "rec_Breakout-wm_H" in session.message
    play(session, 1 + 6, "a")  # the first of them resets
    play(session, 1 + 3)
    (folder,) = (tmp_path / "dataset").iterdir()
    assert folder.name == "rec_Breakout-wm_H"
    dataset = EpisodeDataset(folder)
    dataset.check()
    assert dataset.lengths.tolist() == [6, 6]
    for t, (before, after) in enumerate(first):
        following = dataset[0].obs[t + 1] if t < 5 else dataset[0].final_observation
        assert torch.equal(dataset[0].obs[t], channels_first(before))
        assert following is not None and torch.equal(following, channels_first(after))
    assert dataset[0].act.tolist() == [2] * 6 and dataset[1].act.tolist() == [3] * 6
    assert dataset[0].trunc.tolist() == [0] * 5 + [1] and not dataset[0].end.any()
    assert dataset[0].info.keys() == {"final_observation"}
    assert (
        session.close()
        == f"2 episode(s) saved under {tmp_path / 'dataset'}; an unfinished one of 3 steps was not"
    )


def test_who_played_and_where(env: DiamondEnv, tmp_path: Path):
    session = make_session(env, tmp_path)
    session.command(Command.CONTROLLER)
    play(session, 7)
    play(session, 2)
    session.command(Command.CONTROLLER)  # a person takes over
    play(session, 4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rec_Breakout-wm_H", "rec_Breakout-wm_π"]
    session.command(Command.PREVIOUS_PLACE)
    while not session.moment.is_over:
        session.advance([" "])
    (episode,) = EpisodeDataset(tmp_path / "rec_Breakout-train_H")
    assert episode.end[-1] == 1 and not episode.trunc.any()


def test_an_episode_that_is_cut_off_is_not_kept(env: DiamondEnv, tmp_path: Path):
    session = make_session(env, tmp_path)
    play(session, 3)
    session.command(Command.RESET)
    play(session, 6)
    session.command(Command.NEXT_PLACE)
    play(session, 2)
    session.command(Command.IMAGINE)
    play(session, 6)
    assert EpisodeDataset(tmp_path / "rec_Breakout-wm_H").lengths.tolist() == [6, 6]


def test_going_back_rewinds_the_recording(env: DiamondEnv, tmp_path: Path):
    session = make_session(env, tmp_path)
    play(session, 2, "d")
    session.command(Command.SAVE)
    play(session, 3, "a")
    session.command(Command.LOAD)
    play(session, 4, " ")
    session.command(Command.LOAD)
    play(session, 4)
    dataset = EpisodeDataset(tmp_path / "rec_Breakout-wm_H")
    assert [episode.act.tolist() for episode in dataset] == [[2, 2, 1, 1, 1, 1], [2, 2, 0, 0, 0, 0]]


def test_denoising_trajectories(env: DiamondEnv, tmp_path: Path):
    session = make_session(env, tmp_path, store_trajectory=True)
    play(session, 3)
    session.command(Command.DENOISING_STEPS, 3)
    play(session, 3)
    (episode,) = EpisodeDataset(tmp_path / "rec_Breakout-wm_H")
    trajectory = episode.info[TRAJECTORY]
    assert trajectory.dtype == torch.float16 and trajectory.shape == (6, 4, 3, 64, 64)
    frames = torch.cat([episode.obs[1:], episode.final_observation[None]])  # pyright: ignore
    ends = ((trajectory[:, -1].float() + 1) * 127.5).round().to(torch.uint8)
    assert (ends.int() - frames.int()).abs().max() <= 1
    assert trajectory[:, 0].float().std() == pytest.approx(1, abs=0.05)
    assert torch.equal(trajectory[0, 1], trajectory[0, 3])  # it had one step then, so its end repeats
    assert not torch.equal(trajectory[5, 1], trajectory[5, 3])


def test_original_screens(env: DiamondEnv, tmp_path: Path):
    session = make_session(env, tmp_path, store_original=True)
    session.command(Command.PREVIOUS_PLACE)
    while not session.moment.is_over:
        session.advance([" "])
    (episode,) = EpisodeDataset(tmp_path / "rec_Breakout-train_H")
    screens = episode.info[ORIGINAL_OBS]
    assert screens.shape == (len(episode) + 1, 3, 210, 160) and screens.dtype == torch.uint8
    frames = torch.cat([episode.obs, episode.final_observation[None]])  # pyright: ignore[reportOptionalSubscript]
    for screen, frame in zip(screens, frames, strict=True):
        small = cv2.resize(screen.permute(1, 2, 0).numpy(), (64, 64), interpolation=cv2.INTER_AREA)
        assert np.array_equal(small, frame.permute(1, 2, 0))


def test_a_disk_that_fails_loses_nothing(env: DiamondEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    session = make_session(env, tmp_path)
    append, is_full = EpisodeDataset.append, True

    def fail_at_first(self: EpisodeDataset, episode: Episode) -> int:
        if is_full:
            raise CacheError("the disk is full")
        return append(self, episode)

    monkeypatch.setattr(EpisodeDataset, "append", fail_at_first)
    play(session, 6, "d")
    assert "1 episode(s) not saved yet" in session.message and "disk is full" in session.message
    play(session, 7, "a")
    with pytest.raises(CacheError, match=r"2 episode\(s\) not saved"):
        session.close()
    is_full = False
    assert "2 episode(s) saved" in session.close()
    dataset = EpisodeDataset(tmp_path / "rec_Breakout-wm_H")
    assert [episode.act.tolist() for episode in dataset] == [[2] * 6, [3] * 6]


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_played():
    with pytest.raises(CacheError, match="cannot write to the folder"):
        Recorder(Path("/dev/null/dataset"))


def test_recorded_episodes_train_a_world_model(
    env: DiamondEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    session = make_session(env, tmp_path / "dataset", store_trajectory=True)
    play(session, 7 * 3)
    folder = tmp_path / "dataset" / "rec_Breakout-wm_H"
    data.check_static_dataset(folder)
    monkeypatch.chdir(tmp_path)
    more = [
        "common.device=cpu",
        "training.num_threads=1",
        "training.num_epochs=1",
        "training.parts=[denoiser]",
    ]
    steps = "denoiser.training.steps_first_epoch=2"
    code = train(["train", "game=Breakout", "preset=smoke", f"static_dataset.path={folder}", *more, steps])
    assert code == 0 and list(tmp_path.glob("outputs/*/*/checkpoints/agent_versions/agent_epoch_*.pt"))


# --- Minari


@pytest.fixture
def minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    library = pytest.importorskip("minari")
    pytest.importorskip("h5py")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return library


def assert_same(one: Episode, other: Episode) -> None:
    for name in ("obs", "act", "rew", "end", "trunc"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.final_observation is not None and other.final_observation is not None
    assert torch.equal(one.final_observation, other.final_observation)


def test_export_to_minari_is_lossless(minari: Any, env: DiamondEnv, tmp_path: Path):
    session = make_session(env, tmp_path, store_trajectory=True)
    session.command(Command.CONTROLLER)
    play(session, 14)
    folder = tmp_path / "rec_Breakout-wm_π"
    text = export_minari.export(export_minari.ExportOptions(str(folder), "breakout/dream-v0", num_actions=4))
    assert text == "breakout/dream-v0: 2 episodes, 12 steps"
    exported = minari.load_dataset("breakout/dream-v0")
    assert exported.action_space.n == 4 and exported.observation_space.shape == (64, 64, 3)
    originals = list(EpisodeDataset(folder))
    infos = exported[0].infos[TRAJECTORY]
    stored = originals[0].info[TRAJECTORY].permute(0, 1, 3, 4, 2)
    assert len(infos) == 7 and not infos[0].any() and np.array_equal(infos[1:], stored)
    import_episodes(
        ImportOptions(str(tmp_path / "again"), minari="breakout/dream-v0", test_every=0), progress=False
    )
    for one, other in zip(originals, EpisodeDataset(tmp_path / "again" / "train"), strict=True):
        assert_same(one, other)


def test_raw_rewards_and_unfinished_episodes(minari: Any, tmp_path: Path):
    folder = recordings.save_dataset(tmp_path / "episodes", 2, size=16)
    EpisodeDataset(folder).append(recordings.episode(5, finished=False, size=16))
    text = export_minari.export(export_minari.ExportOptions(str(folder), "made/up-v0"))
    assert text == "made/up-v0: 2 episodes, 25 steps; 1 unfinished left out"
    exported = minari.load_dataset("made/up-v0")
    assert exported[1].rewards.tolist() == EpisodeDataset(folder)[1].rew.tolist()
    assert exported[0].terminations.tolist() == [False] * 11 + [True] and exported.action_space.n == 3
    with pytest.raises(InvalidInputError, match="has a dataset of that name"):
        export_minari.export(export_minari.ExportOptions(str(folder), "made/up-v0"))


@pytest.mark.parametrize(
    "arguments, kind, message",
    [
        (["id=a/b-v0"], InvalidInputError, "missing: dataset=..."),
        (["dataset=x"], InvalidInputError, "missing: id=..."),
        (["dataset=nowhere", "id=a/b-v0"], DatasetError, "no dataset at nowhere"),
        (["dataset=EPISODES", "id=a/b-v0", "num_actions=2"], InvalidInputError, "hold action 2"),
        (["dataset=EPISODES", "id=a b"], InvalidInputError, "got 'a b'"),
        (["dataset=UNFINISHED", "id=a/b-v0"], DatasetError, "no finished episodes"),
        (["datset=x"], InvalidInputError, "did you mean dataset"),
    ],
)
def test_what_cannot_be_exported(
    minari: Any, tmp_path: Path, arguments: list[str], kind: type[Exception], message: str
):
    episodes = recordings.save_dataset(tmp_path / "episodes", 2, size=16)
    EpisodeDataset(tmp_path / "unfinished", create=True).append(
        recordings.episode(5, finished=False, size=16)
    )
    names = {"EPISODES": str(episodes), "UNFINISHED": str(tmp_path / "unfinished")}
    for name, folder in names.items():
        arguments = [argument.replace(name, folder) for argument in arguments]
    with pytest.raises(kind, match=message):
        export_minari.export(cli.parse(export_minari.ExportOptions, arguments))
    assert not minari.list_local_datasets()


def test_without_minari_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'diamond-gym\[minari\]'"):
        export_minari.export(export_minari.ExportOptions("x", "a/b-v0"))


# --- dataset mode


@pytest.fixture
def browser(tmp_path: Path) -> DatasetBrowser:
    recordings.save_dataset(tmp_path / "first", 3, length=12)
    recordings.save_dataset(tmp_path / "run" / "train", 2, length=30)
    EpisodeDataset(tmp_path / "third", create=True).extend([])
    return DatasetBrowser(find_datasets(tmp_path), ["NOOP", "FIRE", "RIGHT"], size=SIZE)


def facts(browser: DatasetBrowser) -> dict[str, str]:
    return {name: value for column in browser.view().header for name, value in column}


def press(browser: DatasetBrowser, *keys: str) -> dict[str, str]:
    for key in keys:
        shortcut = find(DATASET_SHORTCUTS, key)
        assert shortcut is not None
        browser.command(shortcut.command)
    return facts(browser)


def test_every_key_of_the_dataset_mode(browser: DatasetBrowser):
    assert facts(browser)["Dataset"] == "first (1 of 2)" and facts(browser)["Episode"] == "0 of 3"
    for keys, step in (
        (["right"], "1 of 12"),
        (["left", "left"], "0 of 12"),
        (["pageup"], "10 of 12"),
        (["pageup"], "12 of 12"),
        (["pagedown"], "2 of 12"),
        (["enter"], "0 of 12"),
    ):
        assert press(browser, *keys)["Time step"] == step
    assert press(browser, "up")["Episode"] == "1 of 3" and facts(browser)["Time step"] == "0 of 13"
    assert press(browser, "down", "down")["Episode"] == "2 of 3"
    assert press(browser, "m")["Dataset"] == "train (2 of 2)" and facts(browser)["Episode"] == "0 of 2"
    assert press(browser, "m")["Dataset"] == "first (1 of 2)"


def test_facts_of_a_time_step(browser: DatasetBrowser):
    shown = press(browser, "right", "right")  # rewards are -5, 0, 5, -5, ... and actions 1, 2, 1, ...
    assert shown["Reward"] == "5" and shown["Action"] == "FIRE" and shown["Truncated / done"] == "no / no"
    assert (shown["Return so far"], shown["Return to go"], shown["Return"]) == ("0", "0", "0")
    shown = press(browser, "left")
    assert shown["Reward"] == "0" and (shown["Return so far"], shown["Return to go"]) == ("-5", "5")
    shown = press(browser, "left")
    assert shown["Reward"] == "-5" and (shown["Return so far"], shown["Return to go"]) == ("-5", "5")
    shown = press(browser, "pageup", "pageup", "left")
    assert shown["Time step"] == "11 of 12" and shown["Truncated / done"] == "no / yes"
    shown = press(browser, "right")
    assert shown["Reward"] == "-" and (shown["Return so far"], shown["Return to go"]) == ("0", "0")


def test_frames_of_the_dataset_mode(browser: DatasetBrowser):
    for step in range(13):
        assert (browser.view().picture == step).all()
        press(browser, "right")
    press(browser, "up")
    assert (browser.view().picture == 10).all()


def test_an_episode_that_cannot_be_read_leaves_the_one_that_is_shown(browser: DatasetBrowser):
    browser.dataset.episode_path(1).write_bytes(b"nonsense")
    with pytest.raises(DatasetError, match="cannot be read as an episode"):
        browser.command(Command.NEXT_EPISODE)
    assert facts(browser)["Episode"] == "0 of 3" and (browser.view().picture == 0).all()


def test_recorded_denoising_is_shown(env: DiamondEnv, tmp_path: Path):
    session = make_session(env, tmp_path, store_trajectory=True)
    play(session, 6)
    browser = DatasetBrowser(find_datasets(tmp_path), None, size=SIZE)
    assert facts(browser)["Action"] == "0"
    cell = SIZE // 5
    assert not browser.view().picture[-cell:].any()  # the frame before the first step has no denoising
    press(browser, "right")
    noise = browser.view().picture[-cell:, SIZE // 2 - cell : SIZE // 2]
    assert noise.std() > 50


@pytest.mark.parametrize("make, message", [(False, "there is no folder"), (True, "found notes.txt")])
def test_no_datasets(tmp_path: Path, make: bool, message: str):
    folder = tmp_path / "dataset"
    if make:
        folder.mkdir()
        (folder / "notes.txt").write_text("none")
    with pytest.raises(DatasetError, match=message):
        find_datasets(folder)


def test_a_dataset_itself_is_accepted(tmp_path: Path):
    recordings.save_dataset(tmp_path / "only", 2)
    assert [dataset.path.name for dataset in find_datasets(tmp_path / "only")] == ["only"]
