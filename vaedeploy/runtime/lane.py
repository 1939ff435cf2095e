"""One execution context of an engine, with its stream and memory: one call at a time goes through it.

What it needs of CUDA and TensorRT is said here, as protocols; ``cuda`` and ``tensorrt`` have them.
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


logger = logging.getLogger("vaedeploy")

ALIGNMENT = 256
"""Bytes that TensorRT wants addresses of tensors and of its scratch memory to be multiples of."""


@dataclass(frozen=True)
class Work:
    """What a lane is to run: an optimisation profile on one input, host or device, and where each output goes.

    results: for outputs that somebody wants, an array to fill or device memory. Of the others only their ``outputs``
    are known; TensorRT writes them, and nobody reads them.
    """

    index: int
    name: str
    given: Array
    outputs: Mapping[str, Tensor]
    results: Mapping[str, Array]


class Lane:
    """See the module. ``key`` is the optimisation profile and the input's shape that the context is set up for: doing
    the same again is quickest.

    A CUDA graph is of the addresses that it was captured with, and void once its context is changed. So work that comes
    a second time in a row goes through memory of the lane's own from then on, where it can be recorded, and what is the
    caller's in device memory is copied within the device. Other work drops the graph: there are no more than lanes.
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
        """Do ``work`` and return when it is done. after: streams whose work it waits for."""
        key = work.index, shape_of(work.given)
        try:
            self._run(work, key, after)
        except BaseException:
            # What is in the stream must be over before its memory, and the caller's, is used for something else.
            with suppress(Exception):
                self._stream.synchronize()
            raise
        if key not in self._settled:
            self._settled.add(key)
            self._plan.settled()

    def _run(self, work: Work, key: Hashable, after: Sequence[Any]) -> None:
        for stream in after:
            self._stream.wait_for(stream)
        own = key == self.key and self._plan.graphs != "none"
        addresses = {work.name: self._give(work, own)} | {name: self._place(name, work, own) for name in work.outputs}
        if key != self.key:
            self._set_up(work, key)
        if addresses != self._bound:
            self._launch = None
            for name, address in addresses.items():
                self._context.bind(name, address)
            self._bound = addresses
        self._enqueue(record=own and self._plan.graphs == "recorded")
        self._take(work, addresses)

    def _give(self, work: Work, own: bool) -> int:
        """The address of the input on the device."""
        given = work.given
        if isinstance(given, OnDevice):
            if given.address % ALIGNMENT == 0 and not own:
                return given.address
            target = self._reserve(work.name, given.tensor.size).address
            self._stream.copy_within(given.address, target, given.tensor.size)
            return target
        staged = self._stage(work.name, given.nbytes)
        staged.array[: given.nbytes].view(given.dtype).reshape(given.shape)[...] = given
        target = self._reserve(work.name, given.nbytes).address
        self._stream.copy_in(staged.address, target, given.nbytes)
        return target

    def _place(self, name: str, work: Work, own: bool) -> int:
        """Where TensorRT writes an output: where it is wanted, if it may, else in memory of the lane's own."""
        result = work.results.get(name)
        if isinstance(result, OnDevice) and result.address % ALIGNMENT == 0 and not own:
            return result.address
        return self._reserve(name, work.outputs[name].size).address

    def _set_up(self, work: Work, key: Hashable) -> None:
        # What fails in here leaves the context in a state that has no name.
        self.key, self._launch, self._bound = None, None, {}
        scratch = self._context.set_shape(work.index, work.name, shape_of(work.given), self._stream)
        self._context.set_scratch(self._reserve("", scratch))
        self.key = key

    def _enqueue(self, record: bool) -> None:
        if record and self._launch is None:
            try:
                self._launch = self._stream.capture(lambda: self._context.enqueue(self._stream))
            except BackendError as error:  # not every engine can be captured
                self._plan.graphs = "none"
                logger.warning("CUDA graphs are not used, since one could not be recorded: %s", error)
        if self._launch is None:
            self._context.enqueue(self._stream)
        else:
            self._launch()

    def _take(self, work: Work, addresses: Mapping[str, int]) -> None:
        """Bring the outputs to where they are wanted, and wait until all is done."""
        waiting: list[tuple[NDArray[Any], HostMemory]] = []
        for name, result in work.results.items():
            size = work.outputs[name].size
            if isinstance(result, OnDevice):
                if result.address != addresses[name]:
                    self._stream.copy_within(addresses[name], result.address, size)
            else:
                staged = self._stage(name, size)
                self._stream.copy_out(addresses[name], staged.address, size)
                waiting.append((result, staged))
        self._stream.synchronize()
        for array, staged in waiting:
            array[...] = staged.array[: array.nbytes].view(array.dtype).reshape(array.shape)

    def _reserve(self, name: str, size: int) -> Memory:
        """Device memory of this lane's own for ``name`` ("" for scratch), at least ``size`` bytes."""
        there = self._memory.get(name)
        if there is None or there.size < size:
            self._memory.pop(name, None)  # first, so that both need not fit at once
            there = None
            there = self._memory[name] = self._device.device_memory(max(size, ALIGNMENT))
        return there

    def _stage(self, name: str, size: int) -> HostMemory:
        there = self._staging.get(name)
        if there is None or there.size < size:
            there = self._staging[name] = self._device.host_memory(size)
        return there
