"""Pickles, read without importing or calling anything that they name.

A pickle is a program that builds objects, and Python's own reader runs whatever function it names. Here the program is
interpreted: numbers, strings, lists and dicts become what they are, PyTorch's tensors become a ``View`` of bytes that
lie elsewhere in the file, and every other object becomes an ``Inert`` one, which does nothing.
"""

from __future__ import annotations

import pickletools
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

MAX_STEPS = 2_000_000
"""The most instructions of a pickle, with the entries that they copy: each can make an object of about 100 bytes. A
checkpoint needs 30 per tensor.
"""

PUSHED = frozenset(
    opcode.name
    for opcode in pickletools.opcodes
    if re.fullmatch(r"(BIN)?INT[12]?|LONG[14]?|(BIN)?FLOAT|\w*(STRING|BYTES8?|UNICODE8?)|BYTEARRAY8", opcode.name)
)
"""Instructions that push their argument."""

MADE: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
    "NEXT_BUFFER": lambda: None,
}
"""Instructions that push a new object. Sets become lists, since hashing nested objects could overflow the stack."""

TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}

MAX_DIMENSIONS = 64
"""The most dimensions of a tensor that PyTorch makes."""

REBUILT = ("_rebuild_tensor", "_rebuild_tensor_v2")
"""Functions of ``torch._utils`` that make a tensor of (storage, offset, size, stride, ...); the first until 0.3."""

PARAMETERS = ("_rebuild_parameter", "_rebuild_parameter_with_state")
"""Functions of ``torch._utils`` that make a parameter of (tensor, ...)."""


class PickleError(Exception):
    """A pickle that cannot be read: it is damaged, or too long."""


@dataclass(frozen=True)
class Name:
    """The name of a function or class, which is not looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Inert:
    """Stands for an object that a pickle makes by calling ``maker``. items: what the pickle puts into it by name."""

    maker: object
    items: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Storage:
    """Numbers that lie elsewhere in the file. type: PyTorch's storage class. key: where they are. count: how many.

    start: the element from which views count; not 0 where PyTorch wrote part of a storage.
    """

    type: Name
    key: str
    count: int
    start: int = 0


@dataclass(frozen=True)
class View:
    """A tensor: a view of a storage. offset and strides are in elements. dtype: None for that of the storage's type."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: Name | None = None


def read_pickle(file: IO[bytes]) -> tuple[Any, dict[str, Storage]]:
    """The object of the pickle that begins here in ``file``, which is left at its end, and all storages by their keys.

    file: its ``read`` must not allocate more than the bytes that are there. Raises PickleError.
    """
    machine = _Machine()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's, about escape sequences in strings that Python did not write
            machine.run(file)
        return machine.stack[-1], machine.storages
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise PickleError(f"its pickle cannot be read: {error}") from error


