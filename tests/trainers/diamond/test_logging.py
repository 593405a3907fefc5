"""A run's logs: files that TensorBoard and Weights & Biases can read."""

import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch

from diamond_gym.errors import CacheError, InvalidInputError, MissingDependencyError
from diamond_gym.world.world_model import WorldModel
from tests.recordings import episode
from tests.waiting import wait_until
from tests.worlds import tiny_agent
from trainers.diamond.config import flat, parse
from trainers.diamond.errors import LoggingError
from trainers.diamond.logging import (
    RunLog,
    check_dependencies,
    class_scores,
    draw_starts,
    imagine,
    mean_psnr,
    scalars,
    side_by_side,
    summary,
    to_gif,
)
from trainers.diamond.replay import Replay
from trainers.diamond.run_folder import RunFolder

METRICS = {
    "epoch": 1,
    "denoiser/loss": 0.5,
    "rew_end_model/f1_rew": [0.1, 0.2, 0.3],
    "rew_end_model/confusion_end": [[5, 0], [1, 2]],
}


def gif():
    return to_gif(torch.arange(5 * 8 * 6 * 3, dtype=torch.uint8).reshape(5, 8, 6, 3), 5)


def run_log(folder, *arguments):
    config = parse(["preset=smoke", *arguments])
    return RunLog(RunFolder(folder), config.logging, config.tensorboard, config.wandb, flat(config))


def test_scalars_are_named_after_classes():
    assert scalars(METRICS) == {
        "epoch": 1,
        "denoiser/loss": 0.5,
        "rew_end_model/f1_rew_negative": 0.1,
        "rew_end_model/f1_rew_zero": 0.2,
        "rew_end_model/f1_rew_positive": 0.3,
    }


def test_scores_of_classes():
    confusion = torch.tensor([[8, 2], [1, 0]])
    scores = class_scores(confusion)
    np.testing.assert_allclose(scores["precision"], [8 / 9, 0])
    np.testing.assert_allclose(scores["recall"], [0.8, 0])
    np.testing.assert_allclose(scores["f1"], [16 / 19, 0])
    numbers = summary({"loss": torch.tensor(6.0), "confusion_end": confusion}, 3)
    assert numbers["loss"] == 2 and numbers["confusion_end"] == [[8, 2], [1, 0]]
    assert numbers["recall_end"] == scores["recall"]


