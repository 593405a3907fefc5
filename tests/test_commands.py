"""Every command in README and documentation, now or formerly, is accepted and runs at a small size."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from diamond_gym import cli
from diamond_gym.check_model import CheckSettings
from diamond_gym.data.episodes import EpisodeDataset
from diamond_gym.data.import_episodes import ImportOptions
from diamond_gym.data.record import RecordOptions
from diamond_gym.evaluate.events import EventSettings
from diamond_gym.evaluate.settings import Settings as EvaluateSettings
from diamond_gym.export_onnx.settings import Settings as ExportOnnxSettings
from diamond_gym.play import settings as play
from diamond_gym.play.export_minari import ExportOptions as ExportMinariOptions
from tests import others_data, worlds
from tests.checkpoints.test_hub import lay_out_as_cached
from tests.paths import ROOT
from tests.test_docs import PAGES, write_my_world
from trainers.diamond import config as train
from trainers.diamond.cli import ResumeSettings
from trainers.diamond.cli import main as trainer
from trainers.diamond.curves import CurvesOptions
from trainers.diamond.publish import ExportOptions, PublishOptions
from trainers.report.__main__ import ReportSettings
from trainers.sb3 import settings as sb3
from trainers.sb3.loop import LoopSettings
from trainers.sweep.settings import SweepSettings

EARLIER = """
diamond_gym.demo --game Breakout --steps 200 --out .
diamond_gym.play game=Breakout -r
diamond_gym.play outputs/DATE/TIME
diamond_gym.play game=Breakout --human --film film.mp4 --frames 30 --fps 15 --size 640 --no-header -n 40
diamond_gym.play game=Breakout -r --store-denoising-trajectory --store-original-obs
trainers.diamond train game=Freeway collection.train.temperature=0.01
trainers.diamond train game=Breakout hydra.run.dir=outputs/one
trainers.diamond train env.train.id=BreakoutNoFrameskip-v4 common.devices=0
trainers.diamond train game=Breakout denoiser.objective=ddpm out=DDPM_RUN
benchmarks.drift edm=RUN ddpm=DDPM_RUN
trainers.contexts game=Pong out=FILE max_contexts=8000
trainers.sb3 train game=Breakout contexts=RUN/contexts.safetensors horizon=32 total_timesteps=1e6 out=b
"""
"""Commands of earlier READMEs that the pages no longer show."""

STEPS = [
    f"{part}.training.{steps}=2" for part in train.PARTS for steps in ("steps_first_epoch", "steps_per_epoch")
]
TRAINING = ["preset=smoke", "common.device=cpu", "training.num_threads=1", "training.num_epochs=1", *STEPS]
TRAINING += ["collection.test.num_final_episodes=1", "collection.test.max_episode_steps=20"]
WORLD = f"{' '.join(TRAINING)} 'training.parts=[denoiser,rew_end_model]' evaluation.should=false"
SB3 = ["total_timesteps=128", "num_envs=2", "eval_every=500", "eval_episodes=1", "final_episodes=1"]
SB3 += ["max_game_steps=20", "checkpoint=RUN", "device=cpu"]
SMALL: dict[str, list[str]] = {
    "diamond_gym.demo": ["checkpoint=RUN", "steps=2"],
    "diamond_gym.play": ["frames=3", "size=256", "device=cpu"],
    "diamond_gym.evaluate": ["episodes=2", "max_episode_steps=60", "horizon=3", "starts=2", "device=cpu"],
    "trainers.diamond train": TRAINING,
    "trainers.diamond export": ["num_contexts=4"],
    "trainers.diamond push-to-hub": ["dry_run=true", "out=FOLDER", "num_contexts=4"],
    "trainers.diamond record": ["num_steps=60"],
    "trainers.sb3 train": SB3,
    "trainers.sb3 evaluate": ["episodes=1", "max_game_steps=20", "device=cpu"],
    "trainers.sb3 demo": ["steps=2", "device=cpu", "checkpoint=RUN"],
    "trainers.sb3 loop": [*SB3, "rounds=2", "collect_steps=60", "data=RUN/dataset", f"world={WORLD}"],
    "trainers.contexts": ["num_steps=300", "max_contexts=8"],
    "benchmarks.throughput": ["paper=false", "real=false", "seconds=0.01", "num_envs=1", "device=cpu"],
    "benchmarks.drift": ["episodes=2", "starts=2", "horizon=3", "num_denoising_steps=1", "device=cpu"],
}
"""Arguments that replace those of the same keys, by the program and its subcommand."""

FAST = [
    "diamond_gym.play game=Breakout",
    "diamond_gym.play -d",
    "trainers.diamond resume run=outputs/DATE/TIME",
    "trainers.diamond curves run=outputs/DATE/TIME",
    "trainers.diamond export run=outputs/DATE/TIME out=my_breakout",
    "trainers.diamond record env=my_module:MyGame-v0 out=recordings num_steps=50000",
    "trainers.diamond import-episodes episodes=recordings out=data/MyGame",
    "trainers.diamond import-episodes hdf5=demos.hdf5 out=data/robomimic",
    "trainers.diamond import-episodes hdf5=flat.hdf5 out=data/d4rl",
    "trainers.diamond import-episodes videos=films out=data/films",
    "trainers.diamond import-episodes lerobot=lerobot_dataset out=data/lerobot",
]
"""Commands that also run in this process, in this order."""


def commands_of(text: str) -> Iterator[str]:
    """Return the text after `python -m` in the Bash of a page, without comments."""
    for block in re.findall(r"^```bash\n(.*?)^```$", text, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:2] == ["python", "-m"]:
                yield shlex.join(words[2:])


PUBLISHED = list(dict.fromkeys(x for page in PAGES for x in commands_of(page.read_text("utf-8"))))
COMMANDS = [*PUBLISHED, *EARLIER.split("\n")[1:-1]]
NOT_HERE = ("trainers.sweep", "trainers.report", "http.server")
PROGRAMS = [x for x in dict.fromkeys(shlex.split(x)[0] for x in COMMANDS) if x not in NOT_HERE]
"""What runs here; sweeps, their reports and the page without Python have tests of their own."""


def program_of(words: list[str]) -> str:
    """Return the module of a command, with its subcommand if `SMALL` has one."""
    two = " ".join(words[:2])
    return two if two in PARSERS else words[0]


def made_small(command: str) -> list[str]:
    """Return the words of a command, with smaller numbers."""
    words = shlex.split(command)
    small = SMALL.get(program_of(words), [])
    if words[0] == "diamond_gym.play" and "game=Breakout" in words:
        small = [*small, "checkpoint=RUN"]
    keys = {x.partition("=")[0] for x in small}
    kept, is_value = [], False
    for word in words:
        key = word.removeprefix("--").partition("=")[0].replace("-", "_")
        if is_value:
            is_value = False
        elif key not in keys:
            kept.append(word)
        else:
            is_value = word.startswith("--") and "=" not in word and key != "dry_run"
    return [*kept, *small]


def parse_training(arguments: list[str]) -> None:
    """Parse the arguments of `trainers.diamond train`."""
    train.parse(train.split_run_folder(arguments)[0])


def parser(kind: type[Any]) -> Callable[[list[str]], object]:
    """Return a function that parses the arguments of a dataclass."""
    return lambda arguments: cli.parse(kind, arguments)


PARSERS: dict[str, Callable[[list[str]], object]] = {
    "diamond_gym.play": play.parse,
    "diamond_gym.play export-minari": parser(ExportMinariOptions),
    "diamond_gym.evaluate": parser(EvaluateSettings),
    "diamond_gym.evaluate.events": parser(EventSettings),
    "diamond_gym.check_model": parser(CheckSettings),
    "diamond_gym.export_onnx": parser(ExportOnnxSettings),
    "trainers.diamond train": parse_training,
    "trainers.diamond resume": parser(ResumeSettings),
    "trainers.diamond curves": parser(CurvesOptions),
    "trainers.diamond export": parser(ExportOptions),
    "trainers.diamond push-to-hub": parser(PublishOptions),
    "trainers.diamond record": parser(RecordOptions),
    "trainers.diamond import-episodes": parser(ImportOptions),
    "trainers.sb3 train": parser(sb3.TrainSettings),
    "trainers.sb3 evaluate": parser(sb3.EvaluateSettings),
    "trainers.sb3 demo": parser(sb3.DemoSettings),
    "trainers.sb3 export-onnx": parser(sb3.ExportOnnxSettings),
    "trainers.sb3 loop": parser(LoopSettings),
    "trainers.report": parser(ReportSettings),
    "trainers.sweep": lambda arguments: cli.parse(SweepSettings, arguments, rest="keys"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the commands name: runs, episodes, a module, published weights."""
    folder = tmp_path_factory.mktemp("commands")
    run = folder / "RUN"
    assert trainer(["train", "game=Breakout", *TRAINING, f"out={run}"]) == 0
    versions = run / "checkpoints" / "agent_versions"
    shutil.copy(versions / "agent_epoch_00001.pt", versions / "agent_epoch_00012.pt")
    (folder / "WORLD").symlink_to(run)
    (folder / "EPISODES").symlink_to(run / "dataset")
    num_steps = EpisodeDataset(run / "dataset" / "train").num_steps
    content = {"weights": torch.ones(num_steps), "places": torch.zeros(num_steps, 2, dtype=torch.uint8)}
    save_file(content, folder / "step_weights.safetensors")
    (folder / "outputs" / "DATE").mkdir(parents=True)
    (folder / "outputs" / "DATE" / "TIME").symlink_to(run)
    shutil.copytree(run / "dataset", folder / "dataset")
    register = "import gymnasium\ngymnasium.register('MyGame-v0', 'tests.moving_dot:MovingDot')\n"
    (folder / "my_module.py").write_text(register)
    episodes = [others_data.made(12, seed) for seed in range(2)]
    others_data.write_robomimic(folder / "demos.hdf5", episodes)
    others_data.write_d4rl(folder / "flat.hdf5", episodes)
    others_data.write_videos(folder / "films", episodes)
    others_data.write_lerobot(folder / "lerobot_dataset", episodes)
    write_my_world(folder)
    weights = folder / "Pong.pt"
    torch.save(worlds.tiny_agent(num_actions=6).state_dict(), weights)
    lay_out_as_cached(folder / "hf", weights, "Pong")
    return folder


