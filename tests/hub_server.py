"""A Hugging Face Hub on loopback for tests, which accepts commits, stores their files and serves them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import huggingface_hub.constants

TOKEN = "hf_stand_in"


class Hub:
    """The content of the Hub, and the errors that it simulates.

    Attributes:
        commits: For each repository, the files after each commit, oldest first.
        private: Whether each repository is private.
        lfs: Large files by their SHA-256.
        refuse: Maps path prefixes to the status with which requests to them are refused.
        requests: Methods and paths, in order.
    """

    def __init__(self) -> None:
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.lfs: dict[str, bytes] = {}
        self.refuse: dict[str, int] = {}
        self.requests: list[tuple[str, str]] = []
        self.address = ""

    def files(self, repo_id: str) -> dict[str, bytes]:
        """Return the files of the newest commit."""
        return self.commits[repo_id][-1]


def commit_id(number: int) -> str:
    return hashlib.sha1(f"commit {number}".encode()).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve a Hub at `hub.address`."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub.address = f"http://127.0.0.1:{server.server_port}"
        yield hub
        server.shutdown()


def point_to(address: str, cache: Any, monkeypatch: Any) -> None:
    """Make the huggingface_hub of this process talk to an address, with a cache of its own."""
    constants = huggingface_hub.constants
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


class _Handler(BaseHTTPRequestHandler):
    """The handler of requests."""

    hub: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self._is_refused():
            return
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
            self._preupload(match[1], json.loads(body)["files"])
        elif match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", self.path):
            self._lfs_batch(json.loads(body)["objects"])
        elif match := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
            self._commit(match[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._json({"error": "not found"}, 404)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self._is_refused():
            return
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.lfs[oid] = body
        self._json({})

    def do_HEAD(self) -> None:
        self._get(with_body=False)

    def do_GET(self) -> None:
        self._get(with_body=True)

    def _get(self, *, with_body: bool) -> None:
        if self._is_refused():
            return
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)", self.path)
        if match and match[1] in self.hub.commits:
            self._json({"id": match[1], "private": self.hub.private[match[1]]})
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path):
            self._file(match[1], match[2], match[3], with_body)
        else:
            self._json({"error": "not found"}, 404)

    def _file(self, repo_id: str, revision: str, name: str, with_body: bool) -> None:
        commits = self.hub.commits.get(repo_id, [])
        ids = [commit_id(i) for i in range(len(commits))]
        if not commits or self.hub.private[repo_id]:
            return self._json({"error": "Repository not found"}, 401, code="RepoNotFound")
        if revision not in ("main", *ids):
            return self._json({"error": "Revision not found"}, 404, code="RevisionNotFound")
        number = len(ids) - 1 if revision == "main" else ids.index(revision)
        content = commits[number].get(name)
        if content is None:
            return self._json({"error": "Entry not found"}, 404, code="EntryNotFound", commit=ids[number])
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", ids[number])
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def _create(self, asked: dict[str, Any]) -> None:
        repo_id = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.hub.address}/{repo_id}"}
        if repo_id in self.hub.commits:
            return self._json({"error": "You already created this model repo", **url}, 409)
        self.hub.commits[repo_id] = [{}]
        self.hub.private[repo_id] = asked.get("visibility") == "private" or asked.get("private", False)
        self._json(url)

    def _preupload(self, repo_id: str, files: list[dict[str, Any]]) -> None:
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in files
        ]
        self._json({"files": modes})

    def _lfs_batch(self, objects: list[dict[str, Any]]) -> None:
        actions = [
            {**item, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{item['oid']}"}}}
            for item in objects
        ]
        self._json({"transfer": "basic", "objects": actions})

    def _commit(self, repo_id: str, lines: list[dict[str, Any]]) -> None:
        files = dict(self.hub.files(repo_id))
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.lfs[value["oid"]]
        self.hub.commits[repo_id].append(files)
        oid = commit_id(len(self.hub.commits[repo_id]) - 1)
        url = f"{self.hub.address}/{repo_id}/commit/{oid}"
        self._json({"success": True, "commitOid": oid, "commitUrl": url})

    def _is_refused(self) -> bool:
        self.hub.requests.append((self.command, self.path))
        for prefix, status in self.hub.refuse.items():
            if self.path.startswith(prefix):
                self._json({"error": f"refused with {status}"}, status)
                return True
        return False

    def _json(
        self, content: dict[str, Any], status: int = 200, code: str | None = None, commit: str | None = None
    ) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if code is not None:
            self.send_header("X-Error-Code", code)
        if commit is not None:
            self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass
