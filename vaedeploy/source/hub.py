"""Files of a hub repository, fetched by huggingface_hub's own client.

The client's cache, its token and its ``HF_*`` environment variables apply.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vaedeploy.errors import DownloadError
from vaedeploy.system.progress import Progress, silent

ATTEMPTS = 3
"""Number of times that a download is started.

The client itself resumes a download that ends early, but not one whose connection is reset.
"""

LOCAL_COPY = "or download it elsewhere and give the file: --weights PATH"


@dataclass(frozen=True)
class Fetched:
    """A file of a repository in the local cache.

    path: on this disk. file: its path in the repository. revision: the repository's commit, if known.
    """

    path: Path
    file: str
    revision: str | None


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
        f"{_page(repository)}/tree/{revision or 'main'}, download the weights and give the file: --weights PATH"
    )


def fetch_if_there(
    repository: str, files: Sequence[str], *, revision: str | None = None, progress: Progress = silent
) -> Fetched | None:
    """As ``fetch``, and None where the repository has none of ``files``."""
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    if not files:
        return None
    unreachable: Exception | None = None
    asking = f"Asking the hub for {repository}/{files[0]}"
    # Reported before the hub answers: if it does not answer, the client keeps trying for half a minute.
    progress(asking, 0, 1)
    for file in files:
        try:
            # Where the hub cannot be reached, one of the other files may be in the cache: it is not asked again.
            path = _download(repository, file, revision, progress, cached=unreachable is not None)
            progress(asking, 1, 1)
            return Fetched(path, file, _commit(path, file))
        except RemoteEntryNotFoundError:
            continue
        except LocalEntryNotFoundError as error:
            unreachable = unreachable or error
        except _client_errors() as error:
            raise DownloadError(_explain(error, repository, file, revision)) from error
    if unreachable is not None:
        raise DownloadError(_explain(unreachable, repository, files[0], revision)) from unreachable
    return None


def fetch_beside(fetched: Fetched, repository: str, name: str) -> Path | None:
    """Fetch the file ``name`` from the folder and commit of ``fetched``; None where the repository has no such file."""
    from huggingface_hub.errors import RemoteEntryNotFoundError

    file = str(Path(fetched.file).with_name(name).as_posix())
    try:
        return _download(repository, file, fetched.revision, silent)
    except RemoteEntryNotFoundError:
        return None
    except _client_errors() as error:
        raise DownloadError(_explain(error, repository, file, fetched.revision)) from error


def _download(repository: str, file: str, revision: str | None, progress: Progress, *, cached: bool = False) -> Path:
    """cached: look into the cache alone."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    bar = _reporting_bar(f"Downloading {repository}/{file}", progress)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            path = hf_hub_download(
                repository,
                file,
                revision=revision,
                library_name="vaedeploy",
                local_files_only=cached,
                tqdm_class=bar,
            )
            bar.finish()
            return Path(path)
        except HfHubHTTPError:
            raise
        except _transport_error():
            if attempt == ATTEMPTS:
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")


def _commit(path: Path, file: str) -> str | None:
    """The commit of ``file``, which the cache keeps at .../snapshots/COMMIT/FILE."""
    # From the end, since the cache itself may lie in a folder of that name.
    *_, kind, commit = path.parts[: -len(PurePosixPath(file).parts)]
    return commit if kind == "snapshots" else None


def _reporting_bar(what: str, progress: Progress) -> type[Any]:
    """A class of progress bars that report to ``progress`` and draw nothing. what: the work that they report."""
    from tqdm.std import tqdm  # type: ignore[import-untyped]

    class ReportingBar(tqdm):  # type: ignore[misc]
        told: tuple[float, float] = (0.0, 0.0)

        @classmethod
        def finish(cls) -> None:
            """Report that all is there: the client does not report what it had from another place, such as a cache."""
            done, total = cls.told
            if done < total:
                progress(what, total, total)

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})
            self._report()

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            self._report()

        # Where a bar has these two methods, the client reports network and disk to it, and opens no second bar.
        def update_transfer(self, n: float) -> None: ...

        def set_transfer_postfix_str(self, *args: Any, **kwargs: Any) -> None: ...

        def _report(self) -> None:
            if self.total:
                type(self).told = float(self.n), float(self.total)
                progress(what, *self.told)

    return ReportingBar


def _transport_error() -> type[Exception]:
    """Base class of the errors of the client's HTTP library, which differs between versions of the client."""
    from huggingface_hub.errors import HfHubHTTPError

    return next(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception))


def _client_errors() -> tuple[type[Exception], ...]:
    return (_transport_error(), OSError, ValueError)


def _page(repository: str) -> str:
    return f"{_endpoint()}/{repository}"


def _endpoint() -> str:
    from huggingface_hub import constants

    return _without_password(constants.ENDPOINT)


def _without_password(text: str) -> str:
    """``text`` with every address in it as https://HOST, where it was https://NAME:PASSWORD@HOST."""
    return re.sub(r"(?<=://)[^/\s@]*(?:@[^/\s@]*)*@", "", text)


def _explain(error: Exception, repository: str, file: str, revision: str | None) -> str:
    """What went wrong and what to do about it. The most specific cause that applies is named."""
    from huggingface_hub import constants, errors

    wanted = f"{repository}/{file}"
    cause = error.__cause__ or error
    if isinstance(cause, errors.OfflineModeIsEnabled) or (
        isinstance(error, errors.LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE
    ):
        return (
            f"{wanted} is not in the cache ({constants.HF_HUB_CACHE}) and HF_HUB_OFFLINE is set. Unset it, {LOCAL_COPY}"
        )
    explanations: list[tuple[type[Exception], Callable[[], str]]] = [
        (errors.GatedRepoError, lambda: _gated(repository, wanted)),
        (errors.RepositoryNotFoundError, lambda: _no_repository(repository)),
        (errors.RevisionNotFoundError, lambda: _no_revision(repository, revision)),
        (errors.HFValidationError, lambda: f"{repository!r} is not the name of a hub repository: {_one_line(error)}"),
        (errors.LocalEntryNotFoundError, lambda: _unreachable(wanted, cause)),
    ]
    for kind, explain in explanations:
        if isinstance(error, kind):
            return explain()
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return f"the hub refused the token for {wanted}. Run `hf auth login` again, or set HF_TOKEN, {LOCAL_COPY}"
    return f"the download of {wanted} failed: {_one_line(error)}. Run the command again, {LOCAL_COPY}"


def _gated(repository: str, wanted: str) -> str:
    return (
        f"the hub repository {repository} is gated. Accept its licence at {_page(repository)}, then run "
        f"`hf auth login` or set HF_TOKEN, and run the command again; or give a local copy of {wanted}: --weights PATH"
    )


def _no_revision(repository: str, revision: str | None) -> str:
    return f"the hub repository {repository} has no revision {revision}. See those it has: {_page(repository)}/commits"


def _no_repository(repository: str) -> str:
    return (
        f"the hub has no repository {repository}, or it is private. Check the name at {_page(repository)}; "
        "where it is private, run `hf auth login` or set HF_TOKEN"
    )


def _unreachable(wanted: str, cause: BaseException) -> str:
    return (
        f"cannot download {wanted}: {_endpoint()} does not answer as a hub ({_one_line(cause)}). "
        f"Check the network and HF_ENDPOINT, {LOCAL_COPY}"
    )


def _one_line(error: BaseException) -> str:
    text = _without_password(" ".join(str(error).split())).rstrip(".")
    return text or type(error).__name__
