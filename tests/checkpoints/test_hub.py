"""Published world models: from a Hub on loopback, from its cache, and the error without both."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import huggingface_hub.constants
import pytest
import torch

from diamond_gym import registration
from diamond_gym.checkpoints import hub, load_world, start_contexts
from diamond_gym.checkpoints.contexts import ContextBank
from diamond_gym.errors import CacheError, CheckpointNotFoundError
from tests.checkpoints.test_checkpoints import random_agent
from tests.paths import ROOT
from tests.worlds import PLAIN

COMMIT = "5fb3a2ee5d6d5b0b7b1f3d4e6ad0bb50c9c2a6b1"
LOAD_BREAKOUT = """
import json, sys
from diamond_gym.checkpoints import load_world, start_contexts
start_contexts.NUM_CONTEXTS = 8  # for speed
world = load_world("Breakout", sys.argv[1], device="cpu", backend="eager")
print(json.dumps({"source": world.source, "contexts": len(world.contexts),
                  "policy": world.agent.actor_critic is not None}))
"""


class FakeHub(BaseHTTPRequestHandler):
    """A server that answers like the Hub for the files of one repository."""

    files: dict[str, bytes] = {}
    requests: list[tuple[str, str]] = []

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        self.requests.append((self.command, self.path))
        content = self.files.get(self.path)
        if content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, format, *args):
        pass


def path_on_hub(game):
    return f"/{hub.REPOSITORY}/resolve/main/{hub.file_in_repository(game)}"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file for Breakout as it is published."""
    path = tmp_path_factory.mktemp("published") / "Breakout.pt"
    torch.save(random_agent().state_dict(), path)
    return path


@pytest.fixture
def served(weights):
    """The address of a Hub with Breakout."""
    FakeHub.files = {path_on_hub("Breakout"): weights.read_bytes()}
    FakeHub.requests = []
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeHub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def here(monkeypatch, tmp_path):
    """Point the huggingface_hub of this process at an address and an empty cache."""

    def point(address, cache=tmp_path / "hub"):
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
        return cache

    return point


def start_process(checkpoint, **environment):
    """Start a fresh interpreter that loads Breakout."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    return subprocess.Popen(
        [sys.executable, "-c", LOAD_BREAKOUT, str(checkpoint)],
        env=env,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result_of(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out), err


def lay_out_as_cached(folder, weights, game="Breakout"):
    """Write the files that huggingface_hub leaves after a download."""
    repository = folder / "hub" / f"models--{hub.REPOSITORY.replace('/', '--')}"
    blob = repository / "blobs" / hashlib.sha256(weights.read_bytes()).hexdigest()
    blob.parent.mkdir(parents=True)
    blob.write_bytes(weights.read_bytes())
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    file = repository / "snapshots" / COMMIT / hub.file_in_repository(game)
    file.parent.mkdir(parents=True)
    file.symlink_to(blob)
    return file


def test_download_then_cache_then_contexts(served, here, tmp_path, monkeypatch, caplog):
    """The first use gets weights from the Hub and contexts from the real game; the second needs neither."""
    cache = here(served)
    monkeypatch.setenv("DIAMOND_GYM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(start_contexts, "NUM_CONTEXTS", 8)
    first = load_world("Breakout", "hub", **PLAIN)
    assert ("GET", path_on_hub("Breakout")) in FakeHub.requests
    assert first.source.startswith(str(cache)) and first.agent.actor_critic is not None
    assert "collecting start contexts of Breakout with the checkpoint's policy" in caplog.text
    (bank,) = (tmp_path / "cache" / "contexts").iterdir()
    assert len(ContextBank.load(bank)) == len(first.contexts)
    FakeHub.requests.clear()
    caplog.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    second = load_world("Breakout", "hub", **PLAIN)
    assert second.source == first.source and not FakeHub.requests
    assert "collecting" not in caplog.text


def test_a_copied_cache_works_offline(weights, tmp_path):
    """Two processes at once, offline: both play for contexts, and one complete file remains."""
    file = lay_out_as_cached(tmp_path / "hf", weights)
    environment = {
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "DIAMOND_GYM_CACHE": str(tmp_path / "cache"),
    }
    both = [start_process("hub", **environment) for _ in range(2)]
    results = [result_of(process)[0] for process in both]
    assert [result["source"] for result in results] == [str(file)] * 2
    (bank,) = (tmp_path / "cache" / "contexts").iterdir()
    assert len(ContextBank.load(bank)) == results[0]["contexts"] == results[1]["contexts"]


def assert_helpful(message, game):
    for hint in (
        f"hf download {hub.REPOSITORY}",
        "HF_HOME",
        "checkpoint='path/to/",
        f"train game={game} preset=small",
    ):
        assert hint in message


def test_a_hub_that_is_down_is_noticed_at_once(here):
    here("http://127.0.0.1:9")
    start = time.perf_counter()
    with pytest.raises(CheckpointNotFoundError, match="cannot be fetched") as error:
        load_world("Pong", "hub")
    assert time.perf_counter() - start < 4
    assert_helpful(str(error.value), "Pong")


def test_a_hub_that_never_answers(here, monkeypatch):
    monkeypatch.setattr(hub, "_TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        here(f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.perf_counter()
        with pytest.raises(CheckpointNotFoundError) as error:
            load_world("Pong", "hub")
        assert time.perf_counter() - start < 4
    assert_helpful(str(error.value), "Pong")


def test_offline_mode_asks_nobody(served, here, monkeypatch):
    here(served)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointNotFoundError, match="offline mode is enabled") as error:
        hub.fetch("Breakout")
    assert not FakeHub.requests
    assert_helpful(str(error.value), "Breakout")


def test_a_file_the_hub_does_not_have(served, here):
    here(served)
    with pytest.raises(CheckpointNotFoundError, match=r"Pong\.pt.*cannot be fetched.*404"):
        hub.fetch("Pong")


def test_a_download_that_breaks_off(served, here, monkeypatch):
    cache = here(served)
    whole = FakeHub.files[path_on_hub("Breakout")]

    def break_off(self, with_body):
        self.send_response(200)
        self.send_header("ETag", '"0"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(whole)))
        self.end_headers()
        self.close_connection = True
        if with_body:
            self.wfile.write(whole[:1000])

    monkeypatch.setattr(FakeHub, "answer", break_off)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(CheckpointNotFoundError, match="cannot be fetched"):
        hub.fetch("Breakout")
    assert not list(cache.glob("**/snapshots/**/*.pt"))


def test_an_unwritable_hub_cache(served, here, tmp_path):
    (tmp_path / "file").write_text("in the way")
    here(served, tmp_path / "file")
    with pytest.raises(CacheError, match="HF_HOME"):
        hub.fetch("Breakout")


def test_other_games_are_not_asked_for(served, here):
    here(served)
    for game in sorted(set(registration.GAMES) - set(registration.ATARI_100K)):
        with pytest.raises(CheckpointNotFoundError, match=rf"26 games.*train game={game}"):
            hub.fetch(game)
    assert not FakeHub.requests


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), NotADirectoryError(20, "no folder")]
)
def test_a_cache_that_cannot_be_read_is_an_error_of_ours(error, monkeypatch):
    def unreadable(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreadable)  # root may read everything
    with pytest.raises(CacheError, match=r"cannot read or write .*; set HF_HOME to a folder that can"):
        hub.fetch("Boxing")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_hf_home_is_an_error_of_ours(tmp_path, monkeypatch):
    (tmp_path / "hub").mkdir(mode=0)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub" / "inner"))
    with pytest.raises(CacheError, match="HF_HOME"):
        hub.fetch("Boxing")
