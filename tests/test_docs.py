"""README and documentation: snippets run, links lead somewhere, the README stays short."""

from __future__ import annotations

import doctest
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import cv2
import gymnasium
import pytest
import yaml

from diamond_gym import DiamondEnv, DiamondVectorEnv, WorldModel
from diamond_gym.data.recorder import RecordEpisodes
from diamond_gym.games.atari import AtariEnv
from tests.test_package import pins

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "_build" not in page.parts]
_SNIPPET = re.compile(r"^(?:<!-- snippet: (?P<how>.*?) -->\n)?```python\n(?P<code>.*?)^```$", re.M | re.S)
_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")


class Snippet(NamedTuple):
    """A Python snippet of a page.

    Attributes:
        page: The page, from the repository's root.
        line: Line where it begins.
        code: The code to run, with smaller numbers where the comment above it says so.
        how: "" or "slow".
    """

    page: str
    line: int
    code: str
    how: str


def snippets_of(page: str, text: str) -> list[Snippet]:
    """Find the Python of a page, under comments such as <!-- snippet: slow, learn(9_999) -> learn(99) -->."""
    found = []
    for match in _SNIPPET.finditer(text):
        how, _, change = (match["how"] or "").partition(", ")
        code = match["code"]
        if how not in ("", "slow"):
            raise ValueError(f"{page}: a snippet is slow or nothing, got {how!r}")
        if " -> " in change:
            old, new = change.split(" -> ")
            if old not in code:
                raise ValueError(f"{page}: the snippet holds no {old}")
            code = code.replace(old, new)
        found.append(Snippet(page, text.count("\n", 0, match.start("code")) + 1, code, how))
    return found


def snippets(how: str) -> list:
    """Return the snippets of all pages that run in this way, as parameters."""
    found = (s for page in PAGES for s in snippets_of(str(page.relative_to(ROOT)), page.read_text("utf-8")))
    return [pytest.param(s, id=f"{s.page}:{s.line}") for s in found if s.how == how]


def write_my_world(folder: Path) -> None:
    """Write the module that the page about custom world models shows."""
    page = ROOT / "docs" / "own_model.md"
    (folder / "my_world.py").write_text(snippets_of(page.name, page.read_text("utf-8"))[0].code)


