"""Weights files and configs that are wrong in ways that are drawn from a seed, most of them close to right ones."""

from __future__ import annotations

import io
import json
import pickletools
import random
import struct
import zipfile
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from checkpoints import TINY, config_of
from hostile_pickles import CALLABLES, WAYS, instructions
from safetensors.torch import save

from vaedeploy.source.network import random_tensors

NUMBERS = (-1, 0, 1, 2, 3, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63))
TEXTS = (
    "",
    "F32",
    "BF16",
    "F8_E4M3",
    "I64",
    "BOOL",
    "F4",
    "x" * 3000,
    "\x1b[2J",
    "\x00",
    "é",
    "../a",
    "/etc/passwd",
    "a/b",
)
VALUES: tuple[Any, ...] = (None, True, 1.5, 1e308, [], {}, [[]], [0, 0], [1, 2, 3], {"a": 1}, *NUMBERS, *TEXTS)


@cache
def whole(kind: str) -> bytes:
    """The weights of a small VAE in a file of this kind: safetensors, zip or legacy."""
    tensors = random_tensors(TINY, 0)
    if kind == "safetensors":
        return save(tensors, {"format": "pt"})
    written = io.BytesIO()
    content = {"state_dict": tensors, "epoch": 3, "optimizer": {"state": {0: torch.ones(2)}, "lr": 1e-4}}
    torch.save(content, written, _use_new_zipfile_serialization=kind == "zip")
    return written.getvalue()


def broken(kind: str, rng: random.Random) -> bytes:
    """A file of one kind of weights that is drawn."""
    content = whole(kind)
    if rng.random() < 0.3:
        return _bytes(content, rng)
    return {"safetensors": _safetensors, "zip": _zip, "legacy": _legacy}[kind](content, rng)


def broken_config(rng: random.Random) -> bytes:
    """A config.json with other values, or as bytes that are changed."""
    config: dict[str, Any] = config_of(TINY, scaling_factor=0.5, shift_factor=None)
    for _ in range(rng.randint(1, 3)):
        name = rng.choice([*config, "latents_mean", "latents_std"])
        value = rng.choice(VALUES)
        was = config.get(name)
        if isinstance(was, list) and rng.random() < 0.7:
            value = [*was[: rng.randint(0, 2)], value, *was] if rng.random() < 0.5 else [value] * rng.choice((1, 2, 40))
        config[name] = value
    content = json.dumps(config).encode()
    if rng.random() < 0.2:
        content = _bytes(content, rng)
    return _deep(rng) if rng.random() < 0.05 else content


def broken_index(rng: random.Random, part: str) -> bytes:
    """A list of the parts of a file, whose one part is ``part``."""
    index: Any = {"metadata": {"total_size": 1}, "weight_map": {"a": part, "b": part}}
    how = rng.randrange(6)
    if how == 0:
        index["weight_map"]["a"] = rng.choice(VALUES)
    elif how == 1:
        index["weight_map"] = rng.choice(VALUES)
    elif how == 2:
        index["weight_map"][rng.choice(TEXTS)] = rng.choice(TEXTS)
    elif how == 3:
        index = rng.choice(VALUES)
    elif how == 4:
        return _deep(rng)
    return _bytes(json.dumps(index).encode(), rng) if rng.random() < 0.3 else json.dumps(index).encode()


def _deep(rng: random.Random) -> bytes:
    """JSON that is nested deep, in a place where anything may stand or where it may not."""
    opening, closing = rng.choice([(b"[", b"]"), (b'{"a":', b"}")])
    depth = rng.choice((10, 900, 5_000, 200_000))
    return (
        rng.choice([b"", b'{"x":', b'{"weight_map":']) + opening * depth + (b"0" + closing * depth) * rng.randint(0, 1)
    )


