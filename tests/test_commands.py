"""Every command that has been published in a README is still understood."""

from __future__ import annotations

import shlex
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
from trainers.report.__main__ import ReportSettings
from trainers.sb3 import settings as sb3
from trainers.sweep.settings import SweepSettings

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
        (ReportSettings, "results=outputs/sweeps/diamond beside=published out=report"),
        (ReportSettings, "results=[a,b] names=[ours,PPO] beside=[DIAMOND,IRIS] games=[Breakout,Pong]"),
    ],
)
def test_others(kind: type[Any], command):
    cli.parse(kind, shlex.split(command))


@pytest.mark.parametrize(
    "command",
    [
        "game=[Breakout,Pong] seed=[0,1,2] preset=small",
        "run=sb3 game=[Breakout,Pong] seed=[0,1,2] total_timesteps=100000",
        "address=auto game=[Breakout,Pong] preset=paper gpus=1 cpus=8 retries=-1 out=/shared/sweeps/paper",
    ],
)
def test_sweep(command):
    cli.parse(SweepSettings, shlex.split(command), rest="keys")


def test_compare():
    arguments = ["fidelity/Breakout/fidelity.json", "diamond_gym/weights/Breakout"]
    assert cli.parse(CompareSettings, arguments, positional=("fidelity", "folder")).folder.name == "Breakout"
