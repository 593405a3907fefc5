"""Everything that writes files for `benchmarks.kills`, each as small as it can be."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete

from diamond_gym import files as disk
from diamond_gym.checkpoints import load_world
from diamond_gym.checkpoints.contexts import ContextBank
from diamond_gym.data.episodes import Episode, EpisodeDataset
from diamond_gym.data.import_episodes import ImportOptions, import_episodes
from diamond_gym.data.record import RecordOptions, record
from diamond_gym.data.recorder import RecordedEpisode, RecordEpisodes
from diamond_gym.play import export_minari
from trainers.diamond import data as run_data
from trainers.diamond import publish
from trainers.diamond import run as launch
from trainers.diamond.config import parse
from trainers.diamond.run_folder import RunFolder
from trainers.sb3 import loop, training
from trainers.sb3.agents import load_agent
from trainers.sb3.settings import PRESETS, TrainSettings

GAME = "Breakout"
OLD, NEW = b"old" * 1000 + b"\n", b"new" * 2000 + b"\n"
MINARI_ID = "breakout/kills-v0"
_NOTHING: Callable[[Path, Path], None] = lambda folder, inputs: None  # noqa: E731


@dataclass(frozen=True)
class Writer:
    """Something that writes files; its functions get the folder and that of the inputs.

    Attributes:
        name: For people.
        write: A command; it is killed, and called again afterwards.
        read: What a reader does; it raises where files are damaged. What it returns is expressible in JSON.
        prepare: Fills the folder before.
        adds: `read` counts, and each call of `write` adds so much. Otherwise every call leads to one result.
        needs_before: `write` cannot work without what `prepare` has made.
        is_alone: It is not for several processes at once.
        refuses_others: It ends with an error while another process works there, or after it has.
        needs_inputs: It reads what `make_inputs` has made.
    """

    name: str
    write: Callable[[Path, Path], Any]
    read: Callable[[Path, Path], Any]
    prepare: Callable[[Path, Path], Any] = _NOTHING
    adds: bool = False
    needs_before: bool = False
    is_alone: bool = False
    refuses_others: bool = False
    needs_inputs: bool = False


# --- inputs

_TINY_WORLD = ("training.parts=[denoiser,rew_end_model]", "evaluation.should=false", "common.device=cpu")
_FEW_STEPS = tuple(
    f"{part}.training.{key}=2"
    for part in ("denoiser", "rew_end_model", "actor_critic")
    for key in ("steps_first_epoch", "steps_per_epoch")
)
_SHORT: dict[str, Any] = {
    "total_timesteps": 32,
    "num_envs": 2,
    "horizon": 6,
    "eval_every": 16,
    "eval_episodes": 1,
    "device": "cpu",
    "final_episodes": 1,
    "max_game_steps": 10,
}


def make_inputs(folder: Path) -> None:
    """A tiny world model that has learned nothing, as a run and as a world, and the episodes it has seen."""
    config = parse([f"game={GAME}", "preset=smoke", *_TINY_WORLD, *_FEW_STEPS, "training.num_epochs=1"])
    launch.train(config, outputs=folder, folder=folder / "run", command="", progress=False)
    publish.export(publish.ExportOptions(run=str(folder / "run"), out=str(folder / "world")))
    shutil.copytree(folder / "world", folder / "bare")
    (folder / "bare" / "contexts.safetensors").unlink()


def episode(length: int, number: int = 0) -> Episode:
    """A finished episode of small frames."""
    level = (torch.arange(length) + 10 * number) % 256
    end = torch.zeros(length, dtype=torch.uint8)
    end[-1] = 1
    return Episode(
        obs=level.to(torch.uint8)[:, None, None, None].expand(length, 3, 8, 8).contiguous(),
        act=torch.arange(length) % 4,
        rew=torch.ones(length),
        end=end,
        trunc=torch.zeros_like(end),
        info={"final_observation": torch.zeros(3, 8, 8, dtype=torch.uint8)},
    )


# --- files


def _read_replaced(folder: Path, _: Path) -> str:
    content = (folder / "file.txt").read_bytes()
    assert content in (OLD, NEW), f"{len(content)} bytes are neither the old nor the new ones"
    return content[:3].decode()


def _add(folder: Path, _: Path) -> None:
    disk.add_file(disk.numbered(folder / "file.txt"), NEW)


def _add_without_links(folder: Path, inputs: Path) -> None:
    """As on a disk that has no hard links."""

    def link(source: Any, target: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    os.link = link
    _add(folder, inputs)


def _count_added(folder: Path, _: Path) -> int:
    files = disk.visible(folder, "file*.txt")
    assert all(file.read_bytes() == NEW for file in files)
    return len(files)


# --- recordings


class _Tiny(gymnasium.Env[Any, Any]):
    """Grey frames, four steps an episode."""

    observation_space, action_space = Box(0, 255, (8, 8), np.uint8), Discrete(4)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self._steps = 0
        return np.zeros((8, 8), np.uint8), {}

    def step(self, action: Any) -> Any:
        self._steps += 1
        return np.full((8, 8), self._steps, np.uint8), 1.0, self._steps == 4, False, {}


def _record_three(folder: Path, _: Path) -> None:
    with closing(RecordEpisodes(_Tiny(), folder / "recorded")) as env:
        for _episode in range(3):
            env.reset()
            while not env.step(0)[2]:
                pass


def _record(folder: Path, _: Path) -> None:
    record(RecordOptions(env="ALE/Breakout-v5", out=str(folder / "recorded"), num_steps=8), progress=False)


def _count_recorded(folder: Path, _: Path) -> int:
    files = disk.visible(folder / "recorded", "*.npz")
    assert all(len(RecordedEpisode.load(file).act) for file in files)
    return len(files)


# --- the cache of contexts


def _load_bare(folder: Path, inputs: Path) -> None:
    os.environ["DIAMOND_GYM_CACHE"] = str(folder / "cache")
    load_world(GAME, str(inputs / "bare"), device="cpu")


def _read_cache(folder: Path, inputs: Path) -> int:
    files = list((folder / "cache").glob("contexts/*.safetensors"))
    return sum(len(ContextBank.load(file)) for file in files)


# --- episodes


def _save_five(folder: Path, _: Path) -> None:
    EpisodeDataset(folder / "episodes", create=True).extend(episode(3 + i, i) for i in range(5))


def _append_three(folder: Path, _: Path) -> None:
    dataset = EpisodeDataset(folder / "episodes", create=True)
    for i in range(3):
        dataset.append(episode(3, i))


def _check_episodes(folder: Path, _: Path) -> list[int]:
    dataset = EpisodeDataset(folder / "episodes", create=True)
    dataset.check()
    assert dataset.num_steps == sum(map(len, dataset))
    return dataset.lengths.tolist()


def _count_episodes(folder: Path, inputs: Path) -> int:
    return len(_check_episodes(folder, inputs))


def _replace_one(folder: Path, _: Path) -> None:
    EpisodeDataset(folder / "episodes").replace(1, episode(9))


def _cut_back(folder: Path, _: Path) -> None:
    run_data.cut_back(EpisodeDataset(folder / "episodes"), [3, 4, 2])


def _cut_back_to_none(folder: Path, _: Path) -> None:
    dataset = EpisodeDataset(folder / "episodes", create=True)
    run_data.cut_back(dataset, []).append(episode(7))


def _save_test_episodes(folder: Path, _: Path) -> None:
    EpisodeDataset(folder / "dataset" / "test", create=True).extend(episode(3 + i, i) for i in range(3))


def _replace_test_episodes(folder: Path, _: Path) -> None:
    run_data.replace_test_dataset(RunFolder(folder), [episode(5), episode(6)])


def _read_test_episodes(folder: Path, _: Path) -> list[int]:
    dataset = EpisodeDataset(folder / "dataset" / "test", create=True)
    dataset.check()
    return dataset.lengths.tolist()


def _import(folder: Path, _: Path) -> None:
    if not (folder / "imported").is_dir():  # it refuses to import into what is there
        options = ImportOptions(out=str(folder / "imported"), episodes=str(folder / "recorded"), size="8")
        import_episodes(options, progress=False)


def _read_imported(folder: Path, _: Path) -> list[int]:
    for split in ("train", "test") if (folder / "imported").is_dir() else ():
        EpisodeDataset(folder / "imported" / split).check()
    return [len(EpisodeDataset(folder / "imported" / split, create=True)) for split in ("train", "test")]


# --- exports


def _export(folder: Path, inputs: Path, dtype: str = "float16") -> None:
    publish.export(
        publish.ExportOptions(run=str(inputs / "run"), out=str(folder / "world"), dtype=dtype, num_contexts=8)
    )


def _export_old(folder: Path, inputs: Path) -> None:
    _export(folder, inputs, "float32")


def _read_world_if_any(folder: Path, inputs: Path) -> int:
    return _read_world(folder, inputs) if (folder / "world").is_dir() else 0


def _read_world(folder: Path, _: Path) -> int:
    return len(load_world(GAME, str(folder / "world"), device="cpu").contexts.obs)


def _export_to_minari(folder: Path, _: Path) -> None:
    os.environ["MINARI_DATASETS_PATH"] = str(folder / "minari")
    if not (folder / "minari" / MINARI_ID).is_dir():  # it refuses to replace what is there
        options = export_minari.ExportOptions(dataset=str(folder / "episodes"), id=MINARI_ID)
        export_minari.export(options)


def _read_minari(folder: Path, _: Path) -> list[str]:
    import minari

    os.environ["MINARI_DATASETS_PATH"] = str(folder / "minari")
    known = list(minari.list_local_datasets())
    for name in known:
        assert len(list(minari.load_dataset(name).iterate_episodes())) == 5
    return known


# --- runs


def _train_or_resume(folder: Path, arguments: list[str]) -> None:
    """What people do after a kill: resume what is a run, else the same command."""
    run = folder / "run"
    if RunFolder(run).config_file.is_file():
        launch.resume(run, progress=False)
    else:
        launch.train(parse(arguments), outputs=folder, folder=run, command="train", progress=False)


def _train(folder: Path, inputs: Path) -> None:
    arguments = [f"game={GAME}", "preset=smoke", *_TINY_WORLD, *_FEW_STEPS, "training.num_epochs=2"]
    arguments += [f"static_dataset.path={inputs / 'run' / 'dataset'}", "export.should=true"]
    _train_or_resume(folder, [*arguments, "checkpointing.save_agent_every=1", "checkpointing.num_to_keep=1"])


def _train_and_collect(folder: Path, _: Path) -> None:
    arguments = [f"game={GAME}", "preset=smoke", "common.device=cpu", *_FEW_STEPS, "training.num_epochs=2"]
    arguments += ["collection.train.players=null", "collection.train.num_envs=2", "evaluation.every=1"]
    arguments += ["collection.train.first_epoch={min:60,max:100,threshold_rew:1000}"]
    arguments += ["collection.test.players=null", "collection.test.num_final_episodes=1"]
    _train_or_resume(folder, arguments)


def _read_run(folder: Path, _: Path) -> list[Any]:
    run = RunFolder(folder / "run")
    for split in ("train", "test"):
        if run.dataset(split).is_dir():
            EpisodeDataset(run.dataset(split), create=True).check()
    if run.world_folder.is_dir():
        load_world(GAME, str(run.world_folder), device="cpu")
    if not run.state_file.is_file():
        return []
    state = run.load_state()
    weights = [tensor for part in state["parts"].values() for tensor in part["module"].values()]
    newest = run.newest_epoch() if run.agent_files() else 0  # after the first collection, none
    return [state["epoch"], newest, float(sum(x.double().sum() for x in weights))]


def _small_agents() -> None:
    training.FILM_STEPS = 2
    PRESETS["ppo"] = PRESETS["ppo"] | {"n_steps": 8, "batch_size": 8, "n_epochs": 1}


def _learn(folder: Path, inputs: Path) -> None:
    _small_agents()
    settings = TrainSettings(checkpoint=str(inputs / "world"), out=str(folder / "agent"), **_SHORT)
    training.train(settings, progress=False)


def _read_agent(folder: Path, _: Path) -> int | None:
    file = folder / "agent" / "agent.zip"
    return load_agent(file, device="cpu").num_timesteps if file.is_file() else None


def _loop(folder: Path, inputs: Path) -> None:
    _small_agents()
    settings = loop.LoopSettings(
        checkpoint=str(inputs / "run"),
        data=str(inputs / "run" / "dataset"),
        out=str(folder / "loop"),
        rounds=2,
        collect_steps=30,
        world=" ".join(["preset=smoke", "training.num_epochs=1", *_TINY_WORLD, *_FEW_STEPS]),
        **_SHORT,
    )
    loop.loop(settings, progress=False)


def _read_loop(folder: Path, _: Path) -> list[int]:
    agents = sorted(folder.glob("loop/round-*/agent/agent.zip"))
    for data in folder.glob("loop/round-*/*/train"):
        if not data.parent.name.endswith(".partial"):
            EpisodeDataset(data).check()
    return [load_agent(file, device="cpu").num_timesteps for file in agents]


def _put(content: bytes) -> Callable[[Path, Path], None]:
    return lambda folder, _: disk.write_file(folder / "file.txt", content)


_ALL = (
    Writer("replace", _put(NEW), _read_replaced, _put(OLD)),
    Writer("add", _add, _count_added, _add, adds=True),
    Writer("add without links", _add_without_links, _count_added, _add, adds=True),
    Writer("RecordEpisodes", _record_three, _count_recorded, adds=True),
    Writer("record", _record, _count_recorded, adds=True),
    Writer("contexts cache", _load_bare, _read_cache, needs_inputs=True),
    Writer("append episodes", _append_three, _count_episodes, _save_five, adds=True),
    Writer("replace episode", _replace_one, _check_episodes, _save_five, needs_before=True, is_alone=True),
    Writer("cut back", _cut_back, _check_episodes, _save_five, needs_before=True, is_alone=True),
    Writer("cut back to none", _cut_back_to_none, _check_episodes, _save_five, is_alone=True),
    Writer("test episodes", _replace_test_episodes, _read_test_episodes, _save_test_episodes, is_alone=True),
    Writer("import-episodes", _import, _read_imported, _record_three, needs_before=True, refuses_others=True),
    Writer("export", _export, _read_world, _export_old, needs_inputs=True),
    Writer("export anew", _export, _read_world_if_any, needs_inputs=True),
    Writer(
        "export-minari", _export_to_minari, _read_minari, _save_five, needs_before=True, refuses_others=True
    ),
    Writer("diamond run", _train, _read_run, refuses_others=True, needs_inputs=True),
    Writer("diamond run that collects", _train_and_collect, _read_run, refuses_others=True),
    Writer("sb3 run", _learn, _read_agent, refuses_others=True, needs_inputs=True),
    Writer("sb3 loop", _loop, _read_loop, refuses_others=True, needs_inputs=True),
)
WRITERS = {writer.name: writer for writer in _ALL}