def _bytes(content: bytes, rng: random.Random) -> bytes:
    """Bytes that are flipped, cut off, put in, doubled, or overwritten by a number."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        # The beginning and the end say what the rest is.
        near = rng.choice((len(changed), min(64, len(changed)), min(2000, len(changed))))
        place = rng.randrange(max(near, 1))
        place = len(changed) - 1 - place if rng.random() < 0.3 else place
        how = rng.randrange(6)
        if how == 0 and changed:
            changed[place] ^= 1 << rng.randrange(8)
        elif how == 1:
            del changed[place:]
        elif how == 2:
            changed[place:place] = rng.randbytes(rng.randint(1, 20))
        elif how == 3:
            changed[place : place + 8] = struct.pack("<Q", rng.choice(NUMBERS) % 2**64)
        elif how == 4:
            changed[place:place] = changed[place : place + rng.randint(1, 200)]
        else:
            del changed[place : place + rng.randint(1, 100)]
    return bytes(changed)


def _safetensors(content: bytes, rng: random.Random) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(list(header))
        how = rng.randrange(8)
        if how < 3 and isinstance(header[name], dict):
            key = rng.choice(("dtype", "shape", "data_offsets", "more"))
            header[name][key] = rng.choice(VALUES)
        elif how == 3 and isinstance(header[name], dict) and header[name].get("shape"):
            header[name]["shape"] = [rng.choice(NUMBERS) for _ in range(rng.randint(0, 6))]
        elif how == 4 and isinstance(header[name], dict):
            header[name]["data_offsets"] = [rng.choice(NUMBERS), rng.choice(NUMBERS)]
        elif how == 5:
            header[rng.choice(TEXTS)] = header.pop(name)
        elif how == 6:
            header["__metadata__"] = rng.choice(VALUES)
        else:
            header[name] = rng.choice(VALUES)
    written = json.dumps(header).encode()
    if rng.random() < 0.05:
        written = _deep(rng)
    if rng.random() < 0.1:
        written = _bytes(written, rng)
    length = rng.choice(NUMBERS) % 2**64 if rng.random() < 0.05 else len(written)
    return struct.pack("<Q", length) + written + data


def _zip(content: bytes, rng: random.Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    for _ in range(rng.randint(1, 2)):
        name = rng.choice(list(members))
        how = rng.randrange(7)
        if how < 4:
            name = next((n for n in members if n.endswith("data.pkl")), name)
            members[name] = _pickle(members[name], rng)
        elif how == 4:
            del members[name]
        elif how == 5:
            members[rng.choice(TEXTS) or "byteorder"] = members.pop(name)
        else:
            members[name] = rng.choice([b"", b"big", members[name][:3], members[name] * 3])
        if not members:
            break
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, member in members.items():
            how = rng.choice([zipfile.ZIP_STORED] * 4 + [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
            # To compress the large ones takes long, and tries nothing more.
            archive.writestr(zipfile.ZipInfo(name), member, how if len(member) < 20_000 else zipfile.ZIP_STORED)
    if rng.random() < 0.2:
        return _directory(written.getvalue(), rng)
    return written.getvalue()


def _directory(content: bytes, rng: random.Random) -> bytes:
    """The archive with other numbers in the list of its members: sizes, places, ways of compression."""
    changed = bytearray(content)
    place = content.find(b"PK\x01\x02", rng.randrange(len(content)))
    if place >= 0:
        field, size = rng.choice([(8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (42, 4)])
        number = rng.choice(NUMBERS) % 2 ** (8 * size)
        changed[place + field : place + field + size] = number.to_bytes(size, "little")
    return bytes(changed)


def _legacy(content: bytes, rng: random.Random) -> bytes:
    file = io.BytesIO(content)
    pieces = []
    for _ in range(5):
        start = file.tell()
        for _ in pickletools.genops(file):
            pass
        pieces.append(content[start : file.tell()])
    which = rng.choice((0, 1, 2, 3, 3, 3, 4, 4))
    pieces[which] = _pickle(pieces[which], rng)
    rest = content[file.tell() :]
    return b"".join(pieces) + (_bytes(rest, rng) if rng.random() < 0.2 else rest)


OPCODES: list[Callable[[random.Random], bytes]] = [
    *(
        lambda rng, code=code: code
        for code in [op.code.encode("latin-1") for op in pickletools.opcodes if op.arg is None]
    ),
    lambda rng: b"h" + rng.randbytes(1),
    lambda rng: b"q" + rng.randbytes(1),
    lambda rng: b"r" + rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\1")),
    lambda rng: b"j" + rng.choice((b"\xff\xff\xff\x7f", b"\1\0\0\0")),
    lambda rng: b"K" + rng.randbytes(1),
    lambda rng: b"J" + rng.randbytes(4),
    lambda rng: b"\x8a\x09" + rng.randbytes(9),
    lambda rng: b"\x8b" + rng.choice((b"\xff\xff\xff\x7f", b"\4\0\0\0")) + rng.randbytes(4),
    lambda rng: b"G" + rng.choice((struct.pack(">d", float("nan")), rng.randbytes(8))),
    lambda rng: b"X" + rng.choice((b"\xff\xff\xff\xff", b"\1\0\0\0")) + rng.choice((b"a", b"\xff", b"\xed\xa0\x80")),
    lambda rng: b"\x8d" + struct.pack("<Q", rng.choice((1, 2**40, 2**63))) + b"a",
    lambda rng: b"\x8e" + struct.pack("<Q", rng.choice((1, 2**40, 2**63))) + b"a",
    lambda rng: b"I" + rng.choice((b"01", b"00", b"9" * 5000, b"x")) + b"\n",
    lambda rng: b"P" + rng.choice((b"1", b"storage", b"")) + b"\n",
    lambda rng: b"\x95" + struct.pack("<Q", rng.choice(NUMBERS) % 2**64),
    lambda rng: b"\x82" + rng.randbytes(1),
    lambda rng: instructions(rng.choice(list(WAYS)), *rng.choice(CALLABLES)),
    lambda rng: b"ctorch\nFloatStorage\n",
    lambda rng: b"ctorch\nno_such_type\n",
    lambda rng: b"ctorch._utils\n_rebuild_tensor_v2\n",
    lambda rng: b"ctorch._utils\n_rebuild_tensor_v3\n",
    lambda rng: b"ctorch._utils\n_rebuild_parameter\n",
    lambda rng: b"ccollections\nOrderedDict\n",
]
"""Writers of one instruction of a pickle, some of which make an object that is nobody's."""


def _pickle(pickled: bytes, rng: random.Random) -> bytes:
    """The pickle with instructions that are left out, put in, doubled, or given another argument."""
    try:
        ends = [place for _, _, place in pickletools.genops(pickled)] + [len(pickled)]
    except (ValueError, IndexError):
        return _bytes(pickled, rng)
    steps = [pickled[start:end] for start, end in pairwise(ends)]
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(len(steps))
        how = rng.randrange(6)
        if how == 0:
            del steps[place]
        elif how == 1:
            steps.insert(place, rng.choice(OPCODES)(rng))
        elif how == 2:
            steps[place] = rng.choice(OPCODES)(rng)
        elif how == 3:
            steps[place:place] = steps[place : place + rng.randint(1, 30)]
        elif how == 4 and steps[place][:1] in (b"K", b"M", b"J"):
            steps[place] = b"\x8a\x09" + (rng.choice(NUMBERS) % 2**64).to_bytes(9, "little")
        else:
            other = rng.randrange(len(steps))
            steps[place], steps[other] = steps[other], steps[place]
        if not steps:
            break
    return b"".join(steps)
