"""Untrusted files: damaged ones are refused with one kind of error, at once, and nothing in them runs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from gymnasium.spaces import Box, Discrete
from stable_baselines3 import PPO

from diamond_gym import untrusted
from diamond_gym.checkpoints import load_agent, load_world, published_run, save_world
from diamond_gym.checkpoints.contexts import ContextBank
from diamond_gym.checkpoints.description import WorldDescription
from diamond_gym.data.episodes import Episode, EpisodeDataset
from diamond_gym.data.recorder import RecordedEpisode
from diamond_gym.errors import CheckpointError, DatasetError, DiamondGymError, InvalidInputError
from diamond_gym.world.sampler import DiffusionSamplerConfig
from tests import worlds
from trainers.diamond.config import TrainerConfig, from_yaml, to_yaml
from trainers.diamond.run_folder import RunFolder
from trainers.sb3 import agents

GIB = 2**30
SECONDS = 10
"""Most seconds to refuse a file, which takes a fraction of one; unpacking gigabytes would take more."""


class Canary:
    """An object that makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def an_episode(length: int = 5) -> Episode:
    zeros = torch.zeros(length, dtype=torch.uint8)
    obs = torch.zeros(length, 3, 8, 8, dtype=torch.uint8)
    return Episode(obs, torch.zeros(length, dtype=torch.int64), torch.zeros(length), zeros, zeros.clone())


# --- a small valid file of each kind, and its reader


def write_world(folder: Path) -> Path:
    worlds.save_tiny_world(folder)
    return folder / "model.safetensors"


def write_contexts(folder: Path) -> Path:
    worlds.contexts(num_contexts=1).save(folder / "contexts.safetensors")
    return folder / "contexts.safetensors"


def write_pt(folder: Path) -> Path:
    torch.save(worlds.tiny_agent().state_dict(), folder / "agent.pt")
    return folder / "agent.pt"


def write_episode(folder: Path) -> Path:
    an_episode().save(folder / "0.pt")
    return folder / "0.pt"


def write_index(folder: Path) -> Path:
    EpisodeDataset(folder, create=True).extend([an_episode(), an_episode(3)])
    return folder / "info.pt"


def write_recording(folder: Path) -> Path:
    flags = np.zeros(3, bool)
    obs = np.zeros((4, 8, 8, 3), np.uint8)
    RecordedEpisode(obs, np.zeros(3, int), np.zeros(3), flags, flags, 4).save(folder / "x.npz")  # pyright: ignore
    return folder / "x.npz"


def write_description(folder: Path) -> Path:
    agent = worlds.tiny_agent().config
    WorldDescription(agent, DiffusionSamplerConfig(), "Breakout", None).save(folder / "world.json")
    return folder / "world.json"


def write_config(folder: Path) -> Path:
    (folder / "config").mkdir()
    (folder / "config" / "trainer.yaml").write_text(to_yaml(TrainerConfig()))
    return folder / "config" / "trainer.yaml"


def write_state(folder: Path) -> Path:
    parts = {"denoiser": {"module": {"weight": torch.zeros(3)}}}
    RunFolder(folder).save_state({"epoch": 1, "parts": parts})
    return RunFolder(folder).state_file


def read_state(path: Path) -> Any:
    return RunFolder(path.parents[1]).load_state()


def write_zip(folder: Path) -> Path:
    shutil.copy(agents.EMBEDDED / "Breakout.zip", folder / "agent.zip")
    return folder / "agent.zip"


def read_zip(path: Path) -> Any:
    return agents.load_agent(path, device="cpu")


FILES: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Any], type[DiamondGymError]]] = {
    "world": (write_world, load_agent, CheckpointError),
    "contexts": (write_contexts, ContextBank.load, CheckpointError),
    "weights": (write_pt, load_agent, CheckpointError),
    "episode": (write_episode, Episode.load, DatasetError),
    "index": (write_index, lambda path: EpisodeDataset(path.parent), DatasetError),
    "recording": (write_recording, RecordedEpisode.load, DatasetError),
    "description": (write_description, WorldDescription.load, CheckpointError),
    "config": (write_config, from_yaml, CheckpointError),
    "published config": (write_config, lambda path: published_run.describe(path.parents[1]), CheckpointError),
    "state": (write_state, read_state, CheckpointError),
    "agent of Stable-Baselines3": (write_zip, read_zip, CheckpointError),
}
SLOW = ("agent of Stable-Baselines3", "world", "weights")
"""Number of damaged versions per kind of file; each takes a tenth of a second."""


