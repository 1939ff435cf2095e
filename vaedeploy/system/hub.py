"""Files of hub repositories, downloaded and uploaded by huggingface_hub's own client.

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

REPOSITORY_NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")
"""A hub repository, and after @ the branch, tag or commit that is meant."""

ATTEMPTS = 3
"""How many times a download is started.

The client itself resumes a download that ends early, but not one whose connection is reset.
"""


def client() -> Any:
    """The module huggingface_hub. Raises ModuleNotFoundError where it is not installed."""
    import huggingface_hub
    import huggingface_hub.constants
    import huggingface_hub.errors
    import huggingface_hub.utils

    return huggingface_hub


@dataclass(frozen=True)
class Fetched:
    """A file of a repository in the local cache.

    path: on this disk. file: its path in the repository. revision: the repository's commit, if known.
    """

    path: Path
    file: str
    revision: str | None


@dataclass(frozen=True)
class Request:
    """A request to the hub, for messages.

    what: such as "the download of owner/name/config.json". wanted: what is downloaded or written to.
    otherwise: what can be done instead, as the end of a sentence.
    """

    what: str
    wanted: str
    repository: str
    revision: str | None
    otherwise: str


def fetch_if_there(
    repository: str,
    files: Sequence[str],
    *,
    revision: str | None = None,
    otherwise: str,
    progress: Progress = silent,
) -> Fetched | None:
    """The first of ``files`` that the repository has, from the hub or from the cache; None where it has none of them.

    otherwise: see ``Request``. Raises DownloadError, which says what to do, where the hub cannot be reached, or
    refuses.
    """
    if not files:
        return None
    errors = client().errors
    unreachable: Exception | None = None
    asking = f"Asking the hub for {repository}/{files[0]}"
    # Reported before the hub answers: if it does not answer, the client keeps trying for half a minute.
    progress(asking, 0, 1)
    for file in files:
        try:
            # If the hub cannot be reached, one of the other files may be in the cache; the hub is not asked again.
            path = fetch_file(repository, file, revision, progress, cached=unreachable is not None)
            progress(asking, 1, 1)
            return Fetched(path, file, _commit(path, file))
        except errors.RemoteEntryNotFoundError:
            continue
        except errors.LocalEntryNotFoundError as error:
            unreachable = unreachable or error
        except client_errors() as error:
            raise DownloadError(explain(error, downloading(repository, file, revision, otherwise))) from error
    if unreachable is not None:
        request = downloading(repository, files[0], revision, otherwise)
        raise DownloadError(explain(unreachable, request)) from unreachable
    return None


def downloading(repository: str, file: str, revision: str | None, otherwise: str) -> Request:
    """The request for a file."""
    wanted = f"{repository}/{file}"
    return Request(f"the download of {wanted}", wanted, repository, revision, otherwise)


def fetch_file(repository: str, file: str, revision: str | None, progress: Progress, *, cached: bool = False) -> Path:
    """The path of a file in the cache, which is downloaded if need be. Raises the client's errors.

    cached: look only into the cache.
    """
    hub = client()
    bar = reporting_bar(f"Downloading {repository}/{file}", progress)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            path = hub.hf_hub_download(
                repository,
                file,
                revision=revision,
                library_name="vaedeploy",
                local_files_only=cached,
                tqdm_class=bar,
            )
            bar.finish()
            return Path(path)
        except hub.errors.HfHubHTTPError:
            raise
        except transport_error():
            if attempt == ATTEMPTS:
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")


def _commit(path: Path, file: str) -> str | None:
    """The commit of ``file``, which the cache keeps at .../snapshots/COMMIT/FILE."""
    # From the end, since the cache itself may be in a folder of that name.
    *_, kind, commit = path.parts[: -len(PurePosixPath(file).parts)]
    return commit if kind == "snapshots" else None


def reporting_bar(what: str, progress: Progress) -> type[Any]:
    """A class of progress bars that report to ``progress`` and draw nothing. what: the work that they report."""
    from tqdm.std import tqdm  # type: ignore[import-untyped]

    class ReportingBar(tqdm):  # type: ignore[misc]
        told: tuple[float, float] = (0.0, 0.0)

        @classmethod
        def finish(cls) -> None:
            """Report that all is there: the client does not report what came from elsewhere, such as a cache."""
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

        # To a bar with these two methods the client reports network and disk, and opens no second bar.
        def update_transfer(self, n: float) -> None: ...

        def set_transfer_postfix_str(self, *args: Any, **kwargs: Any) -> None: ...

        def _report(self) -> None:
            if self.total:
                type(self).told = float(self.n), float(self.total)
                progress(what, *self.told)

    return ReportingBar


def transport_error() -> type[Exception]:
    """Base class of the errors of the client's HTTP library, which differs between versions of the client."""
    bases: tuple[type[Any], ...] = client().errors.HfHubHTTPError.__bases__
    return next(base for base in bases if issubclass(base, Exception))


