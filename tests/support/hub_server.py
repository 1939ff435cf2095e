"""A local server that answers huggingface_hub's client as the hub does: metadata, redirects to storage, ranges, errors,
and commits, whose large files are uploaded by the protocol of Git LFS.

with HubServer({"owner/name": {"config.json": b"{}", "weights.safetensors": Path("...")}}) as hub:
    ...  # HF_ENDPOINT=hub.url
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
STORED_ELSEWHERE = (".safetensors", ".ckpt", ".bin", ".onnx", ".data", ".engine")
"""What the hub keeps in large-file storage, to which it redirects."""


@dataclass(frozen=True)
class Drop:
    """End one transfer after ``after`` bytes: by closing the connection, or by resetting it."""

    after: int
    how: Literal["close", "reset"] = "close"


@dataclass
class HubServer:
    """``repositories``: name -> path -> contents. ``tokens``: the token that a gated repository wants.

    drops: one is used up by each transfer of a stored file. drop_all: used by every transfer after those.
    requests: what was asked, as "METHOD /path RANGE". commit: that of the main branch. down: whether it answers nothing
    but that it is out of order. writer: the token that commits want. commits: (repository, commit) -> its files, for
    those that were made here; heads: repository -> the last of them. ``main`` alone is a branch.
    before_commit: is called when a commit is asked for.
    """

    repositories: dict[str, Mapping[str, bytes | Path]]
    tokens: Mapping[str, str] = field(default_factory=dict)
    drops: list[Drop] = field(default_factory=list)
    drop_all: Drop | None = None
    requests: list[str] = field(default_factory=list)
    commit: str = COMMIT
    down: bool = False
    writer: str = "hf_writer"
    commits: dict[tuple[str, str], Mapping[str, bytes | Path]] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    before_commit: Callable[[], object] | None = None

    def __enter__(self) -> HubServer:
        self.stored: dict[str, bytes | Path] = {}
        handler = type("Handler", (_Handler,), {"hub": self})
        # Two, since the client follows redirects itself where they stay on one server.
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        self._threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in self._servers]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def storage_url(self) -> str:
        return f"http://127.0.0.1:{self._servers[1].server_port}/storage"

    def found(self, repository: str, revision: str) -> tuple[str, Mapping[str, bytes | Path]] | None:
        """The commit that a revision is, and its files."""
        head = self.heads.get(repository, self.commit)
        if revision in ("main", head, self.commit, COMMIT) and (repository, revision) not in self.commits:
            return head, self.repositories[repository]
        files = self.commits.get((repository, revision))
        return None if files is None else (revision, files)

    def add_commit(self, repository: str, files: Mapping[str, bytes | Path]) -> str:
        """Make a commit, whose hash this returns."""
        before = self.heads.get(repository, self.commit)
        self.commits[repository, before] = self.repositories.get(repository, {})
        made = hashlib.sha1(f"{repository} {len(self.commits)}".encode()).hexdigest()
        self.repositories[repository], self.commits[repository, made] = files, files
        self.heads[repository] = made
        return made

    def transfers(self) -> list[str]:
        """The requests for a stored file's contents."""
        return [request for request in self.requests if request.startswith("GET /storage/")]


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(self.path.split("?")[0])
        self.hub.requests.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        if self.hub.down:
            self._refuse(503, "Down")
        elif path == "/api/validate-yaml":
            self._body()
            self._send_json({"errors": [], "warnings": []})
        elif path.startswith("/api/models/") or path.endswith("/info/lfs/objects/batch"):
            self._ask(path)
        elif path.startswith("/storage/") and self.command == "PUT":
            data = self._body()
            assert hashlib.sha256(data).hexdigest() == path.removeprefix("/storage/")
            self.hub.stored[path.removeprefix("/storage/")] = data
            self._send_json({})
        elif path.startswith("/storage/"):
            self._transfer(self.hub.stored[path.removeprefix("/storage/")])
        else:
            self._file(path)

    def _file(self, path: str) -> None:
        repository, _, rest = path.lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        if repository not in self.hub.repositories:
            # The hub says 401, not 404, to whoever is not logged in: the repository may be private.
            self._refuse(404 if "Authorization" in self.headers else 401, "RepoNotFound")
        elif repository in self.hub.tokens and not self._admitted(repository):
            self._refuse(401, "GatedRepo")
        elif (found := self.hub.found(repository, revision)) is None:
            self._refuse(404, "RevisionNotFound")
        elif file not in found[1]:
            self._refuse(404, "EntryNotFound", found[0])
        else:
            self._resolve(file, found[1][file], found[0])

    def _ask(self, path: str) -> None:
        """Everything about a repository but its files, and what writes to it."""
        body = self._body()
        if "/commit/" in path and self.hub.before_commit is not None:
            self.hub.before_commit()
        if path.endswith(".git/info/lfs/objects/batch"):
            repository, what, rest = path[1:].partition(".git/")[0], "batch", ["main"]
        else:
            owner, name, what, *rest = [*path.removeprefix("/api/models/").split("/"), ""]
            repository = f"{owner}/{name}"
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repository not in self.hub.repositories:
            self._refuse(404 if token else 401, "RepoNotFound")
        elif self.command == "POST" and token != self.hub.writer:
            self._refuse(403 if token else 401, "Forbidden")
        elif (found := self.hub.found(repository, rest[0] if what else "main")) is None:
            self._refuse(404, "RevisionNotFound")
        elif what == "tree":
            files = found[1].items()
            self._send_json([{"type": "file", "path": p, "size": _size(c), "oid": "0" * 40} for p, c in files])
        elif what in ("", "revision"):
            self._send_json({"id": repository, "sha": found[0], "siblings": [], "tags": [], "downloads": 0, "likes": 0})
        elif what == "preupload":
            self._send_json({"files": [self._mode(file["path"], found[1]) for file in json.loads(body)["files"]]})
        elif what == "batch":
            self._send_json({"transfer": "basic", "objects": [self._upload(o) for o in json.loads(body)["objects"]]})
        elif json.loads(body.splitlines()[0])["value"].get("parentCommit", found[0]) != found[0]:
            self._refuse(412, "Moved")
        else:
            assert what == "commit", path
            made = self.hub.add_commit(repository, self._changed(found[1], body))
            self._send_json(
                {"success": True, "commitOid": made, "commitUrl": f"{self.hub.url}/{repository}/commit/{made}"}
            )

    @staticmethod
    def _mode(path: str, files: Mapping[str, bytes | Path]) -> dict[str, Any]:
        """How a file is to be uploaded, and what is there now."""
        stored = path.endswith(STORED_ELSEWHERE)
        oid = None
        if path in files:
            with _opened(files[path]) as stream:
                data = stream.read()
            oid = (
                hashlib.sha256(data).hexdigest()
                if stored
                else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            )
        return {"path": path, "uploadMode": "lfs" if stored else "regular", "shouldIgnore": False, "oid": oid}

    def _upload(self, wanted: dict[str, Any]) -> dict[str, Any]:
        there = wanted["oid"] in self.hub.stored
        action = {} if there else {"actions": {"upload": {"href": f"{self.hub.storage_url}/{wanted['oid']}"}}}
        return wanted | action

    def _changed(self, files: Mapping[str, bytes | Path], body: bytes) -> dict[str, bytes | Path]:
        """The files after the commit that ``body`` asks for."""
        changed = dict(files)
        for line in body.splitlines():
            value = (told := json.loads(line))["value"]
            match told["key"]:
                case "file":
                    changed[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    changed[value["path"]] = self.hub.stored[value["oid"]]
                case "deletedFile":
                    del changed[value["path"]]
        return changed

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _send_json(self, value: Any) -> None:
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _admitted(self, repository: str) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.tokens[repository]}"

    def _refuse(self, status: int, code: str, commit: str | None = None) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", commit or self.hub.commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _resolve(self, file: str, contents: bytes | Path, commit: str) -> None:
        with _opened(contents) as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        size = _size(contents)
        if not file.endswith(STORED_ELSEWHERE):
            self._send(contents, {"ETag": f'"{digest[:40]}"', "X-Repo-Commit": commit})
            return
        self.hub.stored[digest] = contents
        self.send_response(302)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("X-Linked-ETag", f'"{digest}"')
        self.send_header("X-Linked-Size", str(size))
        self.send_header("Location", f"{self.hub.storage_url}/{digest}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _transfer(self, contents: bytes | Path) -> None:
        drop = self.hub.drops.pop(0) if self.hub.drops else self.hub.drop_all
        self._send(contents, {}, drop)

    def _send(self, contents: bytes | Path, headers: Mapping[str, str], drop: Drop | None = None) -> None:
        size = _size(contents)
        asked = self.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        self.send_response(206 if asked else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        left = size - start if drop is None else min(drop.after, size - start)
        with _opened(contents) as stream, contextlib.suppress(ConnectionError):
            stream.seek(start)
            while left > 0 and (chunk := stream.read(min(left, 1 << 20))):
                self.wfile.write(chunk)
                left -= len(chunk)
        if drop is not None:
            self._hang_up(drop)

    def _hang_up(self, drop: Drop) -> None:
        self.close_connection = True
        if drop.how == "reset":
            # Lingering for no time makes close() send a reset instead of an orderly end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


def _opened(contents: bytes | Path) -> Any:
    return contents.open("rb") if isinstance(contents, Path) else io.BytesIO(contents)


def _size(contents: bytes | Path) -> int:
    return contents.stat().st_size if isinstance(contents, Path) else len(contents)
