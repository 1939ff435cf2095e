"""Reading ONNX files of any origin, and writing them so that no reader ever sees half of one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, ShapeInferencePass

from vaedeploy.errors import ExportError, InputError, OutputError
from vaedeploy.graph.graph import map_linked_weights
from vaedeploy.graph.sizes import LARGEST_SIZES
from vaedeploy.system.atomic import clear_leftovers, draft_name, sync_directory
from vaedeploy.system.lock import lock
from vaedeploy.system.oserrors import advice, reason

OLDEST_OPSET = 13
"""The oldest opset that is taken: from 13 on, Squeeze, Unsqueeze and ReduceSum take their axes as an input, which is
how the rules write and read them.
"""

FAULTS = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError)


@dataclass(frozen=True)
class Source:
    """A graph that was read.

    files: the resolved paths of its file and of those that its weights are in. They must not be written to.
    """

    path: Path
    model: ir.Model
    files: frozenset[Path]


def read_source(path: Path) -> Source:
    """Read any ONNX file; its weights stay on disk. Functions are inlined, and shapes are inferred.

    Raises InputError for a file that is missing, not ONNX or not valid, misses its weights, or has an opset below 13.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the .onnx file in it")
    if not path.exists():
        raise InputError(f"there is no file {path}")
    try:
        model = ir.load(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason(error)}") from error
    except Exception as error:  # protobuf's errors, and whatever onnx_ir raises for a damaged graph
        raise InputError(f"{path} is not an ONNX file, or a damaged one: {error}") from error
    if not model.ir_version or not model.graph.outputs:
        raise InputError(f"{path} is not an ONNX file: it holds no graph")
    files = {path.resolve(), *_check_weights(path, model)}
    map_linked_weights(model)
    _check_opset(path, model)
    try:
        onnx.checker.check_model(path)
    except FAULTS as error:
        raise InputError(f"{path} is not a valid ONNX model: {_first_line(error)}") from error
    _load_sizes(model)
    if model.functions:
        InlinePass()(model)
    outputs = [(value, value.shape) for value in model.graph.outputs]
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    for value, shape in outputs:  # the interface must not change
        value.shape = shape
    return Source(path, model, frozenset(files))


def _check_weights(path: Path, model: ir.Model) -> set[Path]:
    """The files that the graph's weights are in. Raises InputError where one is missing or too short."""
    files = set()
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if not isinstance(tensor, ir.ExternalTensor):
                continue
            place, end = Path(tensor.path), (tensor.offset or 0) + (tensor.length or tensor.nbytes)
            if not place.is_file():
                raise InputError(
                    f"{path} has its weights in another file, {tensor.location}, and there is no {place}. "
                    "Put it there: the two belong together"
                )
            if place.stat().st_size < end:
                raise InputError(
                    f"{place}, where {path} has its weights, is too short: it has {place.stat().st_size} bytes, and "
                    f"{value.name} ends at {end}. Copy it again"
                )
            files.add(place.resolve())
    return files


def _load_sizes(model: ir.Model) -> None:
    """Read into memory every tensor that is small enough to be a Resize's scales or a Reshape's shape: shape inference
    needs those, and does not read them from other files.
    """
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and tensor.size <= LARGEST_SIZES:
            value.const_value = ir.tensor(tensor.numpy().copy(), name=tensor.name)


def _check_opset(path: Path, model: ir.Model) -> None:
    """Raise InputError for an opset that is too old or too new, and for a graph without standard operators."""
    opset = model.opset_imports.get("")
    newest = onnx.defs.onnx_opset_version()
    if opset is None:
        raise InputError(f"{path} uses no standard ONNX operators, only those of {', '.join(model.opset_imports)}")
    if not OLDEST_OPSET <= opset <= newest:
        raise InputError(
            f"{path} has opset {opset}; {OLDEST_OPSET} to {newest} are taken. Export it again, with opset 17 or later "
            "in PyTorch, or convert it: onnx.version_converter.convert_version"
        )


def data_file(out: Path) -> Path:
    """The file that the weights of ``out`` go to."""
    return out.with_name(f"{out.name}.data")


def check_place(out: Path, source: Source, force: bool) -> None:
    """Raise OutputError where ``out`` or the file of its weights must not be written, or cannot be."""
    for path in (out, data_file(out)):
        if path.resolve() in source.files or any(path.exists() and path.samefile(file) for file in source.files):
            what = (
                "is the graph that is read" if path.resolve() == source.path.resolve() else f"belongs to {source.path}"
            )
            raise OutputError(f"{path} {what}, which is never written over. Choose another name with -o")
        if path.exists() and not path.is_file():
            raise OutputError(f"cannot write {path}: it is there and is not a file. Choose another name with -o")
        if path.exists() and not force:
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
                f"{_first_line(error)}"
            ) from error


def _is_strict(path: Path) -> bool:
    """Whether a graph passes the full check, shape inference included."""
    try:
        onnx.checker.check_model(path, full_check=True)
    except FAULTS:
        return False
    return True


def publish(draft: Path, out: Path) -> None:
    """Move a draft into its place. The old graph is removed first and the new one is moved last, so that no graph is
    ever beside the weights of another.
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


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", maxsplit=1)[0].rstrip(".")
