"""The key `training.backend`, and the keys that it replaces."""

from __future__ import annotations

import pytest

pytest.importorskip("hydra")
from diamond_gym.errors import CheckpointError, DeviceError, InvalidInputError
from trainers.diamond import run as launch
from trainers.diamond.config import BACKENDS_OF_TRAINING, from_yaml, parse, to_yaml

FORMER = [
    (["training.compile=true"], "inductor"),
    (["training.compile=false"], "auto"),
    (["training.cuda_graphs=true"], "auto"),
    (["training.cuda_graphs=false"], "eager"),
    (["training.compile=True", "training.cuda_graphs=false"], "inductor"),
]


@pytest.mark.parametrize(("arguments", "backend"), FORMER)
def test_former_keys_are_mapped_with_a_warning_that_names_the_new_one(arguments, backend):
    with pytest.warns(DeprecationWarning, match=f"deprecated, give training.backend={backend}"):
        assert parse(["preset=embedded", *arguments]).training.backend == backend


@pytest.mark.parametrize(("value", "backend"), [("true", "inductor"), ("false", "auto")])
def test_the_published_key_is_understood(value, backend):
    assert parse([f"training.compile_wm={value}"]).training.backend == backend


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["training.backend=openvino"], "accepted are auto, eager, inductor, cuda_graph"),
        (["training.compile=maybe"], "training.compile=maybe: accepted are true and false"),
        (["training.compile=true", "training.backend=eager"], "training.backend replaces training.compile"),
    ],
)
def test_wrong_backends(arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        parse(arguments)


@pytest.mark.parametrize("name", BACKENDS_OF_TRAINING)
def test_backends_are_accepted(name):
    assert parse([f"training.backend={name}"]).training.backend == name


@pytest.mark.parametrize(
    ("former", "backend"),
    [("compile: false\n  cuda_graphs: true", "auto"), ("compile: true\n  cuda_graphs: true", "inductor")],
)
def test_configurations_of_earlier_runs_are_read(tmp_path, former, backend):
    text = to_yaml(parse([]))
    assert "  backend: auto\n" in text
    file = tmp_path / "trainer.yaml"
    file.write_text(text.replace("  backend: auto\n", f"  {former}\n"))
    config = from_yaml(file)
    assert config.training.backend == backend and to_yaml(config).replace(backend, "auto") == text
    file.write_text(text.replace("  backend: auto\n", "  compile: maybe\n"))
    with pytest.raises(CheckpointError, match=r"training\.compile=maybe: accepted are true and false"):
        from_yaml(file)


def test_cuda_graphs_without_cuda_are_refused_before_a_folder_is_made(tmp_path):
    config = parse(["preset=smoke", "game=Breakout", "common.device=cpu", "training.backend=cuda_graph"])
    with pytest.raises(DeviceError, match="needs a CUDA device"):
        launch.train(config, outputs=tmp_path, command="train", progress=False)
    assert not list(tmp_path.iterdir())