@pytest.mark.parametrize("command", [x for x in COMMANDS if not x.startswith("http.server")])
def test_commands_are_understood_as_they_stand(command):
    words = shlex.split(command)
    program = program_of(words)
    if program in PARSERS:
        PARSERS[program](words[len(program.split()) :])
    else:
        assert program in SMALL, f"say in PARSERS or SMALL what {program} is"


@pytest.mark.parametrize("command", FAST)
def test_fast_commands_run_in_this_process(command, folder, monkeypatch, capsys):
    assert command in COMMANDS
    module, *arguments = made_small(command)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"{module}.__main__" if is_package(module) else module, run_name="__main__")
    assert ended.value.code == 0, capsys.readouterr().err


def is_package(module: str) -> bool:
    return (ROOT / module.replace(".", "/")).is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(
    "program",
    list(dict.fromkeys(shlex.split(x)[0] for x in COMMANDS if "sweep" not in x and "http.server" not in x)),
)
def test_commands_run(program, folder, monkeypatch):
    """Commands run in processes of their own, in the order of the pages: some need files of earlier ones."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    environment["DIAMOND_GYM_CACHE"] = str(folder / "cache")
    for made in ("recordings", "data", "my_breakout"):
        shutil.rmtree(folder / made, ignore_errors=True)
    for command in (x for x in COMMANDS if shlex.split(x)[0] == program):
        words = [sys.executable, "-m", *made_small(command)]
        run = serves if "--web" in words else completes
        run(words, cwd=folder, env=environment)


def completes(words: list[str], **where: Any) -> None:
    """Run a command to its end."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, **where)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"


def serves(words: list[str], **where: Any) -> None:
    """Run a command that serves a page, request the page, and stop it."""
    process = subprocess.Popen([*words, "port=0"], stdout=subprocess.PIPE, text=True, **where)
    assert process.stdout is not None
    try:
        url = next(line.split()[2] for line in process.stdout if line.startswith("play at "))
        with urllib.request.urlopen(url, timeout=60) as page:
            assert b"<html" in page.read()
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 143


def test_made_small():
    assert made_small("diamond_gym.demo --game Breakout --steps 200 --out .") == shlex.split(
        "diamond_gym.demo --game Breakout --out . checkpoint=RUN steps=2"
    )


def test_commands_of_a_page():
    page = "```bash\npython -m a b=1   # why\npython -m c 'd=[1]' \\\n  e=2\nmake test\n```\npython -m no\n"
    assert list(commands_of(page)) == ["a b=1", "c 'd=[1]' e=2"]
    assert len(PUBLISHED) > 20


@pytest.mark.parametrize("target", ["demo", "test", "fidelity", "bench", "bench-long", "endurance", "check"])
def test_make_knows_what_readmes_name(target):
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and " -m " in done.stdout
