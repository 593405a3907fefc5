"""Files are written completely or not at all."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from diamond_gym import files as disk
from diamond_gym import untrusted
from diamond_gym.errors import CacheError, FolderInUseError

WRITERS: dict[str, Callable[[Path, int], None]] = {
    "bytes": lambda path, size: disk.write_file(path, bytes(size)),
    "torch": lambda path, size: disk.write_torch(path, {"x": torch.zeros(size // 4)}),
    "safetensors": lambda path, size: disk.write_tensors(path, {"x": torch.zeros(size // 4)}, {}),
}


@pytest.fixture(params=WRITERS)
def write(request: pytest.FixtureRequest) -> Callable[[Path, int], None]:
    return WRITERS[request.param]


def test_what_is_written_is_read_again(tmp_path):
    disk.write_file(tmp_path / "new/folder/file", b"content")
    assert (tmp_path / "new/folder/file").read_bytes() == b"content"
    disk.write_torch(tmp_path / "x.pt", {"x": torch.arange(3)})
    assert torch.load(tmp_path / "x.pt", weights_only=True)["x"].tolist() == [0, 1, 2]
    disk.write_tensors(tmp_path / "x.safetensors", {"x": torch.arange(3)}, {"a": "b"})
    tensors, metadata = untrusted.read_tensors(tmp_path / "x.safetensors")
    assert (tensors["x"].tolist(), metadata) == ([0, 1, 2], {"a": "b"})


@pytest.mark.parametrize("size", [5000, 400_000])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(write, size, tmp_path):
    resource = pytest.importorskip("resource", reason="file size limits are Unix's")
    write(tmp_path / "file", 40)
    before = (tmp_path / "file").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))  # simulates a disk that is full after 4 kB
    try:
        with pytest.raises(CacheError, match=r"cannot write .*/file: .*File too large; choose a folder"):
            write(tmp_path / "file", size)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "file").read_bytes() == before
    assert os.listdir(tmp_path) == ["file"]


def test_an_error_at_the_last_moment_leaves_the_old_file(write, tmp_path, monkeypatch):
    write(tmp_path / "file", 40)
    before = (tmp_path / "file").read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CacheError, match="No space left"):
        write(tmp_path / "file", 80)
    assert (tmp_path / "file").read_bytes() == before
    assert os.listdir(tmp_path) == ["file"]


def test_what_cannot_be_pickled_leaves_the_old_file(tmp_path):
    disk.write_torch(tmp_path / "file", {})
    with pytest.raises(Exception, match="pickle"):
        disk.write_torch(tmp_path / "file", {"x": lambda: 0})
    assert torch.load(tmp_path / "file", weights_only=True) == {}
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_in_the_way_of_the_folder(write, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CacheError, match="choose a folder that can be written"):
        write(tmp_path / "file" / "inner", 40)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_folder_is_checked_before_there_is_anything_to_write(tmp_path):
    disk.prepare_folder(tmp_path / "new" / "folder")
    assert os.listdir(tmp_path / "new" / "folder") == []
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match="cannot write to the folder"):
        disk.prepare_folder(tmp_path / "file")


def test_a_lock_neither_follows_nor_empties_what_somebody_put_in_its_place(tmp_path):
    victim, folder = tmp_path / "victim", tmp_path / "run"
    folder.mkdir()
    victim.write_text("precious")
    (folder / ".lock").symlink_to(victim)
    with pytest.raises(CacheError, match=r"\.lock: it is a link to .*victim"), disk.locked(folder):
        pass
    (folder / ".lock").unlink()
    os.link(victim, folder / ".lock")
    with disk.locked(folder):
        pass
    assert victim.read_text() == "precious"
    (folder / ".lock").unlink()
    os.mkfifo(folder / ".lock")  # opening it would wait for a reader
    with pytest.raises(CacheError, match="not a regular file"), disk.locked(folder):
        pass


def test_a_folder_is_locked_until_the_block_ends(tmp_path):
    with disk.locked(tmp_path), pytest.raises(FolderInUseError, match="another process is working"):
        disk.locked(tmp_path).__enter__()
    with disk.locked(tmp_path):
        pass
    assert disk.is_empty(tmp_path)


def test_a_folder_made_for_nothing_is_removed(tmp_path):
    made, there = tmp_path / "made", tmp_path / "there"
    there.mkdir()
    for folder in (made, there):
        with pytest.raises(KeyboardInterrupt), disk.begun(folder, 2**10):
            raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [there]
    with pytest.raises(OSError), disk.begun(made, 2**10):
        disk.write_file(made / "result", b"kept")
        raise OSError
    assert (made / "result").read_bytes() == b"kept"
    with disk.begun(made, 2**10), pytest.raises(FolderInUseError), disk.begun(made, 2**10):
        pass


def test_a_line_is_never_added_through_a_link(tmp_path):
    disk.append_line(tmp_path / "log", "one")
    disk.append_line(tmp_path / "log", "two")
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
    (tmp_path / "link").symlink_to(tmp_path / "log")
    with pytest.raises(CacheError, match="not followed"):
        disk.append_line(tmp_path / "link", "three")
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


@pytest.mark.parametrize("has_hard_links", [True, False])
def test_names_are_claimed_by_one_each(has_hard_links, tmp_path, monkeypatch):
    def link(source, target):
        raise PermissionError(1, "Operation not permitted")

    if not has_hard_links:
        monkeypatch.setattr(os, "link", link)
    (tmp_path / "x-3.txt").symlink_to("nowhere")  # a name that is taken by a dangling link
    with ThreadPoolExecutor(4) as threads:
        added = list(
            threads.map(lambda i: disk.add_file(disk.numbered(tmp_path / "x.txt"), b"%d" % i), range(8))
        )
    assert {path.read_bytes() for path in added} == {b"%d" % i for i in range(8)}
    assert sorted(os.listdir(tmp_path)) == sorted(
        ["x.txt", "x-2.txt", "x-3.txt", *(f"x-{i}.txt" for i in range(4, 10))]
    )
    assert not (tmp_path / "nowhere").exists()


def test_what_fails_claims_no_name(tmp_path):
    with pytest.raises(KeyError), disk.adding(disk.numbered(tmp_path / "x.txt")) as new:
        new.file.write(b"half")
        raise KeyError
    assert os.listdir(tmp_path) == []


def test_a_folder_with_what_file_managers_leave_counts_as_empty(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (out / "._x.npz").write_bytes(b"\0\5\x16\7")
    with disk.new_folder(out) as folder:
        (folder / "file").touch()
    assert sorted(os.listdir(out)) == [".DS_Store", "._x.npz", "file"]
    assert [path.name for path in disk.visible(out)] == ["file"]
    with pytest.raises(CacheError, match="not empty"), disk.new_folder(out):
        pass


def test_a_full_disk_is_found_by_writing(tmp_path, monkeypatch):
    """The probe reserves as much as will be needed; a limit on the size of files simulates a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * 2**20, hard))
    try:
        disk.prepare_folder(tmp_path, 2 * 2**20)
        with pytest.raises(CacheError, match=r"cannot write to the folder .*File too large; 8 MB are needed"):
            disk.prepare_folder(tmp_path, 8 * 10**6)
        with pytest.raises(CacheError, match="cannot write"):
            disk.check_space(tmp_path / "new" / "run", 8 * 10**6, "steps")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert list(tmp_path.iterdir()) == []


def test_a_locked_folder_is_freed_of_what_killed_processes_left(tmp_path):
    inner = tmp_path / "checkpoints"
    inner.mkdir()
    for name in (".state.pt.1-0a.tmp", "state.pt", ".hidden", "x-1.tmp"):
        (inner / name).touch()
    (tmp_path / ".world.1-0a.tmp" / "world").mkdir(parents=True)
    with disk.locked(tmp_path):
        assert sorted(os.listdir(inner)) == [".hidden", "state.pt", "x-1.tmp"]
        assert sorted(os.listdir(tmp_path)) == [".lock", "checkpoints"]


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_takes_the_place_of_another(there, tmp_path):
    new, old = tmp_path / "new", tmp_path / "old"
    for folder in (new, old) if there else (new,):
        folder.mkdir()
        (folder / folder.name).touch()
    disk.replace_folder(new, old)
    assert os.listdir(tmp_path) == ["old"] and os.listdir(old) == ["new"]
    with pytest.raises(CacheError, match=r"cannot move .*new to .*old"):
        disk.replace_folder(new, old)
    assert os.listdir(tmp_path) == ["old"] and os.listdir(old) == ["new"]
