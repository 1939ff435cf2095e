"""One half on ONNX Runtime's CUDA provider, by rows where the GPU has no memory for the whole graph."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaedeploy.bundle import Bundle
from vaedeploy.bundle.rows import Piece
from vaedeploy.errors import BackendError
from vaedeploy.runtime import onnxruntime_cpu, onnxruntime_cuda
from vaedeploy.runtime.cuda import CudaDevice
from vaedeploy.runtime.device import Array, Device, OnDevice, shape_of
from vaedeploy.runtime.failures import failures_explained, is_out_of_memory, let_go
from vaedeploy.runtime.rows.budget import SHARE
from vaedeploy.runtime.rows.device_arrays import DeviceArrays
from vaedeploy.runtime.rows.half import RowsHalf
from vaedeploy.runtime.rows.indexing import items_at_once
from vaedeploy.system.progress import Progress, silent
from vaedeploy.values.interface import Tensor
from vaedeploy.values.kinds import Part

__all__ = ["GpuRunner"]

log = logging.getLogger(__name__)

PIECE_OPTIONS = {
    # A piece runs each of a few strip sizes once or a few times: cuDNN's search for the fastest algorithm takes longer.
    "cudnn_conv_algo_search": "HEURISTIC",
    # The plan counts only what tensors take.
    "arena_extend_strategy": "kSameAsRequested",
}
"""The provider's options for pieces."""

LEAN_OPTIONS = {**PIECE_OPTIONS, "cudnn_conv_algo_search": "DEFAULT"}
"""With these, cuDNN's convolutions need little memory beside their tensors. Its heuristics chose an algorithm that took
1.1 GB for the first convolution of the demo VAE's decoder, and no option of the provider limits that with cuDNN 9. On
an H200, a full-size decode of 1024x1024 in the least memory took 7.2 s with these, 3.7 s with the heuristics.
"""

TYPES = {
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}
"""ONNX Runtime's name of a type -> numpy's."""

LIBRARIES = 400 * 2**20
"""Bytes of the GPU's memory that rows take beside their plan: loaded kernels, and workspaces of cuBLAS and cuDNN. On an
H200 they were 0.28 to 0.39 GB in decodes of 1024x1024.
"""

SCORES_IN_BLOCKS = frozenset(("chunk_attention", "fuse_attention"))
"""Rewrite rules. Without any of them, a graph has all scores of an attention in one tensor."""

MORE = 1.1
"""A size at which the whole graph failed is tried again when this many times as much memory is free."""


