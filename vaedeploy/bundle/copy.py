"""Copies of bundles."""

from __future__ import annotations

from pathlib import Path

from vaedeploy.bundle.bundle import Bundle, file_info
from vaedeploy.bundle.encoding import decode_manifest
from vaedeploy.bundle.manifest import NAME
from vaedeploy.errors import BundleError
from vaedeploy.system.files import handle_pieces
from vaedeploy.system.progress import Progress, silent


def copy_bundle(bundle: Bundle, folder: Path, progress: Progress = silent) -> None:
    """Copy ``bundle`` into the new folder ``folder``, and check the copy of each file.

    Raises BundleError for a bundle that is damaged or was changed in between, and OSError. The caller then removes what
    is in ``folder``.
    """
    data = (bundle.path / NAME).read_bytes()
    if decode_manifest(data, bundle.path) != bundle.manifest:
        raise BundleError(f"bundle {bundle.path} was changed while it was copied. Copy it again")
    bundle.refuse({name: damage for name in bundle.manifest.files if (damage := bundle.damage(name, False))})
    what, done = f"Copying {bundle.path}", 0
    total = sum(info.bytes for info in bundle.manifest.files.values())
    folder.mkdir(parents=True)
    for name, info in bundle.manifest.files.items():
        progress(what, done, total)
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with bundle.handle(name) as handle, target.open("wb") as copy:
            copy.writelines(handle_pieces(handle))
        if file_info(target, sync=True) != info:
            bundle.refuse({name: bundle.damage(name) or "was changed while it was copied"})
        done += info.bytes
    (folder / NAME).write_bytes(data)
    file_info(folder / NAME, sync=True)
    progress(what, total, total)