class _Machine:
    """The pickle machine: a stack, the stacks below marks, and a memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.spent = 0

    def run(self, file: IO[bytes]) -> None:
        """Carry out the instructions of a pickle."""
        for opcode, argument, _ in pickletools.genops(file):
            self._spend(1)
            self.step(opcode.name, argument)

    def _spend(self, steps: int) -> None:
        self.spent += steps
        if self.spent > MAX_STEPS:
            raise PickleError(f"its pickle takes more than {MAX_STEPS} steps to read")

    def step(self, name: str, argument: Any) -> None:
        """Carry out one instruction."""
        stack = self.stack
        if name in PUSHED:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[argument])
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in TUPLES:
            stack[-TUPLES[name] :] = [tuple(_last(stack, TUPLES[name]))]
        elif name in MADE:
            stack.append(MADE[name]())
        elif name == "MARK":
            self.below.append(stack)
            self.stack = []
        elif name == "POP":
            # A mark is popped too, if nothing lies above it.
            if stack:
                stack.pop()
            else:
                self.stack = self.below.pop()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in ("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"):
            self._objects(name, argument)
        elif name in ("EXT1", "EXT2", "EXT4"):
            stack.append(Name("copyreg", f"extension {argument}"))
        elif name in ("BINPERSID", "PERSID"):
            found = _elsewhere(stack.pop() if name == "BINPERSID" else argument)
            if isinstance(found, Storage):
                self.storages[found.key] = found
            stack.append(found)
        elif name not in ("PROTO", "FRAME", "STOP", "READONLY_BUFFER"):
            self._collections(name)

    def _collections(self, name: str) -> None:
        if name in ("APPEND", "SETITEM"):
            items = _last(self.stack, 1 if name == "APPEND" else 2)
            del self.stack[-len(items) :]
        else:
            items = self._above_mark()
        if name in ("TUPLE", "LIST", "FROZENSET"):
            self.stack.append(tuple(items) if name == "TUPLE" else items)
        elif name == "DICT":
            self.stack.append({})
            _put(self.stack[-1], items)
        elif name in ("SETITEM", "SETITEMS"):
            _put(self.stack[-1], items)
        elif name != "POP_MARK" and isinstance(self.stack[-1], list):  # APPEND, APPENDS, ADDITEMS
            self.stack[-1].extend(items)

    def _objects(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name == "GLOBAL":
            stack.append(Name(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            module, attribute = _last(stack, 2)
            known = isinstance(module, str) and isinstance(attribute, str)
            stack[-2:] = [Name(module, attribute) if known else Inert(None)]
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], Inert) and isinstance(state, dict):
                self._spend(len(state))
                stack[-1].items.update(state)
        elif name == "INST":
            items = self._above_mark()
            self.stack.append(self._made(Name(*argument.split(" ", 1)), tuple(items)))
        elif name == "OBJ":
            maker, *items = self._above_mark()
            self.stack.append(self._made(maker, tuple(items)))
        else:
            count = 3 if name == "NEWOBJ_EX" else 2
            maker, arguments = _last(stack, count)[:2]
            stack[-count:] = [self._made(maker, arguments)]

    def _made(self, maker: object, arguments: object) -> Any:
        """A call's result: a tensor, a dict or a tuple where ``maker`` is known to make one, else an inert object."""
        while True:
            self._spend(1)
            # Names are compared in parts: joining one of megabytes for every call would take for ever.
            match maker, arguments:
                case Name("torch._tensor", "_rebuild_from_type_v2"), (Name() as maker, _, tuple() as arguments, *_):
                    continue  # a subclass, or a tensor with attributes of its own: (function, type, arguments, state)
                case Name("torch._utils", name), (
                    Storage() as storage,
                    int(offset),
                    tuple(size),
                    tuple(strides),
                    *_,
                ) if name in REBUILT:
                    return _view(storage, offset, size, strides)
                case Name("torch._utils", "_rebuild_tensor_v3"), (
                    Storage() as storage,
                    int(offset),
                    tuple(size),
                    tuple(strides),
                    _,
                    _,
                    Name() as dtype,
                    *_,
                ):
                    return _view(storage, offset, size, strides, dtype)
                case Name("torch._utils", name), (View() as view, *_) if name in PARAMETERS:
                    return view
                case Name("torch", "Size"), (tuple(size),):
                    return size
                case Name("collections", "OrderedDict"), (list(pairs),):
                    self._spend(len(pairs))
                    return {pair[0]: pair[1] for pair in pairs if _names_something(pair)}
                case Name("collections", "OrderedDict"), ():
                    return {}
            return Inert(maker)

    def _above_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items


def _view(
    storage: Storage, offset: int, size: tuple[int, ...], strides: tuple[int, ...], dtype: Name | None = None
) -> View:
    # Users of a view visit each dimension, and a pickle can refer to one size a million times.
    if max(len(size), len(strides)) > MAX_DIMENSIONS:
        raise PickleError(
            f"it has a tensor of {len(size)} dimensions; PyTorch makes none with more than {MAX_DIMENSIONS}"
        )
    return View(storage, offset, size, strides, dtype)


def _last(stack: list[Any], count: int) -> list[Any]:
    if len(stack) < count:
        raise IndexError("it takes more from its stack than there is")
    return stack[-count:]


def _put(target: object, items: list[Any]) -> None:
    """Put alternating names and values into a dict or an inert object. Keys other than strings name no tensor."""
    into = target.items if isinstance(target, Inert) else target
    if isinstance(into, dict):
        into.update((key, value) for key, value in zip(items[::2], items[1::2], strict=True) if isinstance(key, str))


def _names_something(pair: object) -> bool:
    return isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str)


def _elsewhere(identifier: object) -> Storage | Inert:
    """What a persistent id stands for. PyTorch uses ("storage", type, key, location, count, ...)."""
    match identifier:
        case ("storage", Name() as kind, str(key), _, int(count)) | (
            "storage",
            Name() as kind,
            str(key),
            _,
            int(count),
            None,
        ):
            return Storage(kind, key, count)
        case ("storage", Name() as kind, str(key), _, int(count), (_, int(start), int())):
            return Storage(kind, key, count, start)
    return Inert(None)
