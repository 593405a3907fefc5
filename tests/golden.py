"""Recorded runs of the published configuration: `python -m tests.golden` records them again.

A run trains each network by 20 updates after a short collection, from `preset=paper`, seed 0, on one CPU
thread. Of every update, the learning rate, loss and gradient norm are recorded, which depend on all earlier
weights, draws and frames.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainers.diamond.config import PARTS, parse
from trainers.diamond.learner import Learner
from trainers.diamond.run import train
from trainers.diamond.run_folder import RunFolder

FOLDER = Path(__file__).parent / "recorded" / "golden"
NUM_UPDATES = 20
COMMON = (
    "game=Breakout",
    "preset=paper",
    "common.device=cpu",
    "common.seed=0",
    "training.num_threads=1",
    "training.num_epochs=1",
    "collection.train.first_epoch.min=100",
    "collection.train.first_epoch.max=100",
    "evaluation.should=false",
    *(f"{part}.training.steps_first_epoch={NUM_UPDATES}" for part in PARTS),
)
SMALL = ("depths=[1]", "channels=[16]", "attn_depths=[0]", "patch_size=4")
RUNS = {
    # the published sizes, with batches that are small enough for a CPU
    "paper": (
        "denoiser.training.batch_size=2",
        "rew_end_model.training.batch_size=2",
        "actor_critic.training.batch_size=1",
    ),
    # everything as published except the sizes of the networks
    "small": (
        *(f"agent.denoiser.inner_model.{x}" for x in ("cond_channels=32", *SMALL)),
        *(f"agent.rew_end_model.{x}" for x in ("lstm_dim=16", "cond_channels=16", *SMALL)),
        *(f"agent.actor_critic.{x}" for x in ("lstm_dim=16", "channels=[8,8]", "down=[1,1]")),
        *(f"{part}.training.batch_size=2" for part in PARTS),
    ),
}
"""Overrides of each run."""


@contextmanager
def updates_recorded() -> Iterator[dict[str, list[list[float]]]]:
    """Within the block, collect learning rate, loss and gradient norm of every update of every network."""
    updates: dict[str, list[list[float]]] = {part: [] for part in PARTS}
    step = Learner.step

    def recorded(self: Learner, *args: Any, **kwargs: Any) -> dict[str, Any]:
        metrics = step(self, *args, **kwargs)
        lr = self.optimizer.param_groups[0]["lr"]
        updates[self.name].append([lr, metrics["loss"].item(), metrics["grad_norm"].item()])
        return metrics

    Learner.step = recorded
    try:
        yield updates
    finally:
        Learner.step = step


def run(name: str, outputs: Path, *more: str) -> dict[str, Any]:
    """Train a run, with further overrides, and return its record."""
    config = parse([*COMMON, *RUNS[name], *more])
    with updates_recorded() as updates:
        folder = RunFolder(train(config, outputs=outputs, command="train", progress=False))
    epoch = json.loads(folder.metrics_file.read_text())
    return {"dataset_steps": epoch["collect/dataset_steps"], **updates}


def recorded(name: str) -> dict[str, Any]:
    """Read the record of a run."""
    return json.loads((FOLDER / f"{name}.json").read_text())


if __name__ == "__main__":
    for chosen in sys.argv[1:] or RUNS:
        with tempfile.TemporaryDirectory() as outputs:
            lines = [f'  "{key}": {json.dumps(value)}' for key, value in run(chosen, Path(outputs)).items()]
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / f"{chosen}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
