"""What a hub answers besides files: what a repository has, and commits, with large files uploaded as Git LFS does."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STORED_ELSEWHERE = (".safetensors", ".ckpt", ".bin", ".onnx", ".data", ".engine")
"""What the hub keeps in large-file storage, to which it redirects."""


class Commits:
    """The part of ``hub_server``'s handler that ``_ask`` is: ``hub``, ``_refuse`` and ``_send`` are the handler's."""

    hub: Any
    command: str
    headers: Any
    rfile: Any

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
            self._send_json([{"type": "file", "path": p, "size": size_of(c), "oid": "0" * 40} for p, c in files])
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
            with opened(files[path]) as stream:
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


def opened(contents: bytes | Path) -> Any:
    return contents.open("rb") if isinstance(contents, Path) else io.BytesIO(contents)


def size_of(contents: bytes | Path) -> int:
    return contents.stat().st_size if isinstance(contents, Path) else len(contents)
