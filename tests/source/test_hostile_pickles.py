"""Checkpoints that would run code in Python's own reader: their tensors are read, and nothing is run or imported."""

from __future__ import annotations

import contextlib
import io
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from checkpoints import message_of, write_ckpt
from hostile_pickles import CALLABLES, HOSTILE, WAYS, instructions, rewrite_legacy, rewrite_zip, with_company
from places import ROOT
from watched import memory_limit, no_hang, what_runs

from vaedeploy.errors import WeightsError
from vaedeploy.source.checkpoint import read_contents
from vaedeploy.source.pickles import PickleError, read_pickle


@pytest.mark.parametrize("way", [way for way in WAYS if way not in ("NEWOBJ", "tensor", "storage")])
def test_the_ways_are_those_by_which_python_runs_code(way: str) -> None:
    """Where they did nothing, what follows would prove nothing. NEWOBJ wants a class, and the others PyTorch."""
    with what_runs() as ran, pytest.raises(FileNotFoundError):
        pickle.loads(instructions(way, "os", "rmdir", ("/nowhere",)) + b".")
    assert any(event.startswith("os.rmdir") for event in ran)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_hostile_pickles_run_nothing(tmp_path: Path, legacy: bool) -> None:
    """Beside each, the tensors are read as if it were not there."""
    file, saved = tmp_path / "vae.ckpt", tmp_path / "saved.ckpt"
    tensor = torch.arange(6.0).reshape(2, 3)
    torch.save({"a": tensor, "b": torch.nn.Parameter(tensor.T)}, saved, _use_new_zipfile_serialization=not legacy)
    (rewrite_legacy if legacy else rewrite_zip)(saved, lambda pickled: pickled)
    read_contents([saved])  # imports what reading such a file takes
    assert len(HOSTILE) == len(CALLABLES) * len(WAYS) >= 217
    for case in HOSTILE:
        shutil.copyfile(saved, file)
        (rewrite_legacy if legacy else rewrite_zip)(file, lambda p, case=case: with_company(p, instructions(*case)))
        with what_runs() as ran:
            found = {name: stored.read() for name, stored in read_contents([file]).tensors.items()}
        assert found.keys() == {"a", "b"}, case
        assert torch.equal(found["a"], tensor), case
        assert torch.equal(found["b"], tensor.T), case
        assert not ran, case


@pytest.mark.parametrize("which", range(5))
def test_hostile_pickle_in_the_place_of_each_that_a_legacy_file_has(tmp_path: Path, which: int) -> None:
    file, saved = tmp_path / "vae.ckpt", tmp_path / "saved.ckpt"
    torch.save({"a": torch.zeros(3)}, saved, _use_new_zipfile_serialization=False)
    message_of(WeightsError, "demo", saved)
    for case in HOSTILE:
        shutil.copyfile(saved, file)
        rewrite_legacy(file, lambda _, case=case: b"\x80\x02" + instructions(*case) + b".", which)
        with what_runs() as ran, contextlib.suppress(WeightsError):
            # What the third says is of no consequence: the byte order, unless it is another one.
            assert which == 2, read_contents([file])
        assert not ran, case


def test_numbers_of_the_memo_take_no_memory(tmp_path: Path) -> None:
    """Python's own reader makes room for as many objects as the largest number says."""
    with memory_limit(1 << 30):
        content, _ = read_pickle(io.BytesIO(b"\x80\x02]r\xff\xff\xff\xff."))
    assert content == []


COPIES = {
    # A list of 100,000 pairs, and calls that make a dict of it, or a state of 100,000 entries that objects are given.
    "OrderedDict": b"](" + b"X\1\0\0\0aN\x86" * 100_000 + b"e\x94" + b"ccollections\nOrderedDict\nh\0\x85R" * 100_000,
    "BUILD": b"}(" + b"".join(b"X\6\0\0\0%06dN" % n for n in range(100_000)) + b"u\x94" + b"ca\nb\n)Rh\0b" * 100_000,
}


@pytest.mark.parametrize("how", COPIES)
def test_what_is_copied_again_and_again_takes_little_memory(how: str) -> None:
    with memory_limit(1 << 30), pytest.raises(PickleError, match="takes more than 2000000 steps"):
        read_pickle(io.BytesIO(b"\x80\x02" + COPIES[how] + b"."))


