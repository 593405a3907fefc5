"""The picture of a run's metrics: what is drawn, and the error when there is nothing to draw."""

import json
import os
import subprocess
import sys

import cv2
import pytest

from diamond_gym.errors import InvalidInputError
from tests.paths import ROOT
from trainers.diamond import curves
from trainers.diamond.cli import main

LINES = [
    {
        "epoch": 1,
        "denoiser/loss": 0.5,
        "rew_end_model/test_f1_rew": [0.0, 0.9, 0.25],
        "actor_critic/lr": 1e-4,
    },
    {"epoch": 2, "denoiser/loss": 0.25, "denoiser/test_loss": 0.375},
    {"epoch": 2, "test/return": 3.0, "test/return_std": 1.5},
]


def drawn(axes):
    """Return the (epochs, values) of each label on an axis."""
    handles, labels = axes.get_legend_handles_labels()
    lines = (handle.lines[0] for handle in handles)
    return {label: (*map(list, line.get_data()),) for label, line in zip(labels, lines, strict=True)}


def test_panels_of_what_was_logged():
    panels = {axes.get_title(): drawn(axes) for axes in curves.figure(LINES).axes}
    assert panels == {
        "denoiser loss": {"training": ([1, 2], [0.5, 0.25]), "test episodes": ([2], [0.375])},
        "F1 on test episodes": {"reward -1": ([1], [0.0]), "reward +1": ([1], [0.25])},
        "return in the real game": {"test games": ([2], [3.0])},
    }


def test_the_command(tmp_path, capsys):
    run = tmp_path / "run"
    (run / "config").mkdir(parents=True)
    (run / "config" / "trainer.yaml").touch()
    assert main(["curves", f"run={run}"]) == 2
    assert "nothing to draw yet" in capsys.readouterr().err
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in LINES) + '{"epo')
    assert main(["curves", f"run={run}"]) == 0
    assert cv2.imread(str(run / "curves.png")).std() > 0
    assert main(["curves", f"run={tmp_path / 'no'}"]) == 1
    assert main(["curves"]) == 2
    assert main(["curves", "--help"]) == 0


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "tkagg"])
def test_a_notebooks_backend_does_not_matter(tmp_path, backend):
    """A notebook sets its backend for programs that it starts, where the backend may not be installed."""
    code = f"""
from pathlib import Path
from trainers.sb3 import __main__ as sb3
from trainers.diamond import curves
sb3._require_sb3()
import stable_baselines3.common.logger
curves.pictures.write_figure(curves.figure({LINES!r}), Path("curves.png"))
"""
    env = os.environ | {"MPLBACKEND": backend, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert cv2.imread(str(tmp_path / "curves.png")).std() > 0


def test_nothing_to_draw():
    with pytest.raises(InvalidInputError, match="wait for its first epoch"):
        curves.figure([{"epoch": 1, "actor_critic/lr": 1e-4}])