@pytest.mark.parametrize("kind", FILES)
def test_damaged_files_give_one_kind_of_error_that_names_them(kind, tmp_path):
    write, read, error = FILES[kind]
    path = write(tmp_path)
    read(path)
    good, rng = path.read_bytes(), np.random.default_rng(0)
    accepted = (error, InvalidInputError) if kind.startswith("agent") else error
    num_read = 0
    for trial in range(int(os.environ.get("FUZZ", "0")) or (6 if kind in SLOW else 40)):
        bad = bytearray(good)
        if trial % 2:
            del bad[rng.integers(len(bad)) :]
        else:  # half of them at the beginning or the end, where files have their headers
            edge = rng.integers(2) and min(len(bad), 2000)
            places = rng.integers(edge or len(bad), size=rng.integers(1, 6))
            for place in -places if rng.integers(2) else places:
                bad[place] ^= 1 << rng.integers(8)
        path.write_bytes(bad)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(path)
            num_read += 1  # a flipped pixel is no error
        except accepted as refused:
            message = str(refused)
            assert str(path) in message and len(message) > len(str(path)) + 20, message
            assert "weights_only" not in message and "allow_pickle" not in message
    path.write_bytes(good)
    read(path)


@pytest.mark.parametrize("kind", FILES)
def test_an_empty_file_a_folder_and_a_pipe_are_refused(kind, tmp_path):
    write, read, error = FILES[kind]
    path = write(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(error, match=rf"{path.name}.* "):
        read(path)
    path.unlink()
    os.mkfifo(path)  # reading it would block forever
    with contextlib.suppress(DiamondGymError):  # the episodes of a dataset are also found without an index
        read(path)


# --- code


def pickled(folder: Path, canary: Path) -> dict[str, Path]:
    """Make files of each kind that can hold pickled Python, with a canary in them."""
    evil = Canary(canary)
    torch.save({"denoiser.x": evil}, folder / "agent.pt")
    torch.save({**an_episode()._content(), "info": {"x": evil}}, folder / "0.pt")
    RunFolder(folder).save_state({"epoch": evil})
    (folder / "data").mkdir()
    torch.save({"is_static": evil}, folder / "data" / "info.pt")
    np.savez(folder / "x.npz", obs=np.array([evil], dtype=object))
    return {
        "weights": folder / "agent.pt",
        "episode": folder / "0.pt",
        "state": RunFolder(folder).state_file,
        "index": folder / "data" / "info.pt",
        "recording": folder / "x.npz",
    }


def test_nothing_in_a_file_is_run_and_no_message_advises_it(tmp_path):
    canary = tmp_path / "canary"
    for kind, path in pickled(tmp_path, canary).items():
        _, read, error = FILES[kind]
        with pytest.raises(error, match="could run code, so it was not loaded") as refused:
            read(path)
        assert not untrusted._UNSAFE_ADVICE.search(str(refused.value)), kind
    assert not canary.exists()
    with pytest.raises(FileExistsError):  # checks that the files run code when they are unpickled
        canary.mkdir()
        torch.load(tmp_path / "agent.pt", weights_only=False)


def with_canary(source: Path, target: Path, canary: Path, key: str) -> Path:
    """Make an agent's zip with a canary as a pickled value in its settings."""
    import base64

    import cloudpickle

    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "data":
                data = json.loads(content)
                data[key] = {
                    ":type:": "x",
                    ":serialized:": base64.b64encode(cloudpickle.dumps(Canary(canary))).decode(),
                } | {
                    name: x
                    for name, x in (data[key] if isinstance(data[key], dict) else {}).items()
                    if name[0] != ":"
                }
                content = json.dumps(data)
            new.writestr(name, content)
    return target


@pytest.mark.parametrize(
    "key", ["policy_class", "observation_space", "action_space", "lr_schedule", "policy_kwargs"]
)
def test_an_agents_zip_is_loaded_without_what_is_pickled_in_it(key, tmp_path):
    canary = tmp_path / "canary"
    path = with_canary(agents.EMBEDDED / "Breakout.zip", tmp_path / "agent.zip", canary, key)
    agent = agents.load_agent(path, device="cpu")
    assert not canary.exists()
    usual = PPO.load(agents.EMBEDDED / "Breakout.zip", device="cpu")
    frame = np.random.default_rng(0).integers(0, 255, (1, 12, 64, 64), np.uint8)
    assert agent.predict(frame, deterministic=True)[0] == usual.predict(frame, deterministic=True)[0]
    assert agent.num_timesteps == usual.num_timesteps
    ours, theirs = agent.policy.state_dict(), usual.policy.state_dict()
    assert all(torch.equal(ours[name], x) for name, x in theirs.items())
    with contextlib.suppress(CheckpointError):  # as a canary is no policy
        agents.load_agent(path, device="cpu", trust=True)
    assert canary.exists(), "the zip does what this test is about"


def test_a_policy_that_only_pickled_python_describes_asks_for_trust(tmp_path):
    env_spaces = Box(0, 255, (12, 64, 64), np.uint8), Discrete(4)
    agent = PPO(
        "CnnPolicy",
        None,
        device="cpu",
        _init_setup_model=False,
        policy_kwargs={"features_extractor_kwargs": {"features_dim": 64}},
    )  # pyright: ignore
    agent.observation_space, agent.action_space, agent.n_envs = *env_spaces, 1
    agent._setup_model()
    agent.save(tmp_path / "own.zip")
    with pytest.raises(
        CheckpointError, match=r"own\.zip has another policy than ppo usually has.*trust=true"
    ):
        agents.load_agent(tmp_path / "own.zip", device="cpu")
    assert agents.load_agent(tmp_path / "own.zip", device="cpu", trust=True).policy.features_dim == 64


# --- sizes


def bomb_recording(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("obs.npy", bytes(2**20))
        archive.getinfo("obs.npy").file_size = 3 * GIB  # the file has a thousandth of that
    return folder / "x.npz"


def bomb_recording_that_lies(folder: Path) -> Path:
    with zipfile.ZipFile(write_recording(folder)) as old, zipfile.ZipFile(folder / "y.npz", "w") as new:
        for name in old.namelist():
            if name != "obs.npy":
                new.writestr(name, old.read(name))
        with new.open("obs.npy", "w") as file:
            np.lib.format.write_array_header_1_0(
                file, {"shape": (10**9, 64, 64, 3), "fortran_order": False, "descr": "|u1"}
            )
    return folder / "y.npz"


def bomb_weights(folder: Path) -> Path:
    torch.save({"denoiser.x": torch.zeros(2**14)}, folder / "small.pt")
    with (
        zipfile.ZipFile(folder / "small.pt") as old,
        zipfile.ZipFile(folder / "agent.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return folder / "agent.pt"


def bomb_episode(folder: Path) -> Path:
    length = 10**9
    content = an_episode(1)._content()
    fields = {
        name: content[name].expand(length, *content[name].shape[1:])
        for name in ("obs", "act", "rew", "end", "trunc")
    }
    torch.save(content | fields, folder / "0.pt")
    assert (folder / "0.pt").stat().st_size < 10_000
    return folder / "0.pt"


def bomb_of_shared_weights(folder: Path) -> Path:
    weight = torch.zeros(2**16, dtype=torch.float16)
    torch.save({f"denoiser.x{i}": weight.view(-1) for i in range(1000)}, folder / "agent.pt")
    return folder / "agent.pt"


def bomb_contexts(folder: Path) -> Path:
    compressed = zlib.compress(bytes(2**20))
    header = {"format_version": 1, "shape": [1, 1, 2**14, 2**15, 4]}
    safetensors.torch.save_file(
        {
            "frames": torch.frombuffer(bytearray(compressed), dtype=torch.uint8),
            "act": torch.zeros(1, 1, dtype=torch.int64),
        },
        folder / "contexts.safetensors",
        {"diamond_gym.contexts": json.dumps(header)},
    )
    return folder / "contexts.safetensors"


def bomb_config(folder: Path) -> Path:
    path = write_config(folder)
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    path.write_text("\n".join(["a0: &a0 [1, 1]", *levels, "game: *a11"]))
    return path


def bomb_text(folder: Path) -> Path:
    path = write_description(folder)
    with path.open("wb") as file:
        file.truncate(2 * GIB)
    return path


BOMBS = {
    "an .npz": (bomb_recording, "recording", "would unpack to 32.. MB, accepted are 2147"),
    "an .npz whose array is not there": (
        bomb_recording_that_lies,
        "recording",
        r"obs\.npy has 0 bytes of numbers, its shape",
    ),
    "deflated weights": (bomb_weights, "weights", "is compressed, as PyTorch never does"),
    "an episode of stride 0": (bomb_episode, "episode", r"tensor of shape \(1000000000.* claims more"),
    "weights that share their bytes": (
        bomb_of_shared_weights,
        "weights",
        "its tensors claim 131 MB, the file has",
    ),
    "contexts": (bomb_contexts, "contexts", "needs more than 536870912 bytes"),
    "aliases in a configuration": (bomb_config, "config", "refers to itself"),
    "aliases in a published one": (bomb_config, "published config", "refers to itself"),
    "a description of 2 GiB": (bomb_text, "description", "it has 2147483648 bytes"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_small_files_that_unpack_to_gigabytes_are_refused_at_once(name, tmp_path):
    make, kind, message = BOMBS[name]
    _, read, error = FILES[kind]
    path = make(tmp_path)
    begin = time.process_time()
    with pytest.raises(error, match=rf"{path.name}.*{message}"):
        read(path)
    assert time.process_time() - begin < 1


# --- numbers


def described(folder: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], str | None]) -> Path:
    """Make a tiny world and change its weights or description."""
    path = write_world(folder)
    tensors, metadata = untrusted.read_tensors(path)
    description = json.loads(metadata["diamond_gym.world"])
    text = change(tensors, description)
    metadata["diamond_gym.world"] = json.dumps(description) if text is None else text
    safetensors.torch.save_file(tensors, path, metadata)
    return path


def sampler(**values: Any) -> Any:
    return lambda tensors, description: description["sampler"].update(values)


def without_levels(tensors: dict[str, torch.Tensor], description: Any) -> None:
    for name in [name for name in tensors if ".d_blocks" in name or ".encoder.blocks" in name]:
        del tensors[name]


def not_a_number(tensors: dict[str, torch.Tensor], description: Any) -> None:
    tensors["denoiser.inner_model.conv_out.weight"][0, 0] = float("nan")


WRONG = {
    "steps": (sampler(num_steps_denoising=10**9), "num_steps_denoising must be an integer from 1 to 1000"),
    "true for a number": (sampler(num_steps_denoising=True), "must be an integer from 1 to 1000, got True"),
    "rho of 0": (sampler(rho=0), "rho must be a number, at least 0.1 and at most 100, got 0"),
    "a huge integer": (sampler(rho=10**400), "rho must be a number.* got an integer of 1329 bits"),
    "infinite churn": (
        sampler(s_churn="inf"),
        r"s_churn must be a number, at least 0 and at most 1e\+06, got inf",
    ),
    "negative noise": (sampler(s_noise=-1), "s_noise must be a number, at least 0"),
    "sigma that underflows": (sampler(sigma_min=1e-300), "sigma_min must be a number, at least 1e-05"),
    "infinite sigma": (sampler(sigma_max="inf"), "sigma_max must be a number"),
    "text": (sampler(rho="seven"), "could not convert string"),
    "depth": (lambda tensors, description: "[" * 100_000, "nested too deep"),
    "NaN in JSON": (lambda tensors, description: '{"sampler": {"rho": NaN}}', "NaN is not JSON"),
    "widths": (
        lambda tensors, d: d["agent"]["denoiser"]["inner_model"].update(channels=[10**9, 16]),
        "denoiser.inner_model.channels .* from 1 to 16384, got 1000000000",
    ),
    "sigma_data of 0": (
        lambda t, d: d["agent"]["denoiser"].update(sigma_data=0),
        "sigma_data must be a number, above 0",
    ),
    "no levels": (without_levels, "has no level"),
    "weights that are no numbers": (not_a_number, r"conv_out\.weight holds numbers that are not finite"),
}


@pytest.mark.parametrize("name", WRONG)
def test_numbers_of_a_world_are_in_range(name, tmp_path):
    change, message = WRONG[name]
    path = described(tmp_path, change)
    begin = time.process_time()
    with pytest.raises(CheckpointError, match=rf"model\.safetensors.*{message}"):
        load_world(None, path, **worlds.PLAIN)
    assert time.process_time() - begin < SECONDS


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("num_denoising_steps", 10**12),
        ("num_denoising_steps", 0),
        ("s_churn", float("inf")),
        ("s_churn", float("nan")),
        ("order", 3),
    ],
)
def test_keywords_of_a_world_are_in_range(keyword, value, tiny_world):
    with pytest.raises(InvalidInputError, match="must be"):
        load_world(None, tiny_world, **worlds.PLAIN, **{keyword: value})


def test_weights_that_are_no_numbers_are_neither_read_nor_written(tmp_path):
    agent = worlds.tiny_agent()
    weights = agent.state_dict()
    name = "rew_end_model.lstm.weight_ih_l0"
    weights[name][0, 0] = float("inf")
    torch.save(weights, tmp_path / "agent.pt")
    with pytest.raises(CheckpointError, match=rf"agent\.pt.*{name} holds numbers that are not finite"):
        load_agent(tmp_path / "agent.pt")
    told = {"game": None, "action_meanings": None, "sampler": DiffusionSamplerConfig()}
    with pytest.raises(InvalidInputError, match=rf"float32: {name} holds"):
        save_world(tmp_path / "world", agent, **told)
    agent = worlds.tiny_agent()
    with torch.no_grad():
        agent.state_dict()[name][0, 0] = 1e6
    with pytest.raises(InvalidInputError, match=rf"cannot be saved in float16: {name} holds"):
        save_world(tmp_path / "world", agent, **told, dtype="float16")
    assert not (tmp_path / "world").exists()
    state = {"epoch": 1, "parts": {"denoiser": {"module": {"weight": torch.tensor([float("nan")])}}}}
    RunFolder(tmp_path).save_state(state)
    with pytest.raises(CheckpointError, match=r"state\.pt.*weight holds numbers that are not finite"):
        RunFolder(tmp_path).load_state()


EPISODES = {
    "a frame after the end that NumPy does not know": (
        {"info": {"screens": torch.zeros(3, dtype=torch.bfloat16)}},
        "screens in its info is of torch.bfloat16",
    ),
    "frames of no numbers": ({"obs": torch.zeros(5, 3, 8, 8, device="meta")}, "not dense"),
    "sparse ends": ({"end": torch.zeros(5).to_sparse()}, "not dense"),
    "rewards of another type": ({"rew": torch.zeros(5, dtype=torch.bfloat16)}, "rew must be torch.float32"),
    "rewards that are no numbers": (
        {"rew": torch.full((5,), float("nan"))},
        "rew holds a number that is not",
    ),
    "a list for a tensor": ({"act": [0] * 5}, "act must be a tensor, got list"),
}


@pytest.mark.parametrize("name", EPISODES)
def test_fields_of_an_episode_are_tensors_of_numbers(name, tmp_path):
    change, message = EPISODES[name]
    torch.save(an_episode()._content() | change, tmp_path / "0.pt")
    with pytest.raises(DatasetError, match=rf"0\.pt.*{message}"):
        Episode.load(tmp_path / "0.pt")


@pytest.mark.parametrize(
    "change",
    [
        {"lengths": 5},
        {"lengths": ["a"]},
        {"lengths": [5, -3]},
        {"lengths": [5, 2**70]},
        {"counter_rew": 5},
        {"counter_end": {"a": 1}},
    ],
)
def test_an_index_is_made_of_numbers(change, tmp_path):
    path = write_index(tmp_path)
    torch.save(torch.load(path, weights_only=False) | change, path)
    with pytest.raises(DatasetError, match=r"info\.pt cannot be read as the index of a dataset: .{10}"):
        EpisodeDataset(tmp_path)


@pytest.mark.parametrize("name", ["act", "frames"])
def test_contexts_are_of_types_that_numpy_knows(name, tmp_path):
    path = write_contexts(tmp_path)
    tensors, metadata = untrusted.read_tensors(path)
    safetensors.torch.save_file(tensors | {name: tensors[name].bfloat16()}, path, metadata)
    with pytest.raises(
        CheckpointError, match=r"contexts\.safetensors cannot be read as a file of start contexts"
    ):
        ContextBank.load(path)


def test_a_configuration_looks_nothing_up(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    path = write_config(tmp_path)
    text = path.read_text().replace("name: null", "name: ${oc.env:SECRET}", 1)
    path.write_text(text)
    assert "${oc.env:SECRET}" in text and "hunter2" not in repr(from_yaml(path))
    assert "${oc.env:SECRET}" in repr(from_yaml(path))


def test_a_reason_is_never_blank_and_never_advises_an_unsafe_load():
    for error in (
        EOFError(),
        KeyError(101),
        AssertionError(),
        MemoryError(),
        RecursionError("maximum recursion"),
    ):
        assert len(untrusted.reason(error)) > 15
    for text in ("Weights only load failed", "set allow_pickle=True", "do it only if you trust the source"):
        assert untrusted.reason(ValueError(text)) == untrusted._PICKLED
