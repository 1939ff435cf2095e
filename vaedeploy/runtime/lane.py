"""One execution context of an engine with its stream and memory, through which one call at a time runs.

A lane reaches CUDA and TensorRT only through the protocols of ``device``, which ``cuda`` and ``tensorrt`` implement.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from vaedeploy.errors import BackendError
from vaedeploy.runtime.device import Array, OnDevice, shape_of
from vaedeploy.values.interface import Tensor

if TYPE_CHECKING:
    from vaedeploy.runtime.device import Device, HostMemory, Memory, Plan


log = logging.getLogger(__name__)

ALIGNMENT = 256
"""Bytes. TensorRT requires the addresses of tensors and of its scratch memory to be multiples of this."""


@dataclass(frozen=True)
class Work:
    """One run of an engine: the optimisation profile, the input, and where each output goes.

    index: the number of the optimisation profile. name, given: the input's name and its array, in host or device
    memory. outputs: the shape and dtype of every output. results: the array, in host or device memory, to fill with
    each output that the caller wants. TensorRT writes the other outputs too, and nobody reads them.
    """

    index: int
    name: str
    given: Array
    outputs: Mapping[str, Tensor]
    results: Mapping[str, Array]


class Lane:
    """Runs work on one execution context, one call at a time.

    ``key`` is the optimisation profile and the input's shape that the context is set up for; work with the same key
    runs fastest.

    A CUDA graph reads and writes the addresses that it was captured with, and is void once its context changes. So work
    that comes a second time in a row goes through this lane's memory from then on, where it can be recorded, and the
    caller's arrays in device memory are copied to and from there. Work with another key drops the graph, so there are
    never more graphs than lanes.
    """

    def __init__(self, device: Device, plan: Plan) -> None:
        self.key: Hashable = None
        self._device = device
        self._plan = plan
        self._context = plan.context()
        self._stream = device.stream()
        self._launch: Callable[[], None] | None = None
        self._bound: dict[str, int] = {}
        self._staging: dict[str, HostMemory] = {}
        self._memory: dict[str, Memory] = {}
        self._settled: set[Hashable] = set()

    def run(self, work: Work, after: Sequence[Any] = ()) -> None:
        """Run ``work``, and return when it is done. after: streams whose work it waits for."""
        key = work.index, shape_of(work.given)
        try:
            self._run(work, key, after)
        except BaseException:
            # Work that is still in the stream uses this lane's memory and the caller's, which may be reused after this.
            with suppress(Exception):
                self._stream.synchronize()
            raise
        if key not in self._settled:
            self._settled.add(key)
            self._plan.settled()

    def _run(self, work: Work, key: Hashable, after: Sequence[Any]) -> None:
        for stream in after:
            self._stream.wait_for(stream)
        in_lane = key == self.key and self._plan.graphs != "none"
        addresses = {work.name: self._place_input(work, in_lane)} | {
            name: self._place_output(name, work, in_lane) for name in work.outputs
        }
        if key != self.key:
            self._set_up(work, key)
        if addresses != self._bound:
            self._launch = None
            for name, address in addresses.items():
                self._context.bind(name, address)
            self._bound = addresses
        self._enqueue(record=in_lane and self._plan.graphs == "recorded")
        self._collect_results(work, addresses)

    def _place_input(self, work: Work, in_lane: bool) -> int:
        """Get the input into device memory and return its address.

        That is the caller's address if the input is in device memory already and aligned, and ``in_lane`` is False;
        otherwise the input is copied to this lane's memory.
        """
        given = work.given
        if isinstance(given, OnDevice):
            if given.address % ALIGNMENT == 0 and not in_lane:
                return given.address
            target = self._reserve(work.name, given.tensor.size).address
            self._stream.copy_within(given.address, target, given.tensor.size)
            return target
        staged = self._stage(work.name, given.nbytes)
        staged.array[: given.nbytes].view(given.dtype).reshape(given.shape)[...] = given
        target = self._reserve(work.name, given.nbytes).address
        self._stream.copy_in(staged.address, target, given.nbytes)
        return target

    def _place_output(self, name: str, work: Work, in_lane: bool) -> int:
        """The address that TensorRT writes an output to.

        That is the caller's address if the result is wanted in device memory and aligned, and ``in_lane`` is False;
        otherwise an address in this lane's memory.
        """
        result = work.results.get(name)
        if isinstance(result, OnDevice) and result.address % ALIGNMENT == 0 and not in_lane:
            return result.address
        return self._reserve(name, work.outputs[name].size).address

    def _set_up(self, work: Work, key: Hashable) -> None:
        # A failure below leaves the context in an unknown state, for which no key may stand.
        self.key, self._launch, self._bound = None, None, {}
        scratch = self._context.set_shape(work.index, work.name, shape_of(work.given), self._stream)
        self._context.set_scratch(self._reserve("", scratch))
        self.key = key

    def _enqueue(self, record: bool) -> None:
        if record and self._launch is None:
            try:
                self._launch = self._stream.capture(lambda: self._context.enqueue(self._stream))
            except BackendError as error:  # some engines cannot be captured
                self._plan.graphs = "none"
                log.warning("CUDA graphs are not used, since one could not be recorded: %s", error)
        if self._launch is None:
            self._context.enqueue(self._stream)
        else:
            self._launch()

    def _collect_results(self, work: Work, addresses: Mapping[str, int]) -> None:
        """Copy the outputs from ``addresses`` to the caller's arrays, and wait until all work is done."""
        to_host: list[tuple[NDArray[Any], HostMemory]] = []
        for name, result in work.results.items():
            size = work.outputs[name].size
            if isinstance(result, OnDevice):
                if result.address != addresses[name]:
                    self._stream.copy_within(addresses[name], result.address, size)
            else:
                staged = self._stage(name, size)
                self._stream.copy_out(addresses[name], staged.address, size)
                to_host.append((result, staged))
        self._stream.synchronize()
        for array, staged in to_host:
            array[...] = staged.array[: array.nbytes].view(array.dtype).reshape(array.shape)

    def _reserve(self, name: str, size: int) -> Memory:
        """Device memory of this lane for the tensor ``name`` ("" for scratch), at least ``size`` bytes."""
        memory = self._memory.get(name)
        if memory is None or memory.size < size:
            self._memory.pop(name, None)  # freed first, so that the old and the new block need not fit at once
            memory = None
            memory = self._memory[name] = self._device.device_memory(max(size, ALIGNMENT))
        return memory

    def _stage(self, name: str, size: int) -> HostMemory:
        """Page-locked host memory of this lane for the tensor ``name``, at least ``size`` bytes."""
        memory = self._staging.get(name)
        if memory is None or memory.size < size:
            memory = self._staging[name] = self._device.host_memory(size)
        return memory
