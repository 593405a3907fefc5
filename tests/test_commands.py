"""Every command that has been published in a README is still understood."""

from __future__ import annotations

import importlib
import shlex
from pathlib import Path
from typing import Any

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

RUN = "outputs/2026-01-31/12-00-00"


@pytest.mark.parametrize(
    "command",
    [
        "game=Breakout",
        "game=Breakout -r",
        "-d",
        "game=Breakout --web",
        "--pretrained Pong",
        f"{RUN} -d",
        f"{RUN}",
        "game=Breakout --human --film film.mp4 --frames 30 --fps 15 --size 640 --no-header -n 40",
        "game=Breakout -r --store-denoising-trajectory --store-original-obs",
        "game=Breakout --web --host 0.0.0.0 --port 8001",
    ],
)
def test_play(command):
    play.parse(shlex.split(command))


@pytest.mark.parametrize(
    "command",
    [
        "game=Breakout",
        "game=Breakout preset=small",
        f"game=Breakout preset=small training.parts=[actor_critic] initialization.path_to_ckpt={RUN} "
        "static_dataset.path=EPISODES",
        "game=Breakout preset=small training.parts=[actor_critic] training.should=false "
        "training.num_epochs=1 static_dataset.path=EPISODES initialization.path_to_ckpt=agent_epoch_00012.pt",
        "static_dataset.path=data/MyGame preset=small 'training.parts=[denoiser,rew_end_model]'",
        "game=Freeway collection.train.temperature=0.01",
        "game=Breakout denoiser.objective=ddpm",
        f"game=Breakout hydra.run.dir={RUN}",
        "env.train.id=BreakoutNoFrameskip-v4 common.devices=0",
    ],
)
def test_train(command):
    arguments, folder = train.split_run_folder(shlex.split(command))
    train.parse(arguments)
    assert (folder is None) == ("hydra.run.dir" not in command)


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        (ResumeSettings, f"run={RUN}"),
        (CurvesOptions, f"run={RUN}"),
        (ExportOptions, f"run={RUN} out=my_breakout"),
        (PublishOptions, f"run={RUN} repo_id=me/breakout --dry-run out=folder"),
        (RecordOptions, "env=my_module:MyGame-v0 out=recordings num_steps=50000"),
        (ImportOptions, "episodes=recordings out=data/MyGame"),
        (ImportOptions, "minari=atari/breakout/expert-v0 out=data/MyGame"),
        (ExportMinariOptions, "dataset=FOLDER id=breakout/human-v0"),
        (ContextsSettings, "game=Pong out=FILE max_contexts=8000"),
        (EvaluateSettings, f"game=Breakout checkpoint={RUN}"),
        (DemoSettings, "--game Breakout --steps 200 --out ."),
        (sb3.TrainSettings, "game=Breakout horizon=64 num_denoising_steps=2 total_timesteps=375000"),
        (sb3.TrainSettings, "game=Breakout contexts=starts.safetensors horizon=32 total_timesteps=1e6"),
        (sb3.EvaluateSettings, "agent=outputs/sb3/Breakout-ppo-imagination-0 where=real episodes=30"),
        (sb3.DemoSettings, "game=Breakout"),
    ],
)
def test_others(kind: type[Any], command):
    cli.parse(kind, shlex.split(command))


def test_compare():
    arguments = ["fidelity/Breakout/fidelity.json", "diamond_gym/weights/Breakout"]
    assert cli.parse(CompareSettings, arguments, positional=("fidelity", "folder")).folder.name == "Breakout"


PATHS = tuple("run out agent contexts checkpoint captures film beside data episodes dataset".split())
"""Names of keys whose values are, or may be, paths."""


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
        if name in PATHS and not key.is_list:
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
