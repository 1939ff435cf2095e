"""The bytes of ``bundle.json`` -> Manifest, and back, with the seal that proves them."""

from __future__ import annotations

import hashlib
import re
import shlex
from pathlib import Path, PurePosixPath

import msgspec

from vaedeploy.bundle.address import fetch_again
from vaedeploy.bundle.manifest import FORMAT, NAME, Manifest
from vaedeploy.errors import BundleError, ContractError
from vaedeploy.system.installs import upgrade_command
from vaedeploy.values.identity import check_whole
from vaedeploy.version import __version__

BLANK = "0" * 64
"""What stands for the seal while its sha256 is computed."""


class _Head(msgspec.Struct):
    """The field that is decoded first, before it is known whether this version can read the others."""

    format: int


class _Writer(msgspec.Struct):
    """Who wrote a manifest that this version cannot read."""

    vaedeploy: str
    seal: str | None = None


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of ``bundle.json``, with their seal."""
    blank = msgspec.structs.replace(manifest, seal=BLANK)
    data = msgspec.json.format(msgspec.json.encode(blank), indent=2) + b"\n"
    return _with_seal(data, BLANK, hashlib.sha256(data).hexdigest())


def _with_seal(data: bytes, seal: str, new: str) -> bytes:
    """The bytes of a manifest with another seal: it is the last field, so it is where ``seal`` occurs last."""
    before, found, after = data.rpartition(seal.encode())
    return before + new.encode() + after if found else data


def decode_manifest(data: bytes, bundle: Path | str, advice: str | None = None) -> Manifest:
    """Read the bytes of ``bundle.json``.

    bundle: the path that errors name, or an address. advice: what to do if they are damaged; by default, to export it
    or to fetch it again.

    Raises BundleError for bytes that are not JSON, another format version, unknown or missing fields, values of a wrong
    type, a seal that is not theirs, paths that leave the bundle, and graphs or engines that are not among the files.
    """
    renew = advice or f"Export it again: vaedeploy export NAME --out {shlex.quote(str(bundle))} --force"
    repair = advice or f"{renew}. {fetch_again(bundle)}"
    try:
        version = msgspec.json.decode(data, type=_Head).format
        if version != FORMAT:
            raise BundleError(
                f"bundle {bundle} has format {version}; this vaedeploy knows format {FORMAT} only. "
                + (f"Upgrade: {upgrade_command()}" if version > FORMAT else renew)
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, ContractError, RecursionError) as error:
        if newer := _newer_writer(data):
            raise BundleError(
                f"bundle {bundle} was written by {newer}, and this is {__version__}, which cannot read it: {error}. "
                f"Upgrade: {upgrade_command()}"
            ) from error
        raise BundleError(f"bundle {bundle}: {NAME} cannot be used: {error}. {repair}") from error
    if manifest.seal is not None:
        found = _seal_of(data, manifest.seal)
        if found != manifest.seal:
            raise BundleError(
                f"bundle {bundle}: {NAME} is altered: its sha256 is {found} where its seal says {manifest.seal}. "
                + repair
            )
    check_manifest(manifest, bundle)
    return manifest


def _seal_of(data: bytes, seal: str) -> str:
    """The sha256 of the bytes of a manifest, in which zeros stand for ``seal``."""
    return hashlib.sha256(_with_seal(data, seal, BLANK)).hexdigest()


def _newer_writer(data: bytes) -> str | None:
    """The newer vaedeploy that wrote a manifest, in words; None where an older one did, or it was altered since."""
    try:
        writer = msgspec.json.decode(data, type=_Writer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if _numbers(writer.vaedeploy) > _numbers(__version__):
        return f"vaedeploy {writer.vaedeploy}"
    # Between releases the version stays, but a valid seal over a field that is unknown here shows a newer writer.
    if writer.seal is not None and _numbers(writer.vaedeploy) == _numbers(__version__):
        return f"a newer vaedeploy {writer.vaedeploy}" if _seal_of(data, writer.seal) == writer.seal else None
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d{1,9}", version)[:3]))


def check_manifest(manifest: Manifest, bundle: Path | str) -> None:
    """Raise BundleError if the manifest contradicts itself or names a path that a file in a bundle cannot have."""
    graphs = [name for forms in manifest.graphs.values() for name in forms.values()]
    for name in (*manifest.files, *graphs, *manifest.rows.values(), *manifest.engines, *manifest.unfinished):
        if fault := path_fault(name):
            raise BundleError(f"bundle {bundle}: {NAME} names the path {name!r}, which {fault}; it is refused")
    for part in ("encoder", "decoder"):
        if "portable" not in manifest.graphs.get(part, {}):
            raise BundleError(f"bundle {bundle}: {NAME} names no portable graph of the {part}")
    for kind, names in (("graph", graphs), ("pieces", manifest.rows.values()), ("engine", manifest.engines)):
        for name in names:
            if name not in manifest.files:
                raise BundleError(f"bundle {bundle}: {NAME} names the {kind} {name} but not among its files")


def check_identity(manifest: Manifest, bundle: object, identity: str | None) -> None:
    """Raise BundleError where ``identity`` is given and is not that of the VAE in the bundle. Raise InputError where it
    is not a complete identity.

    bundle: for the message.
    """
    found = manifest.vae.identity
    check_whole(identity, found, f"bundle {bundle}")
    if identity not in (None, found):
        raise BundleError(
            f"bundle {bundle} holds a VAE other than the one that is wanted: its identity is {found}, and not "
            f"{identity}. Take the bundle of that VAE, or the identity of this one"
        )


def path_fault(name: str) -> str | None:
    """Why no file in a bundle can have the path ``name``, as words that follow it; None if one can, on every system."""
    if not name or re.search(r"[\x00-\x1f\x7f]", name):
        return "is empty or has control characters"
    if "\\" in name or ":" in name:
        return "has a backslash or a colon"
    if name.startswith("/"):
        return "is absolute"
    segments = name.split("/")
    if ".." in segments:
        return "leaves the bundle"
    if "." in segments or "" in segments or any(s[-1] in ". " for s in segments):
        return "is not in its plain form"
    return "is the manifest itself" if PurePosixPath(name.lower()) == PurePosixPath(NAME) else None
