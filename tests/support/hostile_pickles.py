"""Pickles that call what they name when Python's own reader reads them, written instruction by instruction."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

CALLABLES: list[tuple[str, str, tuple[object, ...]]] = [
    ("os", "system", ("touch MARK",)),
    ("posix", "system", ("touch MARK",)),
    ("nt", "system", ("touch MARK",)),
    ("os", "mkdir", ("MARK",)),
    ("os", "popen", ("touch MARK",)),
    ("os", "execv", ("/bin/touch", ("touch", "MARK"))),
    ("os", "remove", ("MARK",)),
    ("os", "kill", (0, 9)),
    ("subprocess", "Popen", (("touch", "MARK"),)),
    ("subprocess", "check_output", (("touch", "MARK"),)),
    ("builtins", "eval", ("open('MARK', 'w')",)),
    ("builtins", "exec", ("open('MARK', 'w')",)),
    ("__builtin__", "eval", ("open('MARK', 'w')",)),
    ("builtins", "__import__", ("this",)),
    ("builtins", "open", ("MARK", "w")),
    ("builtins", "getattr", ("MARK", "upper")),
    ("builtins", "compile", ("1", "MARK", "eval")),
    ("importlib", "import_module", ("antigravity",)),
    ("runpy", "run_module", ("this",)),
    ("shutil", "rmtree", ("MARK",)),
    ("pathlib", "Path.touch", ("MARK",)),
    ("socket", "create_connection", (("127.0.0.1", 9),)),
    ("webbrowser", "open", ("MARK",)),
    ("urllib.request", "urlopen", ("file:///MARK",)),
    ("ctypes", "CDLL", ("MARK",)),
    ("timeit", "timeit", ("open('MARK', 'w')",)),
    ("code", "InteractiveInterpreter", ()),
    ("pickle", "loads", (b"cos\nsystem\n(S'touch MARK'\ntR.",)),
    ("torch", "load", ("MARK",)),
    ("torch.hub", "load", ("MARK", "MARK")),
    ("torch.storage", "_load_from_bytes", (b"MARK",)),
    ("numpy", "load", ("MARK",)),
]
"""(module, name, arguments) of what a pickle may name to do harm, or to load what does."""


def _value(value: object) -> bytes:
    """The instructions that push a string, a number, bytes or a tuple of these."""
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_value, value)) + b"t"
    return pickle.dumps(value, protocol=3)[2:-1].replace(b"q\x00", b"")


def _named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _reduce(module: str, name: str, arguments: tuple[object, ...]) -> bytes:
    return _named(module, name) + _value(arguments) + b"R"


def _stack_global(module: str, name: str, arguments: tuple[object, ...]) -> bytes:
    return _value(module) + _value(name) + b"\x93" + _value(arguments) + b"R"


def _inst(module: str, name: str, arguments: tuple[object, ...]) -> bytes:
    return b"(" + b"".join(map(_value, arguments)) + f"i{module}\n{name}\n".encode()


def _obj(module: str, name: str, arguments: tuple[object, ...]) -> bytes:
    return b"(" + _named(module, name) + b"".join(map(_value, arguments)) + b"o"


def _newobj(module: str, name: str, arguments: tuple[object, ...]) -> bytes:
    return _named(module, name) + _value(arguments) + b"\x81"


def _build(module: str, name: str, arguments: tuple[object, ...]) -> bytes:
    """An object that gets the function as its __setstate__, and then a state."""
    state = b"}" + _value("__setstate__") + _named(module, name) + b"s"
    first = arguments[0] if arguments else None
    return _named("types", "SimpleNamespace") + b")R" + state + b"b" + _value(first) + b"b"


def _within_tensor(module: str, name: str, arguments: tuple[object, ...]) -> bytes:
    """The function in the place of that which rebuilds a tensor of a class of its own."""
    inner = _named(module, name) + _named("torch", "Tensor") + _value(arguments) + b"}"
    return _named("torch._tensor", "_rebuild_from_type_v2") + b"(" + inner + b"tR"


def _within_storage(module: str, name: str, arguments: tuple[object, ...]) -> bytes:
    """A call in the place of a storage's type."""
    call = _reduce(module, name, arguments)
    return b"(" + _value("storage") + call + _value("0") + _value("cpu") + _value(1) + b"tQ"


WAYS: dict[str, Callable[[str, str, tuple[object, ...]], bytes]] = {
    "REDUCE": _reduce,
    "STACK_GLOBAL": _stack_global,
    "INST": _inst,
    "OBJ": _obj,
    "NEWOBJ": _newobj,
    "BUILD": _build,
    "tensor": _within_tensor,
    "storage": _within_storage,
}
"""The instructions by which a pickle calls something -> a writer of them."""

HOSTILE = [(way, *what) for way in WAYS for what in CALLABLES]


def instructions(way: str, module: str, name: str, arguments: tuple[object, ...]) -> bytes:
    """They leave one object on the stack."""
    return WAYS[way](module, name, arguments)


def with_company(pickled: bytes, company: bytes) -> bytes:
    """The pickle of ``{"state_dict": PICKLED, "more": COMPANY}``, with the instructions of ``company`` as they are."""
    assert (pickled[:1], pickled[-1:]) == (b"\x80", b".")
    return pickled[:2] + b"}X\x0a\0\0\0state_dict" + pickled[2:-1] + b"sX\x04\0\0\0more" + company + b"s."


def rewrite_zip(path: Path, change: Callable[[bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """Change the data.pkl of a file that ``torch.save`` wrote."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, change(content) if name.endswith("data.pkl") else content)


def rewrite_legacy(path: Path, change: Callable[[bytes], bytes], which: int = 3) -> None:
    """Change one of the pickles with which a file of before torch 1.6 begins; the fourth has the tensors."""
    file = io.BytesIO(path.read_bytes())
    ends = [0]
    for _ in range(5):
        for _ in pickletools.genops(file):
            pass
        ends.append(file.tell())
    whole = file.getvalue()
    start, end = ends[which], ends[which + 1]
    path.write_bytes(whole[:start] + change(whole[start:end]) + whole[end:])


def frame(length: int) -> bytes:
    """A FRAME instruction, which says how many bytes follow."""
    return b"\x95" + struct.pack("<Q", length)
