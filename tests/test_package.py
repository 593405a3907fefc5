"""The time and names of importing the package, and its agreement with the packaging files."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import diamond_gym
from diamond_gym.evaluate import compare

ROOT = Path(__file__).resolve().parent.parent


def run_python(code: str) -> str:
    """Run code in a fresh interpreter, in the repository's root, and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.strip()


def test_importing_loads_neither_torch_nor_ale_py():
    heavy = ["torch", "ale_py", "cv2", "trainers", "huggingface_hub", "safetensors"]
    code = f"import sys, diamond_gym; print([m for m in {heavy} if m in sys.modules])"
    assert run_python(code) == "[]"


def test_importing_takes_less_than_300_ms():
    # processor time, because the package is not responsible for waiting while other tests run
    code = "import time; t = time.process_time(); import diamond_gym; print(time.process_time() - t)"
    assert min(float(run_python(code)) for _ in range(5)) < 0.3


def test_world_model_is_imported_on_demand():
    code = (
        "import sys, diamond_gym; from diamond_gym.world.world_model import WorldModel; "
        "print(diamond_gym.WorldModel is WorldModel)"
    )
    assert run_python(code) == "True"


def test_everything_promised_is_there():
    assert set(diamond_gym.__all__) <= set(dir(diamond_gym))
    for name in diamond_gym.__all__:
        assert getattr(diamond_gym, name) is not None


def test_an_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'diamond_gym' has no attribute 'DiamondEnvironment'"):
        _ = diamond_gym.DiamondEnvironment


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "diamond_gym" / "py.typed").is_file()


def test_constraints_pin_exactly_what_pyproject_asks_for():
    assert pins()["torch"] == "2.13.0"
    asked = [
        *project()["dependencies"],
        *(r for extra in project()["optional-dependencies"].values() for r in extra),
    ]
    names = {normal_name(requirement) for requirement in asked} - {"diamond-gym"}
    assert names <= {normal_name(pin) for pin in pins()}


def test_constraints_pin_what_packaging_installs():
    script = (ROOT / ".ci" / "package").read_text("utf-8")
    (tools,) = re.findall(r'^install "\$work/tools" (.+)$', script, re.M)
    assert set(tools.split()) <= set(pins())


def pins() -> dict[str, str]:
    """The versions of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def project() -> dict[str, Any]:
    """The section of pyproject.toml that describes the package."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def normal_name(requirement: str) -> str:
    """Turn "huggingface_hub>=1.0" into "huggingface-hub"."""
    name = requirement.split(">")[0].split("[")[0].strip()
    return name.lower().replace("_", "-")


def test_licence():
    text = (ROOT / "LICENSE").read_text()
    assert text.startswith("MIT License") and "Copyright (c) 2026 the diamond_gym authors" in text


@pytest.mark.parametrize(
    "folder", sorted((ROOT / "diamond_gym" / "weights").glob("[A-Z]*")), ids=lambda x: x.name
)
def test_embedded_worlds_come_with_the_numbers_of_their_cards(folder):
    numbers = compare.read_kept(folder / "fidelity.json")
    assert numbers["settings"]["game"] == folder.name
    assert compare.differences(numbers, numbers)
    assert f"{numbers['steps'][0]['psnr']:.1f}" in (folder / "README.md").read_text()


def instructions() -> list[tuple[str, str]]:
    """The instructions of Containerfile, with their arguments on one line each."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Containerfile").read_text("utf-8"), flags=re.M)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in lines if line]


def arguments(name: str) -> list[str]:
    """What one kind of instruction is given, in order."""
    return [given for instruction, given in instructions() if instruction == name]


def test_the_container_file_copies_what_the_package_is_built_from():
    copied = {source for given in arguments("COPY") for source in given.split()[:-1]}
    sent = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text("utf-8"), re.M)
    assert copied == set(sent) and all((ROOT / source).exists() for source in copied)
    build = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]
    needed = {*build["targets"]["wheel"]["packages"], project()["readme"], *project()["license-files"]}
    assert needed | {"pyproject.toml", "constraints.txt"} == copied


def test_the_container_file_installs_extras_that_exist_on_a_supported_python():
    (base,) = arguments("FROM")
    assert f"Programming Language :: Python :: {base.split(':')[1].split('-')[0]}" in project()["classifiers"]
    (extras,) = re.findall(r'"\.\[(.+)\]"', " ".join(arguments("RUN")))
    assert {"train", "sb3", "evaluate"} <= set(extras.split(",")) <= set(project()["optional-dependencies"])
    assert all("-c constraints.txt" in run for run in arguments("RUN") if "pip install" in run)


def test_the_container_runs_as_nobody_special_in_its_volume():
    assert [name for name, _ in instructions()].index("USER") > max(
        i for i, (name, _) in enumerate(instructions()) if name == "RUN"
    )
    assert arguments("USER")[-1] not in ("root", "0")
    assert arguments("WORKDIR")[-1] == arguments("VOLUME")[-1] == "/outputs"
    (command,) = map(json.loads, arguments("CMD"))
    assert command[:2] == ["python", "-m"] and importlib.util.find_spec(command[2]) is not None