def test_what_is_nested_deep_does_not_overflow() -> None:
    """As a value, as a key of a dict, which is hashed, and as calls within the arguments of calls."""
    deep = b")" + b"\x85" * 100_000
    rebuild = b"ctorch._tensor\n_rebuild_from_type_v2\n"
    calls = rebuild + (b"(" + rebuild + b"N") * 20_000 + b")" + b"t" * 20_000 + b"R"
    name = deep + b"X\1\0\0\0a\x93"
    for pickled in (name, deep, b"}" + deep + b"Ns", b"}(" + deep + b"Nu", b"(" + deep + b"Nd", calls):
        read_pickle(io.BytesIO(b"\x80\x02" + pickled + b"."))


REBUILT = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORED = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0\x30X\3\0\0\0cpuK\4tQ\x94"  # memo 0

ENDLESS = {
    # A call within a call, 100,000 deep, which is made 20,000 times.
    "depth": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n\x94" + b"h\0N)\x87\x94" + b"h\0Nh\1\x87q\1" * 100_000
        + b"h\0h\1R" * 20_000
    ),
    # A name of 20 MB, which is called 20,000 times.
    "name": b"c" + b"m" * 20_000_000 + b"\na\n\x94" + b"h\0)R" * 20_000,
}  # fmt: skip


@pytest.mark.parametrize("how", ENDLESS)
def test_what_is_used_again_and_again_takes_no_time(how: str) -> None:
    with no_hang(), contextlib.suppress(PickleError):
        read_pickle(io.BytesIO(b"\x80\2" + ENDLESS[how] + b"."))


def test_tensor_of_many_dimensions_is_refused() -> None:
    """Every tensor that has them would be looked through, dimension by dimension."""
    size = b"(" + b"K\1" * 65 + b"t\x94"
    with pytest.raises(PickleError, match="a tensor of 65 dimensions"):
        read_pickle(io.BytesIO(b"\x80\2" + STORED + size + REBUILT + b"(h\0K\0h\1h\1tR."))


def test_type_of_numbers_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's ``__getattr__`` imports modules of its own, such as torch._dynamo, when they are looked for."""
    file = write_ckpt({"a": torch.zeros(3)}, tmp_path / "vae.ckpt")
    rewrite_zip(file, lambda pickled: pickled.replace(b"FloatStorage", b"_dynamo"))
    looked_for: list[str] = []
    monkeypatch.delattr(torch, "_dynamo", raising=False)
    monkeypatch.setattr(torch, "__getattr__", looked_for.append)
    with pytest.raises(WeightsError, match=r"its numbers are of type torch\._dynamo, which is not known"):
        read_contents([file]).tensors["a"].read()
    assert not looked_for


BOMBS = """
import resource, sys
from vaedeploy.errors import WeightsError
from vaedeploy.source import load_reference
load_reference("demo")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for file in sys.argv[1:]:
    try:
        load_reference("demo", file)
    except WeightsError as error:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
"""


@pytest.mark.slow
def test_zip_bombs_take_little_memory(tmp_path: Path) -> None:
    """600 MB of zeros in 600 kB: as the pickle, and as a tensor that the VAE has, but not in this size."""
    files = []
    for member in ("data.pkl", "data/0"):
        file = write_ckpt({"decoder.conv_in.weight": torch.zeros(8)}, tmp_path / f"{len(files)}.ckpt")
        if member == "data/0":
            # Its size as the pickle states it; 8 stands nowhere else there.
            rewrite_zip(file, lambda pickled: pickled.replace(b"K\x08", b"J\x00\x00\x00\x08"))
        with zipfile.ZipFile(file) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                if not name.endswith("/" + member):
                    archive.writestr(name, content)
                    continue
                with archive.open(name, "w", force_zip64=True) as stream:
                    for _ in range(60):
                        stream.write(bytes(10_000_000))
        assert file.stat().st_size < 1_000_000
        files.append(file)
    done = subprocess.run([sys.executable, "-c", BOMBS, *files], cwd=ROOT, capture_output=True, text=True, check=True)
    told = [line.split(" ", 1) for line in done.stdout.splitlines()]
    assert [message.split(" ")[0] for _, message in told] == [str(file) for file in files]
    assert all(int(kilobytes) < 100_000 for kilobytes, _ in told)