def client_errors() -> tuple[type[Exception], ...]:
    """The errors that the client raises on purpose."""
    return (transport_error(), OSError, ValueError)


def page(repository: str) -> str:
    """The address of a repository's page."""
    return f"{_endpoint()}/{repository}"


def _endpoint() -> str:
    return _without_password(client().constants.ENDPOINT)


def _without_password(text: str) -> str:
    """``text`` with every https://NAME:PASSWORD@HOST in it as https://HOST."""
    return re.sub(r"(?<=://)[^/\s@]*(?:@[^/\s@]*)*@", "", text)


def explain(error: Exception, request: Request) -> str:
    """What went wrong and what to do about it, by the most specific cause that applies."""
    constants, errors = client().constants, client().errors
    wanted, repository, otherwise = request.wanted, request.repository, request.otherwise
    cause = error.__cause__ or error
    if isinstance(cause, errors.OfflineModeIsEnabled) or (
        isinstance(error, errors.LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE
    ):
        return (
            f"{wanted} is not in the cache ({constants.HF_HUB_CACHE}) and HF_HUB_OFFLINE is set. Unset it, {otherwise}"
        )
    explanations: list[tuple[type[Exception], Callable[[], str]]] = [
        (errors.GatedRepoError, lambda: _gated(request)),
        (errors.RepositoryNotFoundError, lambda: _no_repository(repository)),
        (errors.RevisionNotFoundError, lambda: _no_revision(repository, request.revision)),
        (errors.HFValidationError, lambda: f"{repository!r} is not the name of a hub repository: {one_line(error)}"),
        (errors.LocalEntryNotFoundError, lambda: _unreachable(request, cause)),
    ]
    for kind, words in explanations:
        if isinstance(error, kind):
            return words()
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        if client().get_token() is None:
            told, login = f"the hub wants a token for {wanted}, and there is none", "`hf auth login`"
        else:
            told, login = f"the hub refused the token for {wanted}", "`hf auth login` again"
        return f"{told}. Run {login}, or set HF_TOKEN, {otherwise}"
    return f"{request.what} failed: {one_line(error)}. Run the command again, {otherwise}"


def _gated(request: Request) -> str:
    return (
        f"the hub repository {request.repository} is gated. Accept its licence at {page(request.repository)}, then run "
        f"`hf auth login` or set HF_TOKEN, and run the command again, {request.otherwise}"
    )


def _no_revision(repository: str, revision: str | None) -> str:
    return f"the hub repository {repository} has no revision {revision}. See those it has: {page(repository)}/commits"


def _no_repository(repository: str) -> str:
    return (
        f"the hub has no repository {repository}, or it is private. Check the name at {page(repository)}; "
        "where it is private, run `hf auth login` or set HF_TOKEN"
    )


def _unreachable(request: Request, cause: BaseException) -> str:
    return (
        f"cannot download {request.wanted}: {_endpoint()} does not answer as a hub ({one_line(cause)}). "
        f"Check the network and HF_ENDPOINT, {request.otherwise}"
    )


def one_line(error: BaseException) -> str:
    """What an error says, without line feeds, its last full stop and passwords in addresses."""
    text = _without_password(" ".join(str(error).split())).rstrip(".")
    return text or type(error).__name__
