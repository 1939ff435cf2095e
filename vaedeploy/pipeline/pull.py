"""A bundle in a hub repository -> one on this disk: what ``vaedeploy pull`` does."""

from __future__ import annotations

from pathlib import Path

from vaedeploy.bundle import Bundle
from vaedeploy.bundle.address import Address, parse_address
from vaedeploy.bundle.encoding import check_identity
from vaedeploy.bundle.pull import cached_copy, pull_into
from vaedeploy.system.progress import Progress, silent


def pull_bundle(
    repository: str,
    out: str | Path | None = None,
    *,
    identity: str | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Bundle:
    """Download a bundle from a hub repository, and check every file of it.

    >>> bundle = vd.pull_bundle("someone/mse840k@0123456789abcdef0123456789abcdef01234567")
    >>> bundle = vd.pull_bundle("someone/mse840k", "mse840k")

    repository: ``owner/name`` or ``owner/name@revision``, the branch, tag or commit; ``hf://`` may stand before it.
    out: the folder to make for a bundle of your own, which may be changed. By default the bundle goes into vaedeploy's
        cache, where each commit has its own copy: a copy that is there needs no network, and nothing changes it.
    identity: the identity of the VAE that the bundle must hold, as ``vaedeploy inspect`` shows it.
    force: replace a bundle that is at ``out``.
    progress: reports how far each download is, see ``Progress``.

    The client is huggingface_hub, whose token and environment variables apply (``HF_TOKEN``, ``HF_ENDPOINT``,
    ``HF_HUB_OFFLINE``).

    Raises InputError for an invalid name, DownloadError where the hub cannot be reached or has no such repository or
    revision, BundleError where it holds no bundle, a damaged one, another VAE, or one of a newer format, and
    OutputError where ``out`` exists (without ``force``) or cannot be written to. A pull that ends early leaves nothing.
    """
    return pull_pinned(repository, out, identity=identity, force=force, progress=progress)[0]


def pull_pinned(
    repository: str,
    out: str | Path | None = None,
    *,
    identity: str | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> tuple[Bundle, Address]:
    """``pull_bundle``, which also returns the address with the commit that was pulled."""
    address = parse_address(repository)
    if out is None:
        folder = cached_copy(address, progress, identity)
        bundle = Bundle.open(folder)
        check_identity(bundle.manifest, folder, identity)
        return bundle, Address(address.repository, folder.parent.name)
    return pull_into(address, Path(out), identity=identity, force=force, progress=progress)