@pytest.fixture
def run(tmp_path, tiny_world, monkeypatch):
    """Run a snippet where `run-folder` is a world, `MyGame-v0` an environment and `my_world` a module.

    Ids that it registers are removed afterwards. Line numbers in errors are those of the page.
    """
    (tmp_path / "run-folder").symlink_to(tiny_world)
    write_my_world(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    registry = dict(gymnasium.registry)
    gymnasium.register("MyGame-v0", "tests.moving_dot:MovingDot")

    def run(snippet: Snippet) -> None:
        code = "\n" * (snippet.line - 1) + snippet.code
        exec(compile(code, str(ROOT / snippet.page), "exec"), {"__name__": "snippet"})

    yield run
    gymnasium.registry.clear()
    gymnasium.registry.update(registry)


@pytest.mark.parametrize("snippet", snippets(""))
def test_snippets_run(snippet, run):
    run(snippet)


@pytest.mark.slow
@pytest.mark.parametrize("snippet", snippets("slow"))
def test_slow_snippets_run(snippet, run):
    run(snippet)


@pytest.mark.parametrize("kind", [DiamondEnv, DiamondVectorEnv, WorldModel, AtariEnv, RecordEpisodes])
def test_examples_in_docstrings_run(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = doctest.DocTestFinder(recurse=False).find(kind, kind.__name__)
    result = doctest.DocTestRunner().run(example)
    assert result.attempted > 0 and result.failed == 0


def test_readme_and_quick_start_have_snippets_that_run():
    pages = {parameter.values[0].page for parameter in snippets("")}
    assert {"README.md", "docs/quickstart.md"} <= pages


def test_how_a_snippet_runs_is_said_above_it():
    text = "a\n\n<!-- snippet: slow, f(9) -> f(1) -->\n```python\nf(9)\n```\n\n```python\ng()\n```\n"
    assert snippets_of("page", text) == [
        Snippet("page", 5, "f(1)\n", "slow"),
        Snippet("page", 9, "g()\n", ""),
    ]
    with pytest.raises(ValueError, match="slow or nothing"):
        snippets_of("page", "<!-- snippet: quick -->\n```python\n```\n")
    with pytest.raises(ValueError, match="holds no h"):
        snippets_of("page", "<!-- snippet: slow, h -> k -->\n```python\nf(9)\n```\n")


def test_the_readme_is_two_screens():
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 160


def test_commands_of_the_readme_mean_the_same_in_every_shell():
    """An interactive zsh has no comments, and takes brackets and question marks for patterns."""
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S):
        for line in block.splitlines():
            unquoted = re.sub(r"'[^']*'|\"[^\"]*\"", "", line)
            assert not set("#[]()*?;&<>$`!") & set(unquoted), line


def test_links_lead_to_files():
    others = [
        ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "benchmarks/README.md")
    ]
    for page in (*PAGES, *others):
        for target in _LINK.findall(page.read_text("utf-8")):
            if not re.match(r"[a-z]+:|#", target):
                path = page.parent / target.partition("#")[0]
                assert path.exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_every_page_is_in_the_contents():
    """Sphinx checks this too, but only where it is installed and run."""
    entry = re.compile(r"^[a-z_/]+$", re.M)
    named = entry.findall((ROOT / "docs" / "index.md").read_text("utf-8"))
    worlds = entry.findall((ROOT / "docs" / "environments" / "index.md").read_text("utf-8"))
    named += [f"environments/{name}" for name in worlds]
    pages = {str(page.relative_to(ROOT / "docs").with_suffix("")) for page in PAGES[1:]} - {"index"}
    assert pages == {name for name in named if "/" in name or (ROOT / "docs" / f"{name}.md").is_file()}


