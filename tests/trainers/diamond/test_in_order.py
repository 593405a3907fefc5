"""Test losses use the whole test dataset: segments in order, and measurements on them."""

import numpy as np
import pytest
import torch

from tests.recordings import episode
from tests.worlds import tiny_agent
from trainers.diamond.config import parse
from trainers.diamond.learner import batches_in_order
from trainers.diamond.losses import rew_end_loss
from trainers.diamond.replay import Replay
from trainers.diamond.run import build
from trainers.diamond.run_folder import RunFolder


def test_every_step_lies_in_one_segment_but_single_ones():
    lengths = [5, 12, 13, 1, 20]
    replay = Replay([episode(length, number=i) for i, length in enumerate(lengths)])
    batches = list(batches_in_order(replay, 6, batch_size=4))
    assert [len(batch.obs) for batch in batches] == [4, 4, 1]
    seen = [
        (int(number), int(start) + t)
        for batch in batches
        for number, start, mask in zip(batch.episode, batch.start, batch.mask_padding, strict=True)
        for t in np.flatnonzero(mask)
    ]
    alone = {(2, 12), (3, 0)}
    assert seen == [(i, t) for i, n in enumerate(lengths) for t in range(n) if (i, t) not in alone]
    assert list(batches_in_order(Replay(), 6, batch_size=4)) == []


def test_test_losses_are_of_the_whole_dataset_and_the_same_every_time(tmp_path):
    arguments = ("game=Breakout", "preset=smoke", "common.device=cpu", "rew_end_model.training.batch_size=2")
    config = parse([*arguments, "static_dataset.path=nowhere", "rew_end_model.training.seq_length=6"])
    test = Replay([episode(length, number=i) for i, length in enumerate([5, 12, 13])])
    agent = tiny_agent()
    trainer = build(config, RunFolder(tmp_path), agent, Replay([episode(9)]), test)
    (part,) = [part for part in trainer.learners if part.name == "rew_end_model"]
    part.num_steps = 1
    measured = trainer._measure(part)
    assert measured == trainer._measure(part)
    losses, sizes = [], []
    for batch in batches_in_order(test, 6, batch_size=2):
        with torch.no_grad():
            losses.append(rew_end_loss(agent.rew_end_model, batch)[0].item())
        sizes.append(len(batch.obs))
    assert sizes == [2, 2, 1]
    assert measured["test_loss"] == pytest.approx(np.average(losses, weights=sizes), rel=1e-5)
    assert np.sum(measured["test_confusion_end"]) == 5 * (6 - 1)


def test_the_newest_agent_and_some_earlier_ones_are_kept(tmp_path):
    run = RunFolder(tmp_path)
    kept = {}
    for epoch in range(1, 38):
        run.save_agent(epoch, {"x": torch.tensor(epoch)}, every=5, num_to_keep=3)
        kept[epoch] = sorted(int(path.stem[-5:]) for path in run.agent_file(0).parent.iterdir())
    assert (kept[1], kept[4], kept[5], kept[6]) == ([1], [4], [5], [5, 6])
    assert (kept[35], kept[37]) == ([25, 30, 35], [25, 30, 35, 37])
    assert torch.load(run.agent_file(37))["x"] == 37
    run.save_agent(40, {}, every=5, num_to_keep=None)
    assert len(list(run.agent_file(0).parent.iterdir())) == 4
