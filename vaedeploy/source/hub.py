"""Weights in a hub repository: which file to fetch, and what to do where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vaedeploy.errors import DownloadError
from vaedeploy.system import hub
from vaedeploy.system.hub import Fetched
from vaedeploy.system.progress import Progress, silent

LOCAL_COPY = "or download it elsewhere and give the file: --weights PATH"


def fetch(
    repository: str,
    files: Sequence[str],
    named: str | None = None,
    *,
    revision: str | None = None,
    progress: Progress = silent,
) -> Fetched:
    """Fetch the first of ``files`` that the repository has, from the hub or from the cache.

    named: what messages call all of them, where they are many.

    Raises DownloadError, which says what to do, where the hub cannot be reached, refuses, or has none of ``files``.
    """
    fetched = fetch_if_there(repository, files, revision=revision, progress=progress)
    if fetched is not None:
        return fetched
    at = f" at revision {revision}" if revision else ""
    raise DownloadError(
        f"the hub repository {repository} has no file {named or ' or '.join(files)}{at}. See what it has at "
        f"{hub.page(repository)}/tree/{revision or 'main'}, download the weights and give the file: --weights PATH"
    )


def fetch_if_there(
    repository: str, files: Sequence[str], *, revision: str | None = None, progress: Progress = silent
) -> Fetched | None:
    """As ``fetch``, and None where the repository has none of ``files``."""
    return hub.fetch_if_there(repository, files, revision=revision, otherwise=LOCAL_COPY, progress=progress)


def fetch_beside(fetched: Fetched, repository: str, name: str) -> Path | None:
    """Fetch the file ``name`` from the folder and commit of ``fetched``; None where the repository has no such file."""
    file = str(Path(fetched.file).with_name(name).as_posix())
    found = fetch_if_there(repository, [file], revision=fetched.revision)
    return None if found is None else found.path