class GpuRunner:
    """The whole graph of a half. It runs by rows, in float32, at sizes for which the GPU lacks memory, or whose tensors
    have more elements than its kernels can number.

    What the whole graph takes on a GPU is not known beforehand, so each size is tried whole once, and again when more
    memory is free than there was.

    whole: runs the graph. options: of the provider, which the caller chose; ``gpu_mem_limit`` holds for the arrays of
    rows too. device: its number.
    """

    def __init__(
        self,
        bundle: Bundle,
        part: Part,
        whole: onnxruntime_cuda.Session,
        device: int,
        threads: int | None = None,
        options: Mapping[str, str] | None = None,
        verify_hashes: bool = True,
        progress: Progress = silent,
    ) -> None:
        self._bundle, self._part, self._whole, self._number = bundle, part, whole, device
        self._threads, self._options = threads, dict(options or {})
        self._verify_hashes, self._progress = verify_hashes, progress
        self.graph, self.inputs, self.outputs = whole.graph, whole.inputs, whole.outputs
        self._whole_scores = SCORES_IN_BLOCKS.isdisjoint(bundle.manifest.rewrites.get(whole.graph.name, {}))
        self._rows = RowsHalf(bundle, part, verify_hashes=verify_hashes)  # to read, not to run
        self._at_once: dict[tuple[int, int], int] = {}
        self._too_large: dict[tuple[int, ...], int] = {}  # and how many bytes were free without it
        self._lock = threading.Lock()
        self._halves: dict[bool, RowsHalf] = {}

    def run(
        self,
        outputs: Sequence[str],
        inputs: Mapping[str, Array],
        results: Mapping[str, Array] | None = None,
        after: Sequence[Any] = (),
    ) -> list[Any]:
        """``Runner.run``. Raises BackendError where there is no memory for rows either."""
        (array,) = inputs.values()
        size = shape_of(array)
        groups = self._groups(array)
        if len(groups) > 1:
            return self._in_groups(groups, outputs, inputs, results or {}, after)
        if groups and self._may_fit(size):
            try:
                return self._whole.run(outputs, inputs, results, after)
            except BackendError as error:
                if not is_out_of_memory(error.__cause__) or not self._rows.exists:
                    raise
                failed = str(error)  # not the error, which would keep memory as long as a log keeps its records
                let_go(error)  # of the session, whose arena has the memory
            self._whole.release_memory()
            try:
                self._too_large[size] = self._device.free_memory()
            except BackendError as error:  # such as a driver that ONNX Runtime can use and cuda.core cannot
                raise BackendError(f"{failed}. It cannot be computed by rows: {error}") from error
            log.warning("%s: %s. It is computed by rows instead", self.graph, failed)
        with self._lock, self._device.active():  # one call has all the memory that is free
            if isinstance(array, OnDevice):
                array.wait(after)
            return self._by_rows(outputs, array, results or {})

    def _groups(self, array: Array) -> list[slice]:
        """The batch in groups that the whole graph may compute at once; none where it may not compute a single item."""
        batch = shape_of(array)[0]
        if not self._rows.exists:  # its tensors are not known
            return [slice(0, batch)]
        _, rows, columns = self._rows.size(array)
        at_once = self._at_once.get((rows, columns))
        if at_once is None:
            at_once = items_at_once(self._rows.table, rows, columns, self._whole_scores)
            self._at_once[rows, columns] = at_once
        if at_once == 0:
            return []
        # Groups of one size: each size has a session of its own.
        each = math.ceil(batch / math.ceil(batch / at_once))
        return [slice(first, min(first + each, batch)) for first in range(0, batch, each)]

    def _in_groups(
        self,
        groups: Sequence[slice],
        outputs: Sequence[str],
        inputs: Mapping[str, Array],
        results: Mapping[str, Array],
        after: Sequence[Any],
    ) -> list[Array]:
        found = [
            self.run(
                outputs,
                {name: array[group] for name, array in inputs.items()},
                {name: array[group] for name, array in results.items()},
                after,
            )
            for group in groups
        ]
        return [
            results[name] if name in results else np.concatenate(parts)
            for name, parts in zip(outputs, zip(*found, strict=True), strict=True)
        ]

    def _may_fit(self, size: tuple[int, ...]) -> bool:
        free = self._too_large.get(size)
        return free is None or self._device.free_memory() > MORE * free

    def _by_rows(self, outputs: Sequence[str], array: Array, results: Mapping[str, Array]) -> list[Any]:
        try:
            return self._in_plan(outputs, array, results, least=False)
        except BackendError as error:
            if not is_out_of_memory(error) and not is_out_of_memory(error.__cause__):
                raise
            failed = str(error)
            let_go(error)  # of the arrays on the GPU
        log.warning("%s: %s. It is tried once more in as little memory as possible", self.graph, failed)
        self._whole.release_memory()  # smaller sizes may have some
        try:
            with onnxruntime_cpu.only_errors_logged():  # for each convolution it warns that a lean one is slow
                return self._in_plan(outputs, array, results, least=True)
        except BackendError as error:
            # Libraries of CUDA that find no memory have errors of many kinds, such as one that cannot be initialised.
            raise BackendError(f"{failed}. It failed in as little memory as possible, too: {error}") from error

    def _in_plan(self, outputs: Sequence[str], array: Array, results: Mapping[str, Array], least: bool) -> list[Any]:
        """By rows, in the memory that is free, or in the ``least`` that there can be."""
        given = array if isinstance(array, OnDevice) else _copied(array, self._arrays)
        half = self._half(least)
        batch, rows, columns = half.size(given)
        factor = half.table.factor
        gives = self._bundle.manifest.interface(self._part).gives(batch, rows * factor, columns * factor)
        wanted = [name for name in outputs if name != "finite"]
        places = {name: results[name] for name in wanted if isinstance(results.get(name), OnDevice)}
        places.update({n: self._arrays.empty(gives[n].shape, gives[n].dtype) for n in wanted if n not in places})
        plan = half.plan(rows, columns, 0 if least else self._free())
        return _to_caller(outputs, half.run(plan, outputs, given, places), results)

    def _free(self) -> int:
        """Bytes of the GPU's memory that a plan may take."""
        free = int(max(0, self._device.free_memory() - LIBRARIES) * SHARE)
        return min(free, int(self._options.get("gpu_mem_limit", free)))

    @cached_property
    def _device(self) -> Device:
        return CudaDevice(self._number)

    @cached_property
    def _arrays(self) -> DeviceArrays:
        return DeviceArrays(self._device)

    def _half(self, least: bool) -> RowsHalf:
        if least not in self._halves:
            options = (LEAN_OPTIONS if least else PIECE_OPTIONS) | self._options
            self._halves[least] = RowsHalf(
                self._bundle,
                self._part,
                verify_hashes=self._verify_hashes,
                progress=self._progress,
                open_piece=_OpenPiece(self._device, self._number, self._threads, options),
                arrays=self._arrays,
            )
        return self._halves[least]


