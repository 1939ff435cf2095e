"""``bundle.json`` on disk: read without trust in its content, and written in one step."""

from __future__ import annotations

import os
import time
from pathlib import Path

from vaedeploy.bundle.address import PULLED_AGAIN, is_cached
from vaedeploy.bundle.encoding import decode_manifest, encode_manifest
from vaedeploy.bundle.manifest import NAME, Manifest
from vaedeploy.errors import BundleError, OutputError
from vaedeploy.system.atomic import put_back, set_aside, write_file
from vaedeploy.system.files import HeldFolder, handle_bytes, open_regular
from vaedeploy.system.missing import missing
from vaedeploy.system.oserrors import reason
from vaedeploy.system.places import exists, is_folder, resolved
from vaedeploy.values.origin import WEIGHTS_SUFFIXES
from vaedeploy.values.presets import preset_names

LARGEST = 1 << 24
"""The most bytes of a manifest: a hundred times those of one with a hundred engines."""

PATIENCE = 2.0
"""Seconds for which a bundle may be gone while another process replaces it in two renames."""


def read_manifest(path: Path, folder: HeldFolder | None = None) -> Manifest:
    """The manifest of the bundle at ``path``, read from ``folder`` if that holds it.

    Raises BundleError if there is no bundle or its manifest is not valid. A bundle that a killed process set aside is
    put back first.
    """
    of_weights = path.suffix in WEIGHTS_SUFFIXES
    made_of = f"{path} --out {path.with_suffix('')}" if of_weights else f"NAME --out {path}"
    remedy = f"Make a bundle with: vaedeploy export {made_of}"
    if not exists(path) and not _wait_for(path):
        if str(path) in preset_names():
            remedy = f"{path} is a preset; export it first: vaedeploy export {path}"
        if (old := set_aside(resolved(path))) is not None:
            remedy = f"A process that was killed while it replaced it left it as {old}; rename that to {path.name}"
        raise BundleError(f"{missing('bundle at', path, is_bundle)}. {remedy}")
    if not is_folder(path):
        raise BundleError(
            f"{path} is a file; a bundle is a folder with a {NAME} in it. {remedy if of_weights else 'Give the folder'}"
        )
    if fault := link_fault(path, NAME):  # writing there would change another folder's file
        raise BundleError(f"bundle {path}: {NAME} {fault}. Put a copy of the file in the link's place")
    try:
        with (folder or HeldFolder(path)).handle(NAME) as handle:
            data = handle_bytes(handle, LARGEST + 1)
    except FileNotFoundError as error:
        if any(path.iterdir()):  # a bundle can be made in an empty folder, but not in this one
            remedy = "Give a bundle's folder, or make one in another place: vaedeploy export NAME --out PLACE"
        raise BundleError(f"{path} is not a bundle: it has no {NAME}. {remedy}") from error
    except OSError as error:
        raise BundleError(f"bundle {path}: {NAME} cannot be read: {reason(error)}") from error
    if len(data) > LARGEST:
        raise BundleError(f"bundle {path}: {NAME} has more than {LARGEST:,} bytes; it is not a manifest")
    return decode_manifest(data, path, PULLED_AGAIN if is_cached(path) else None)


def link_fault(bundle: Path, name: str) -> str | None:
    """What is wrong if a symbolic link on the way to the file ``name`` leads out of the bundle; otherwise None."""
    inside = resolved(bundle / name).is_relative_to(resolved(bundle))
    return None if inside else "leaves the bundle through a link"


def _wait_for(path: Path) -> bool:
    """Whether there is something at ``path`` after all: a bundle that was set aside there while it was replaced."""
    place = resolved(path)
    end = time.monotonic() + PATIENCE
    while set_aside(place) is not None and time.monotonic() < end:
        if not put_back(place):
            time.sleep(0.01)  # another process is at it
    return exists(place)


def write_manifest(path: Path, manifest: Manifest) -> Manifest:
    """Write the manifest of the bundle at ``path``, with its seal. Returns it as a reader gets it.

    Raises OutputError if it cannot be written.
    """
    data = encode_manifest(manifest)
    write_file(path / NAME, data)
    return decode_manifest(data, path)


def refuse_in_bundle(out: Path) -> None:
    """Raise OutputError where ``out``, a file or a folder, is a bundle or within one: another file would damage it."""
    place = resolved(out)
    for folder in (place, *place.parents):
        if is_bundle(folder):
            raise OutputError(f"{folder} is a bundle, and another file would damage it. Choose another folder")


def is_bundle(place: Path) -> bool:
    """Whether ``place`` is a bundle, even a damaged one.

    A ``bundle.json`` alone does not make it one, since other programs have files of that name.
    """
    try:
        handle = open_regular(place / NAME)
    except (OSError, ValueError):  # ValueError: a path with a null character
        return False
    try:
        head = handle_bytes(handle, 4096)
    except OSError:
        return False
    finally:
        os.close(handle)
    return b'"format"' in head and b'"vaedeploy"' in head
