"""A bundle on this disk -> one commit in a hub repository: what ``vaedeploy push`` does."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vaedeploy.bundle import Bundle, as_bundle
from vaedeploy.bundle.address import Address, parse_address
from vaedeploy.bundle.encoding import decode_manifest
from vaedeploy.bundle.engines import engine_faults, rebuild
from vaedeploy.bundle.manifest import NAME
from vaedeploy.errors import BundleError, DownloadError
from vaedeploy.pipeline.card import MARK, model_card
from vaedeploy.system import hub
from vaedeploy.system.hub import Request
from vaedeploy.system.installs import install_command
from vaedeploy.system.progress import Progress, silent

CARD = "README.md"

OTHERWISE = "or copy the bundle's folder in another way"

SMALL = 1 << 22
"""Files of fewer bytes are held in memory until the commit is made."""

log = logging.getLogger(__name__)


def push_bundle(
    bundle: Bundle | str | Path, repository: str, *, allow_unverified: bool = False, progress: Progress = silent
) -> str:
    """Put a bundle into a hub repository, as one commit, and return its address with that commit.

    >>> vd.push_bundle("mse840k", "someone/mse840k")
    'hf://someone/mse840k@0123456789abcdef0123456789abcdef01234567'

    repository: ``owner/name`` or ``owner/name@branch``. It must exist: whether it is private is decided when it is made
        (``hf repos create owner/name --private``).
    allow_unverified: push the bundle even if it was never verified or failed.
    progress: reports how much is uploaded, see ``Progress``.

    The bundle is left as it is. Files of a bundle that was in the repository before are removed, others stay. The
    repository's README.md is written, with the VAE's identity, its latent contract and the figures of the verification,
    unless there is one that somebody wrote.

    The client is huggingface_hub, whose token and environment variables apply (``HF_TOKEN``, ``HF_ENDPOINT``).

    Raises InputError for an invalid name, BundleError for a bundle that is damaged or not verified, and DownloadError
    where the hub cannot be reached, has no such repository, or does not let you write to it.
    """
    address = parse_address(repository)
    bundle = as_bundle(bundle).current()
    if not (bundle.verified or allow_unverified):
        state = "was never verified" if bundle.manifest.verification is None else "failed its verification"
        raise BundleError(
            f"bundle {bundle.path} {state}, so it is not pushed. Run: vaedeploy verify {bundle.path}; or push it "
            "anyway with --allow-unverified (allow_unverified=True in Python)"
        )
    bundle.refuse(bundle.damages(bundle.manifest.files))
    for name in bundle.manifest.engines:
        if faults := engine_faults(bundle, name, verify_hash=False):
            log.warning("%s is pushed and cannot be used: %s. %s", name, "; ".join(faults), rebuild(bundle, name))
    origin = bundle.manifest.vae.origin
    if origin.kind in ("file", "folder") and not origin.is_private:
        log.warning(
            "%s says where the weights were on this disk: %s. A bundle that was exported with --private does not",
            NAME,
            origin.location,
        )
    with _telling(address):
        return str(Address(address.repository, _commit(bundle, address, progress)))


def _commit(bundle: Bundle, address: Address, progress: Progress) -> str:
    """Upload the files and make the commit. Returns its hash."""
    client, manifest = hub.client(), bundle.manifest
    api = client.HfApi(library_name="vaedeploy")
    where = {"repo_id": address.repository, "revision": address.revision}
    # Another commit in between would mix two bundles, since unchanged files are not sent.
    parent = api.repo_info(**where).sha
    added = _added(client, bundle)
    if _writes_card(address):
        added[CARD] = client.CommitOperationAdd(CARD, model_card(bundle, address.repository).encode())
    what, done, total = f"Pushing to {address.repository}", 0, sum(file.upload_info.size for file in added.values())
    progress(what, done, total)
    with _without_bars(client):
        for file in added.values():
            api.preupload_lfs_files(additions=[file], **where)
            progress(what, done := done + file.upload_info.size, total)
        bundle.refuse(
            {
                name: "was changed while it was pushed"
                for name, info in manifest.files.items()
                if added[name].upload_info.sha256.hex() != info.sha256
            }
        )
        gone = sorted(_files_of_before(address) - added.keys() - {CARD})
        commit = api.create_commit(
            operations=[*added.values(), *map(client.CommitOperationDelete, gone)],
            commit_message=f"{manifest.vae.name} in {manifest.precision}, by vaedeploy {manifest.vaedeploy}",
            commit_description=f"VAE {manifest.vae.identity}",
            parent_commit=parent,
            **where,
        )
    return str(commit.oid)


def _added(client: Any, bundle: Bundle) -> dict[str, Any]:
    """Name -> the client's operation that adds it, for the manifest and every file. Small files are read now."""
    data = (bundle.path / NAME).read_bytes()
    if decode_manifest(data, bundle.path) != bundle.manifest:
        raise BundleError(f"bundle {bundle.path} was changed while it was pushed. Push it again")
    contents: dict[str, bytes | str] = {NAME: data}
    for name, info in sorted(bundle.manifest.files.items()):
        contents[name] = bundle.read(name) if info.bytes < SMALL else str(bundle.path / name)
    return {name: client.CommitOperationAdd(name, content) for name, content in contents.items()}


