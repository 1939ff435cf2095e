"""A local server that answers huggingface_hub's client as the hub does: metadata, redirects to storage, ranges, errors,
and commits, whose large files are uploaded by the protocol of Git LFS.

with HubServer({"owner/name": {"config.json": b"{}", "weights.safetensors": Path("...")}}) as hub:
    ...  # HF_ENDPOINT=hub.url
"""

from __future__ import annotations

import contextlib
import hashlib
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

from hub_commits import STORED_ELSEWHERE, Commits, opened, size_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


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
        # By another name: huggingface_hub 1.32 takes a redirect to the hub's own host for one within the hub.
        return f"http://localhost:{self._servers[1].server_port}/storage"

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


class _Handler(Commits, BaseHTTPRequestHandler):
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

    def _admitted(self, repository: str) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.tokens[repository]}"

    def _refuse(self, status: int, code: str, commit: str | None = None) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", commit or self.hub.commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _resolve(self, file: str, contents: bytes | Path, commit: str) -> None:
        with opened(contents) as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        size = size_of(contents)
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
        size = size_of(contents)
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
        with opened(contents) as stream, contextlib.suppress(ConnectionError):
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
