"""Writing ONNX files so that no reader ever sees half of one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir

from vaedeploy.bundle.stored import refuse_in_bundle
from vaedeploy.errors import ExportError, OutputError
from vaedeploy.pipeline.optimize.source import FAULTS, Source, first_line
from vaedeploy.system.atomic import clear_leftovers, draft_name, sync_directory
from vaedeploy.system.lock import lock
from vaedeploy.system.oserrors import advice, reason
from vaedeploy.system.places import exists, is_file, resolved


def data_file(out: Path) -> Path:
    """The file that the weights of ``out`` go to."""
    return out.with_name(f"{out.name}.data")


def check_place(out: Path, source: Source, force: bool) -> None:
    """Raise OutputError where ``out`` or the file of its weights must not be written, or cannot be."""
    refuse_in_bundle(out)
    for path in (out, data_file(out)):
        if resolved(path) in source.files or any(exists(path) and path.samefile(file) for file in source.files):
            what = (
                "is the graph that is read" if resolved(path) == resolved(source.path) else f"belongs to {source.path}"
            )
            raise OutputError(f"{path} {what}, which is never written over. Choose another name with -o")
        if exists(path) and not is_file(path):
            raise OutputError(f"cannot write {path}: it is there and is not a file. Choose another name with -o")
        if exists(path) and not force:
            raise OutputError(
                f"{path} is there already. Replace it with --force (force=True in Python), or give another name with -o"
            )


@contextmanager
def writing(out: Path) -> Iterator[Path]:
    """Context that gives a place for a draft of ``out``, in a folder beside it that is removed afterwards in any case.

    Only one process at a time may write ``out``. What a killed one left behind is removed first. Raises OutputError
    where another process is writing it, or the place cannot be written to.
    """
    try:
        with lock(out.with_name(f".{out.name}.lock")) as free:
            if not free:
                raise OutputError(f"cannot write {out}: another process is writing it now. Wait for it")
            clear_leftovers(out)
            folder = draft_name(out)
            folder.mkdir()
            try:
                yield folder / out.name
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {reason(error)}. {advice(error)}") from error


def write_draft(model: ir.Model, draft: Path, source: Source) -> None:
    """Save ``model`` at ``draft``, its weights beside it. Raises ExportError where the result is not a valid model."""
    ir.save(model, draft, external_data=data_file(draft).name)
    try:
        onnx.checker.check_model(draft, full_check=True)
    except FAULTS as error:
        if _is_strict(source.path):  # else the source may have had the fault already
            raise ExportError(
                f"optimizing {source.path} made a faulty graph; it was not written. This is a fault of vaedeploy: "
                f"{first_line(error)}"
            ) from error


def _is_strict(path: Path) -> bool:
    """Whether a graph passes the full check, shape inference included."""
    try:
        onnx.checker.check_model(path, full_check=True)
    except FAULTS:
        return False
    return True


def publish(draft: Path, out: Path) -> None:
    """Move a draft into its place. The old graph is removed first and the new one moved last, so that no graph is ever
    beside another's weights.
    """
    data = data_file(draft)
    for path in (data, draft):
        if path.exists():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    out.unlink(missing_ok=True)
    if data.exists():
        data.replace(data_file(out))
    else:
        data_file(out).unlink(missing_ok=True)
    draft.replace(out)
    sync_directory(out.resolve().parent)