def test_tensorboard_reads_curves_and_videos_and_a_resumed_run_replaces_what_it_repeats(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for first, last, loss in ((1, 3, 1.0), (2, 4, 2.0)):
        log = run_log(tmp_path)
        log.open(first)
        for epoch in range(first, last + 1):
            log.log(METRICS | {"epoch": epoch, "denoiser/loss": loss})
        log.video(last, "imagination", gif(), (8, 6))
        log.close()
    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    curve = [(event.step, event.value) for event in events.Scalars("denoiser/loss")]
    assert curve == [(1, 1.0), (2, 2.0), (3, 2.0), (4, 2.0)]
    (image,) = [image for image in events.Images("imagination") if image.step == 4]
    assert image.encoded_image_string == gif() and (image.height, image.width) == (8, 6)
    assert (tmp_path / "videos" / "imagination_epoch_00004.gif").read_bytes() == gif()


def test_tensorboard_has_steps_and_episodes_and_a_resumed_run_replaces_what_it_repeats(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for first, last, loss in ((1, 30, 1.0), (21, 40, 2.0)):
        log = run_log(tmp_path, "logging.every_steps=10", "logging.every_episodes=2")
        log.open(1, {"steps/denoiser": first, "episodes/test": first})
        for index in range(first, last + 1):
            if log.wants_step(index):
                log.step("denoiser", index, {"loss": loss})
            log.episode("test", index, loss, 7)
        log.log(METRICS)
        log.close()

    def curve(series, name):
        events = accumulators.EventAccumulator(str(tmp_path / "tensorboard" / series))
        events.Reload()
        return [(event.step, event.value) for event in events.Scalars(f"{series}/{name}")]

    assert curve("steps/denoiser", "loss") == [(10, 1.0), (20, 1.0), (30, 2.0), (40, 2.0)]
    returns = curve("episodes/test", "return")
    assert returns == [(i, 1.0 if i < 21 else 2.0) for i in range(2, 41, 2)]
    assert curve("episodes/test", "length") == [(i, 7.0) for i in range(2, 41, 2)]


@pytest.mark.parametrize(
    "arguments, wanted",
    [
        ([], [50, 100]),
        (["logging.every_steps=40"], [40, 80]),
        (["logging.every_steps=null"], []),
        (["tensorboard.enabled=false"], []),
        (["tensorboard.enabled=false", "wandb.mode=offline"], [50, 100]),
    ],
)
def test_which_steps_are_logged(tmp_path, arguments, wanted):
    log = run_log(tmp_path, *arguments)
    assert [step for step in range(1, 101) if log.wants_step(step)] == wanted


@pytest.mark.parametrize("key", ["every_steps", "every_episodes"])
def test_an_interval_is_at_least_one(key):
    with pytest.raises(
        InvalidInputError, match=rf"logging\.{key} must be at least 1, or null for none, got 0"
    ):
        parse([f"logging.{key}=0"])


def test_without_tensorboard_the_run_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    log = run_log(tmp_path)
    log.open(1)
    log.log(METRICS)
    log.close()
    assert "tensorboard is not installed" in caplog.text
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == METRICS


def test_a_tensorboard_folder_that_cannot_be_written_is_an_error(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(CacheError, match=r"tensorboard\.enabled=false trains without it"):
        run_log(tmp_path).open(1)


def file_holds(file, text):
    return text in file.read_bytes()


def test_wandb_offline_leaves_a_run_that_can_be_sent_later(tmp_path):
    pytest.importorskip("wandb")
    for epoch in (1, 2):
        log = run_log(tmp_path, "wandb.mode=offline", "wandb.name=a name", "tensorboard.enabled=false")
        log.open(epoch)
        log.step("denoiser", 50 * epoch, {"grad_norm": 3.0})
        log.episode("train", epoch, 12.0, 34)
        log.log(METRICS | {"epoch": epoch})
        log.video(epoch, "imagination", gif(), (8, 6))
        log.close()
    files = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert len({file.stem for file in files}) == 1, "a resumed run keeps its id"
    for file in files:
        for text in (b"denoiser/loss", b"f1_rew_positive", b"a name", b"denoiser.training.batch_size"):
            wait_until(partial(file_holds, file, text))  # wandb's own process may still be writing
        for text in (b"steps/denoiser/grad_norm", b"episodes/train/return", b"episodes/train"):
            wait_until(partial(file_holds, file, text))  # wandb's own process may still be writing
    assert len(list((tmp_path / "wandb").glob("offline-run-*/files/media/videos/*.gif"))) == 2


def test_wandb_that_cannot_be_reached_is_an_error(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def init(**kwargs):
        raise wandb.errors.CommError("nobody answers")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(LoggingError, match=r"wandb\.mode=online: nobody answers; offline writes"):
        run_log(tmp_path, "wandb.mode=online", "tensorboard.enabled=false").open(1)


def test_wandb_that_is_not_installed_is_told_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    check_dependencies(parse([]).wandb)
    with pytest.raises(MissingDependencyError, match=r"pip install 'diamond-gym\[wandb\]'"):
        check_dependencies(parse(["wandb.mode=offline"]).wandb)


def test_the_resume_script_works_from_any_folder(tmp_path):
    run = RunFolder(tmp_path / "a run")
    run.write_resume_script("/bin/echo")
    moved = tmp_path / "moved"
    run.path.rename(moved)
    output = subprocess.run([moved / "scripts" / "resume.sh", "--x"], capture_output=True, text=True)
    assert output.stdout == f"-m trainers.diamond resume run={moved} --x\n"


def test_open_loop_imagination_beside_reality():
    agent = tiny_agent(num_actions=3)
    world_model = WorldModel(agent.denoiser, agent.rew_end_model)
    n = world_model.num_steps_conditioning
    replay = Replay([episode(length, number=i) for i, length in enumerate((5, 12, 9))])
    batch = draw_starts(replay, 4, n + 5, seed=0)
    assert batch is not None and batch.mask_padding.all()
    assert draw_starts(replay, 4, 13, seed=0) is None
    imagined = imagine(world_model, batch)
    real = batch.obs[:, n:]
    assert imagined.shape == real.shape == (4, 5, 3, 64, 64)
    frames = side_by_side(real, imagined)
    assert frames.shape == (5, 2 * 66, 4 * 66, 3)
    assert torch.equal(frames[2, :64, 66:130].permute(2, 0, 1), real[1, 2])
    assert torch.equal(frames[4, 66:130, :64].permute(2, 0, 1), imagined[0, 4])
    assert mean_psnr(real, real).tolist() == [60] * 5
    black, white = torch.zeros_like(real), torch.full_like(real, 255)
    assert mean_psnr(black, white).tolist() == [0] * 5
