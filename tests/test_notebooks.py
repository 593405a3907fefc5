"""The notebooks of the documentation run, with smaller numbers, and are kept without outputs."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from tests.paths import ROOT
from trainers.sb3.settings import PRESETS

SMALL = {
    "first_steps": {"NUM_STEPS": 5, "NUM_REAL_STEPS": 4, "NUM_FUTURE_STEPS": 2},
    "agent_in_imagination": {
        "TOTAL_TIMESTEPS": 128,
        "NUM_ENVS": 2,
        "HORIZON": 8,
        "NUM_GAMES": 2,
        "MAX_GAME_STEPS": 20,
    },
}
"""Numbers that replace those in the cell with the tag "parameters"."""
FOLDER = ROOT / "docs" / "notebooks"


def read(name: str) -> NotebookNode:
    """Read a notebook and check its form."""
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(book)
    return book


def code_cells(book: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def parameters(book: NotebookNode) -> NotebookNode:
    """The one cell with the tag that Papermill also replaces numbers in."""
    (cell,) = [cell for cell in code_cells(book) if "parameters" in cell.metadata.get("tags", ())]
    return cell


def run_small(name: str, folder: Path) -> NotebookNode:
    """Run all cells of a notebook in a folder, with the numbers of `SMALL`; a cell's error is raised."""
    book = read(name)
    parameters(book).source += "".join(f"\n{key} = {value}" for key, value in SMALL[name].items())
    return NotebookClient(book, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()


def pictures(book: NotebookNode) -> list[str]:
    """The types of the pictures that a notebook shows."""
    kinds = [kind for cell in code_cells(book) for out in cell.outputs for kind in out.get("data", ())]
    return [kind for kind in kinds if kind.startswith("image/")]


def printed(book: NotebookNode) -> str:
    return "".join(out.get("text", "") for cell in code_cells(book) for out in cell.outputs)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder; kernels import the packages of this repository."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


@pytest.mark.slow
def test_first_steps_run(elsewhere):
    book = run_small("first_steps", elsewhere)
    assert code_cells(book)[0].outputs == [], "nothing is installed where the package is"
    assert pictures(book).count("image/gif") == 3
    assert "(64, 64, 3) uint8 Discrete(4)" in printed(book)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.slow
def test_an_agent_learns_in_imagination(elsewhere):
    book = run_small("agent_in_imagination", elsewhere)
    assert code_cells(book)[0].outputs == [], "nothing is installed where the packages are"
    assert pictures(book).count("image/gif") == 1
    for player in ("untrained", "learned from 128 imagined steps", "the agent in the package"):
        assert re.search(rf"^{player} +2 ", printed(book), re.M), "each player's score of two games"


def test_the_agent_learns_with_the_settings_of_the_agent_in_the_package():
    source = "".join(
        cell.source for cell in code_cells(read("agent_in_imagination")) if "PPO(" in cell.source
    )
    (call,) = [
        x for x in ast.walk(ast.parse(source)) if isinstance(x, ast.Call) and ast.unparse(x.func) == "PPO"
    ]
    given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    assert {"clip_range": 0.2, **given} == {**PRESETS["ppo"], "seed": 0, "verbose": 1}


def test_every_notebook_is_run():
    assert {file.stem for file in FOLDER.glob("*.ipynb")} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_notebooks_are_kept_without_outputs(name):
    cells = code_cells(read(name))
    assert [(cell.outputs, cell.execution_count) for cell in cells] == [([], None)] * len(cells)


@pytest.mark.parametrize("name", SMALL)
def test_small_numbers_replace_all_numbers_of_the_notebook(name):
    lines = parameters(read(name)).source.splitlines()
    assert {line.partition(" = ")[0] for line in lines} == set(SMALL[name])
    for line in lines:
        value, _, why = line.partition(" = ")[2].partition("  # ")
        assert ast.literal_eval(value) > SMALL[name][line.partition(" = ")[0]] and why


@pytest.mark.parametrize("name", SMALL)
def test_the_first_cell_installs_this_package_if_something_is_missing(name):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    condition, install = code_cells(read(name))[0].source.splitlines()[-2:]
    assert condition.startswith("if ") and "find_spec" in condition
    found = re.fullmatch(r' +%pip install --quiet "?([\w-]+)(?:\[(\w+)\])?"?', install)
    assert found is not None and found[1] == project["name"]
    assert found[2] is None or found[2] in project["optional-dependencies"]