@dataclass(frozen=True)
class _OpenPiece:
    """``OpenPiece`` on the GPU. It does not refer to the runner, which refers to it: a cycle would keep a dropped
    runner's memory until garbage is collected.
    """

    device: Device
    number: int
    threads: int | None
    options: Mapping[str, str]

    def __call__(self, name: Path, piece: Piece, weights: Mapping[str, NDArray[Any]]) -> GpuPiece:
        options = onnxruntime_cuda.provider_options(self.number, "fp32", self.options)
        providers = [(onnxruntime_cuda.PROVIDER, options), onnxruntime_cpu.PROVIDER]
        session = onnxruntime_cpu.open_piece(name, piece.model, weights, self.threads, providers)
        types = {output.name: output.type for output in session.get_outputs()}
        dtypes = {target: np.dtype(TYPES[types[target]]) for target in piece.targets}
        return GpuPiece(name, session, dtypes, self.device, self.number)


class GpuPiece:
    """A piece with its session. dtypes: of the outputs that stay on the device; the others are arrays of numpy."""

    def __init__(
        self, name: Path, session: Any, dtypes: Mapping[str, np.dtype[Any]], device: Device, number: int
    ) -> None:
        self._name, self._session, self._dtypes, self._device, self._number = name, session, dtypes, device, number

    def __call__(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        binding = self._session.io_binding()
        given = onnxruntime_cuda.bind_inputs(binding, inputs, self._number)
        for name in outputs:
            if name in self._dtypes:
                binding.bind_output(name, onnxruntime_cuda.MEMORY, self._number)
            else:
                binding.bind_output(name)
        with failures_explained("ONNX Runtime", self._name, inputs), onnxruntime_cpu.running() as options:
            self._session.run_with_iobinding(binding, options)
        del given
        return [self._array(name, value) for name, value in zip(outputs, binding.get_outputs(), strict=True)]

    def _array(self, name: str, value: Any) -> Array:
        if name not in self._dtypes:
            return value.numpy()  # type: ignore[no-any-return]
        tensor = Tensor(tuple(value.shape()), self._dtypes[name])
        return OnDevice(value.data_ptr(), tensor, value, self._device)


def _copied(array: NDArray[Any], arrays: DeviceArrays) -> OnDevice:
    """A copy of ``array`` on the device."""
    copy = arrays.empty(array.shape, array.dtype)
    copy.copy_from(array)
    return copy


def _to_caller(names: Sequence[str], computed: Sequence[Array], results: Mapping[str, Array]) -> list[Array]:
    """What was computed, in the arrays of ``results``, and in the host's memory where it has none."""
    found = []
    for name, array in zip(names, computed, strict=True):
        wanted = results.get(name)
        if isinstance(array, OnDevice) and not isinstance(wanted, OnDevice):
            array = array.on_host()
        if isinstance(array, np.ndarray) and isinstance(wanted, np.ndarray):
            wanted[...] = array
        found.append(array if wanted is None else wanted)
    return found