def _writes_card(address: Address) -> bool:
    """Whether to write the card: the repository has none, or one that an earlier push wrote."""
    card = _fetch(address, CARD)
    if card is None or MARK in card:
        return True
    log.warning("%s has a %s that somebody wrote; it stays as it is", address.repository, CARD)
    return False


def _files_of_before(address: Address) -> set[str]:
    """The files of the bundle that is in the repository."""
    data = _fetch(address, NAME)
    if data is None:
        return set()
    try:
        before = decode_manifest(data.encode(), str(address))
    except BundleError:  # another program's file of that name, or a bundle that cannot be read here
        return set()
    files = hub.client().HfApi(library_name="vaedeploy").list_repo_files(address.repository, revision=address.revision)
    return set(before.files) & set(files)


def _fetch(address: Address, file: str) -> str | None:
    fetched = hub.fetch_if_there(address.repository, [file], revision=address.revision, otherwise=OTHERWISE)
    return None if fetched is None else fetched.path.read_text(encoding="utf-8", errors="replace")


@contextmanager
def _without_bars(client: Any) -> Iterator[None]:
    """Context in which the client draws no bars of its own."""
    off = client.utils.are_progress_bars_disabled()
    client.utils.disable_progress_bars()
    try:
        yield
    finally:
        if not off:
            client.utils.enable_progress_bars()


@contextmanager
def _telling(address: Address) -> Iterator[None]:
    """Context in which the client's errors become a DownloadError."""
    try:
        # RuntimeError is what the client raises for an upload that failed.
        errors: tuple[type[Exception], ...] = (*hub.client_errors(), RuntimeError)
    except ModuleNotFoundError as error:
        raise DownloadError(
            f"push needs {error.name}, which is not installed. Run: {install_command('hub')}, {OTHERWISE}"
        ) from error
    name = address.repository
    try:
        yield
    except errors as error:
        told = error.__cause__ if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception) else error
        status = getattr(getattr(told, "response", None), "status_code", None)
        if status == 403:
            raise DownloadError(
                f"the hub does not let you write to {name}: {hub.one_line(told)}. Log in as somebody who may, or take "
                "a token with the right to write: HF_TOKEN"
            ) from error
        missing = isinstance(told, hub.client().errors.RepositoryNotFoundError)
        made = f". To make it: hf repos create {name}" if missing else ""
        request = Request(f"the push to {name}", name, name, address.revision, OTHERWISE)
        raise DownloadError(hub.explain(told, request) + made) from error