def script(name):
    """Load a script of the documentation; the publishing workflow calls `absolute_links`."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_of_the_package_page_are_absolute(tmp_path):
    text = (
        "![a picture](docs/a.png) [a page](docs/a.md#part) [the web](https://example.org/x) [here](#here)\n"
        "```bash\n[no](link)\n```\n"
    )
    page = tmp_path / "README.md"
    page.write_text(text)
    assert script("absolute_links").main([str(page), "https://host/me/it/", "v1"]) == 0
    assert page.read_text() == (
        "![a picture](https://host/me/it/raw/v1/docs/a.png) [a page](https://host/me/it/blob/v1/docs/a.md#part)"
        " [the web](https://example.org/x) [here](#here)\n```bash\n[no](link)\n```\n"
    )


def test_the_readme_has_no_relative_link_on_the_package_page():
    text = script("absolute_links").absolute_links(
        (ROOT / "README.md").read_text("utf-8"), "https://host/me/it", "v1"
    )
    assert "https://host/me/it/raw/v1/docs/breakout.png" in text
    assert [target for target in _LINK.findall(text) if not re.match(r"https?:", target)] == []


def test_absolute_links_says_how_it_is_called():
    command = [sys.executable, str(ROOT / "docs" / "absolute_links.py"), "README.md"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("usage: ")


def test_the_version_is_the_same_everywhere():
    import diamond_gym

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == diamond_gym.__version__
    assert diamond_gym.__version__ in (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert any("2405.12399" in i["value"] for r in citation["references"] for i in r["identifiers"])


@pytest.mark.parametrize(
    "file", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda file: file.name
)
def test_workflows_call_what_exists(file):
    """The workflows use existing targets of make and files, and one version of each action."""
    jobs = yaml.safe_load(file.read_text("utf-8"))["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert all(("run" in step) != ("uses" in step) for step in steps)
    assert all(job.get("needs", name) in jobs for name, job in jobs.items())
    commands = "\n".join(step.get("run", "") for step in steps)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    assert set(re.findall(r"\bmake ([a-z-]+)", commands)) <= targets
    scripts = re.findall(r"^\.ci/\w+", commands, re.M)
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts)
    assert all((ROOT / path).is_file() for path in re.findall(r"\b(?:docs|diamond_gym)/[\w/.]+", commands))


def test_workflows_use_one_version_of_an_action():
    texts = [file.read_text("utf-8") for file in (ROOT / ".github" / "workflows").glob("*.yml")]
    used = {tuple(x.split("@")) for text in texts for x in re.findall(r"uses: (\S+)", text)}
    assert len(used) == len({action for action, _ in used}) > 3


def test_the_publishing_workflow_compares_the_tag_with_the_version(tmp_path):
    import diamond_gym

    steps = yaml.safe_load((ROOT / ".github/workflows/publish.yml").read_text("utf-8"))["jobs"]["build"][
        "steps"
    ]
    (check,) = [
        step["run"] for step in steps if "GITHUB_REF_NAME" in step.get("run", "") and "test " in step["run"]
    ]
    for tag, code in ((f"v{diamond_gym.__version__}", 0), ("v0.0.0", 1)):
        environment = os.environ | {"GITHUB_REF_NAME": tag}
        assert subprocess.run(["bash", "-e", "-c", check], cwd=ROOT, env=environment).returncode == code


def test_only_a_tried_package_is_published():
    """The artifact that is uploaded is what `make package` builds, after the tests and absolute links."""
    jobs = yaml.safe_load((ROOT / ".github/workflows/publish.yml").read_text("utf-8"))["jobs"]
    build, publish = jobs["build"]["steps"], jobs["publish"]["steps"]
    commands = [step.get("run", "").split("#")[0].strip() for step in build]
    links = next(i for i, command in enumerate(commands) if "absolute_links" in command)
    assert commands.index(".ci/run") < links < commands.index("make package") == len(commands) - 2
    kept, fetched = build[-1]["with"], publish[0]["with"]
    assert kept["name"] == fetched["name"] and kept["path"] == fetched["path"] == "dist/"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}


def test_the_entry_for_gymnasium_names_what_exists():
    text = (ROOT / "docs" / "gymnasium_entry.md").read_text("utf-8")
    (entry,) = re.findall(r"^```markdown\n(.*?)^```$", text, re.M | re.S)
    assert f"Gymnasium-v{pins()['gymnasium']}-blue" in entry
    assert set(re.findall(r"`(\w+-v\d+)`", entry)) <= set(gymnasium.registry)
    assert 2 <= len(re.findall(r"[.](?= |$)", entry.splitlines()[-1])) <= 5, "sentences"


def test_the_pictures_are_small_and_each_is_drawn_by_the_command():
    """By docs/pictures.py, or, those of the published results, by trainers.report."""
    shown = {*(ROOT / "docs").glob("*.png"), *(ROOT / "docs").glob("*.gif")}
    assert sum(file.stat().st_size for file in shown) < 4e6
    module = script("pictures")
    assert {file.stem for file in shown} == {*module.DRAWN, "results_aggregates", "results_profiles"}
    assert module.main(["nothing"]) == 2


@pytest.mark.parametrize("name", ["drift", "scaling", "training"])
def test_curves_are_drawn_from_the_recorded_numbers(name, tmp_path, monkeypatch):
    module = script("pictures")
    recorded = module.recorded(name)
    monkeypatch.setattr(module, "recorded", lambda _: recorded)
    monkeypatch.setattr(module, "DOCS", tmp_path)
    assert module.main([name]) == 0
    width = cv2.imread(str(tmp_path / f"{name}.png")).shape[1]
    assert 1000 < width < 1400, "letters of 10 points can be read at 800 pixels"


def test_everything_includes_the_documentation():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert "docs" in extras["all"][0]
