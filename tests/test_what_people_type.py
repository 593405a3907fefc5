"""Common input: the home folder in any path, and the same mistake in every program."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from diamond_gym import cli
from diamond_gym.data.import_episodes import ImportOptions
from diamond_gym.data.record import RecordOptions
from diamond_gym.demo import Settings as DemoSettings
from diamond_gym.evaluate.compare import CompareSettings
from diamond_gym.evaluate.settings import Settings as EvaluateSettings
from diamond_gym.play import settings as play
from diamond_gym.play.export_minari import ExportOptions as ExportMinariOptions
from trainers.contexts import ContextsSettings
from trainers.diamond import config as train
from trainers.diamond.cli import ResumeSettings
from trainers.diamond.curves import CurvesOptions
from trainers.diamond.publish import ExportOptions, PublishOptions
from trainers.examples import planning, ppo
from trainers.sb3 import settings as sb3
from trainers.sb3.loop import LoopSettings

PATHS = tuple("run out agent contexts checkpoint captures film beside data episodes dataset".split())
"""Names of keys whose values can be paths."""


@pytest.mark.parametrize(
    "kind",
    [
        *(play.Options, ExportMinariOptions, ResumeSettings, CurvesOptions, ExportOptions, PublishOptions),
        *(RecordOptions, ImportOptions, ContextsSettings, EvaluateSettings, DemoSettings, CompareSettings),
        *(
            sb3.TrainSettings,
            sb3.EvaluateSettings,
            sb3.DemoSettings,
            LoopSettings,
            planning.Settings,
            ppo.Settings,
        ),
    ],
)
def test_the_home_folder_may_be_written_in_any_path(kind, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for name, key in cli.keys(kind).items():
        if name in PATHS and key.kind is not int and not key.is_list:
            assert key.kind is Path or key.metadata.get("is_path"), f"{kind.__name__}.{name}"
            (text,) = [cli._value(key, ["~/here"])]
            assert str(text) == "/home/me/here"


def test_the_home_folder_in_the_trainers_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    arguments, folder = train.split_run_folder(["game=Breakout", "out=~/run", "static_dataset.path=~/data"])
    assert str(folder) == "/home/me/run" and train.parse(arguments).static_dataset.path == "/home/me/data"


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("diamond_gym.demo", ["game=Brekout"]),
        ("diamond_gym.evaluate.__main__", ["game=Brekout"]),
        ("diamond_gym.play.__main__", ["game=Brekout"]),
        ("trainers.contexts", ["game=Brekout"]),
        ("trainers.diamond.cli", ["train", "game=Brekout"]),
        ("trainers.sb3.__main__", ["train", "game=Brekout"]),
        ("trainers.sb3.__main__", ["evaluate", "agent=x", "game=Brekout"]),
        ("trainers.sb3.__main__", ["demo", "game=Brekout"]),
        ("trainers.sb3.__main__", ["loop", "game=Brekout"]),
        ("trainers.examples.planning", ["game=Brekout"]),
    ],
)
def test_a_misspelt_game_is_the_same_mistake_everywhere(module, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert importlib.import_module(module).main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "'Brekout': did you mean Breakout" in error
    assert list(tmp_path.iterdir()) == []
