"""The record of the source code in a run folder."""

import subprocess
from pathlib import Path

import pytest

from trainers.diamond.run_folder import RunFolder, Source, find_source


def git(folder: Path, *arguments: str) -> str:
    names = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    command = ["git", "-C", str(folder), *names, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with a committed file `package/code.py`."""
    folder = tmp_path / "repository"
    (folder / "package").mkdir(parents=True)
    (folder / "package" / "code.py").write_text("x = 1\n")
    (folder / ".gitignore").write_text("venv/\n")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "first")
    return folder


def written(run: RunFolder) -> dict[str, str]:
    return {file.name: file.read_text() for file in (run.path / "config").iterdir()}


def test_a_clean_repository_is_named_by_its_commit(repository: Path, tmp_path: Path):
    source = find_source(repository / "package" / "code.py")
    run = RunFolder(tmp_path / "run")
    run.write_source(source)
    (line,) = written(run)["source.txt"].splitlines()
    assert line.endswith(f"commit {git(repository, 'rev-parse', 'HEAD')}") and written(run).keys() == {
        "source.txt"
    }


def test_changes_are_kept_so_that_git_can_apply_them(repository: Path, tmp_path: Path):
    code = repository / "package" / "code.py"
    code.write_text("x = 2\n")
    run = RunFolder(tmp_path / "run")
    run.write_source(find_source(code))
    assert "with the changes in source.diff" in written(run)["source.txt"]
    git(repository, "checkout", "--quiet", ".")
    assert code.read_text() == "x = 1\n"
    git(repository, "apply", str(run.path / "config" / "source.diff"))
    assert code.read_text() == "x = 2\n"


def test_a_repository_that_does_not_track_the_package_is_not_its_source(repository: Path, tmp_path: Path):
    installed = repository / "venv" / "code.py"
    installed.parent.mkdir()
    installed.write_text("x = 1\n")
    outside = tmp_path / "code.py"
    outside.write_text("x = 1\n")
    for file in (installed, outside):
        source = find_source(file)
        assert "commit" not in source.version and source.diff == b""


def test_without_git_the_version_is_known(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    source = find_source()
    assert "commit" not in source.version and source == Source(source.version)
