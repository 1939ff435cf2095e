"""Weights in every form that they come in, and files that are none."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import (
    CONTRACT,
    NAMINGS,
    WRITERS,
    compvis,
    full_checkpoint,
    message_of,
    write_ckpt,
    write_compressed,
    write_legacy_ckpt,
    write_safetensors,
)
from safetensors.torch import save
from torch import Tensor

from vaedeploy.errors import WeightsError
from vaedeploy.source import load_reference
from vaedeploy.source.checkpoint import read_contents, select_vae
from vaedeploy.source.pickles import read_pickle


@pytest.mark.parametrize(
    ("naming", "form"),
    [
        *((naming, form) for naming in NAMINGS for form in ("safetensors", "ckpt")),
        *(("compvis", form) for form in WRITERS if form not in ("safetensors", "ckpt")),
    ],
)
def test_every_form_of_the_same_weights_loads_bit_identical(
    tmp_path: Path, tensors: dict[str, Tensor], expected: str, naming: str, form: str
) -> None:
    write, name = WRITERS[form]
    file = write(NAMINGS[naming](tensors), tmp_path / name)
    reference = load_reference("demo", file, **CONTRACT)
    assert reference.identity == expected
    assert reference.origin.kind == "file"
    assert reference.origin.location == str(file.resolve())


def test_loaded_weights_are_those_in_the_file(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    reference = load_reference("demo", write_ckpt(compvis(tensors), tmp_path / "vae.ckpt"), **CONTRACT)
    loaded = {**reference.encoder.state_dict(), **reference.decoder.state_dict()}
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_weights_outlive_their_file(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    for write, name in (WRITERS["safetensors"], WRITERS["ckpt"]):
        file = write(tensors, tmp_path / name)
        reference = load_reference("demo", file, **CONTRACT)
        with file.open("r+b") as opened:
            opened.write(b"\xff" * file.stat().st_size)
        assert torch.equal(reference.decoder.state_dict()["decoder.conv_in.weight"], tensors["decoder.conv_in.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path: Path, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    file = write_safetensors({name: tensor.to(dtype) for name, tensor in tensors.items()}, tmp_path / "vae.safetensors")
    loaded = load_reference("demo", file, **CONTRACT).decoder.state_dict()
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}
    assert all(torch.equal(tensor, tensors[name].to(dtype).float()) for name, tensor in loaded.items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty. Download or copy it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
            "is a Git LFS pointer, not the weights. Fetch them with `git lfs pull`",
        ),
        (
            b"<!doctype html><html>",
            "is neither safetensors nor a PyTorch checkpoint: it starts with b'<!doctyp'. "
            "Give a .safetensors or .ckpt file, a diffusers folder or a hub repository",
        ),
        (
            b"\x89PNG\r\n\x1a\n" + b" " * 20,
            "is neither safetensors nor a PyTorch checkpoint: it is a picture (PNG). "
            "Give a .safetensors or .ckpt file, a diffusers folder or a hub repository",
        ),
        (
            b"\x40\x00\x00\x00\x00\x00\x00\x00{" + b" " * 20,
            "is truncated: it has 29 bytes of at least 72. Download or copy it again",
        ),
    ],
    ids=["empty", "lfs", "html", "picture", "header"],
)
def test_files_that_are_not_weights(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "vae.safetensors"
    file.write_bytes(content)
    assert message_of(WeightsError, "demo", file) == f"{file} {message}"


def test_truncated_safetensors(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    file = tmp_path / "vae.safetensors"
    whole = save(tensors)
    file.write_bytes(whole[: len(whole) // 2])
    message = f"{file} is truncated: it has {len(whole) // 2} bytes of at least {len(whole)}. Download or copy it again"
    assert message_of(WeightsError, "demo", file) == message
    assert message_of(WeightsError, file) == message


@pytest.mark.parametrize("last", [0x80, 0x50])
def test_safetensors_whose_header_has_the_first_byte_of_another_kind(
    tmp_path: Path, tensors: dict[str, Tensor], last: int
) -> None:
    """The length of the header comes first, its lowest byte before the others."""
    whole = save(tensors)
    length = int.from_bytes(whole[:8], "little")
    longer = length + (last - length) % 256
    file = tmp_path / "vae.safetensors"
    header = whole[8 : 8 + length] + b" " * (longer - length)
    file.write_bytes(longer.to_bytes(8, "little") + header + whole[8 + length :])
    assert load_reference("demo", file).origin.kind == "file"


def test_header_of_hundreds_of_megabytes(tmp_path: Path) -> None:
    file = tmp_path / "vae.safetensors"
    file.write_bytes((2**30).to_bytes(8, "little") + b"{")
    assert message_of(WeightsError, "demo", file) == (
        f"{file} has a header of 1073741824 bytes; those of real files are below 25000000. Download or copy it again"
    )


def test_pipe_in_the_place_of_weights(tmp_path: Path) -> None:
    pipe = tmp_path / "vae.safetensors"
    os.mkfifo(pipe)
    assert message_of(WeightsError, "demo", pipe) == (f"{pipe} is a device or a pipe, not a file; give a weights file")


def test_tensors_named_by_nobody_are_not_read(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    """Nothing of a checkpoint but the VAE is read: here the rest of it is not even there."""
    file = write_ckpt(full_checkpoint(compvis(tensors)), tmp_path / "vae.ckpt")
    with zipfile.ZipFile(file) as archive:
        kept = {info.filename: archive.read(info) for info in archive.infolist()}
    # Storages are numbered in the order of the state_dict, which begins with two of the rest.
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in kept.items():
            if not name.endswith(("/data/0", "/data/1")):
                archive.writestr(name, content)
    loaded = load_reference("demo", file, **CONTRACT).decoder.state_dict()
    assert torch.equal(loaded["decoder.conv_in.weight"], tensors["decoder.conv_in.weight"])


def test_tensors_that_somebody_compressed(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    file = write_compressed(tensors, tmp_path / "vae.ckpt")
    assert message_of(WeightsError, "demo", file) == (
        f"{file} is damaged: its tensor encoder.conv_in.weight cannot be read: data/0 is compressed. "
        "Unpack the archive and pack it with zip -0"
    )


def test_tensors_beside_objects_of_the_names_that_they_often_lie_under(
    tmp_path: Path, tensors: dict[str, Tensor], expected: str
) -> None:
    file = tmp_path / "vae.pt"
    torch.save({**tensors, "model": Fraction(1, 2), "module": {}, "vae": None}, file)
    assert load_reference("demo", file, **CONTRACT).identity == expected


def test_storages_of_which_a_part_was_written() -> None:
    """PyTorch before version 0.5 wrote views of storages as such: (key of the view, offset, size) in the identifier."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("storage", torch.FloatStorage, "7", "cpu", 12, ("8", 4, 8)) if value == "here" else None

    written = io.BytesIO()
    Pickler(written, protocol=2).dump(["here"])
    (storage,), storages = read_pickle(io.BytesIO(written.getvalue()))
    assert storages == {"7": storage}
    assert (str(storage.type), storage.count, storage.start) == ("torch.FloatStorage", 12, 4)


def test_damaged_safetensors(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    file = tmp_path / "vae.safetensors"
    for content in (
        save(tensors) + b"more",
        save(tensors).replace(b'"dtype"', b'"dtyqe"', 1),
        b"\x02" + b"\0" * 7 + b"{[",
    ):
        file.write_bytes(content)
        message = message_of(WeightsError, "demo", file)
        assert message.startswith(f"{file} is a damaged safetensors file: ")
        assert message.endswith(". Download or copy it again")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_damaged_checkpoint(tmp_path: Path, tensors: dict[str, Tensor], legacy: bool) -> None:
    file = (write_legacy_ckpt if legacy else write_ckpt)(tensors, tmp_path / "vae.ckpt")
    file.write_bytes(file.read_bytes()[:-1000])
    assert message_of(WeightsError, "demo", file).startswith(f"{file} is not a PyTorch checkpoint, or is damaged: ")


def test_an_archive_of_a_later_version_of_zip(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    file = write_ckpt(tensors, tmp_path / "vae.ckpt")
    content = bytearray(file.read_bytes())
    content[content.index(b"PK\1\2") + 6] = 255  # the version that the first member needs
    file.write_bytes(content)
    assert message_of(WeightsError, "demo", file) == (
        f"{file} is not a PyTorch checkpoint, or is damaged: zip file version 25.5"
    )


class RunsCode:
    """Makes a directory when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("name", ["vae.ckpt", "vae.safetensors"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pickle_with_code_is_read_and_not_run(
    tmp_path: Path, tensors: dict[str, Tensor], expected: str, name: str, zipped: bool
) -> None:
    marker, file = tmp_path / "marker", tmp_path / name
    pickle.loads(pickle.dumps(RunsCode(marker)))
    marker.rmdir()  # so it would be there, had the code been run
    content = {"state_dict": tensors, "more": RunsCode(marker)}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    assert load_reference("demo", file, **CONTRACT).identity == expected
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_bare_pickle_with_code_is_not_run(tmp_path: Path, protocol: int) -> None:
    marker, file = tmp_path / "marker", tmp_path / "vae.ckpt"
    file.write_bytes(pickle.dumps({"more": RunsCode(marker)}, protocol=protocol))
    assert message_of(WeightsError, "demo", file).startswith(f"{file} is ")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not tensors by their names (a state_dict)"),
        (torch.zeros(1), "holds a tensor, not tensors by their names (a state_dict)"),
        (Fraction(1, 2), "holds an object of fractions.Fraction, not tensors by their names (a state_dict)"),
        ({"a": 1, "c\x1b": "x"}, "holds no tensors by their names, but a, c\\x1b. Give a state_dict"),
        (
            {"a": 1, "b": torch.zeros(1), "c": "x"},
            "holds no VAE that can be loaded: its tensors are named b. Give the VAE's own weights, or "
            "a checkpoint with them in it",
        ),
    ],
)
def test_checkpoints_of_other_things(tmp_path: Path, content: Any, message: str) -> None:
    file = tmp_path / "vae.ckpt"
    torch.save(content, file)
    assert message_of(WeightsError, "demo", file) == f"{file} {message}"


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite(tmp_path: Path, tensors: dict[str, Tensor], value: float) -> None:
    wrong = compvis({name: tensor.clone() for name, tensor in tensors.items()})
    wrong["decoder.mid.attn_1.q.weight"][3, 5] = value
    wrong["encoder.conv_in.bias"][-1] = value
    file = write_ckpt(wrong, tmp_path / "vae.ckpt")
    assert message_of(WeightsError, "demo", file) == (
        f"{file} holds 2 tensors with NaN or infinity: encoder.conv_in.bias, decoder.mid.attn_1.q.weight. "
        "Such a VAE gives black images; get the weights again, or in a higher precision"
    )


def test_quantised_weights(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    wrong = tensors | {"quant_conv.weight": tensors["quant_conv.weight"].to(torch.int8)}
    file = write_safetensors(wrong, tmp_path / "vae.safetensors")
    assert message_of(WeightsError, "demo", file) == (
        f"{file} holds 1 tensor not floating point: quant_conv.weight torch.int8. "
        "Give weights in float32, float16 or bfloat16; quantised ones cannot be loaded"
    )


@pytest.mark.parametrize(
    "prefix", ["module._orig_mod.", "_orig_mod.module.", "_orig_mod.module.vae.", "module.module."]
)
def test_wrapping_prefixes_come_in_any_order(prefix: str, tmp_path: Path) -> None:
    file = tmp_path / "vae.pt"
    torch.save({f"{prefix}decoder.a": torch.zeros(1), f"{prefix}decoder.b": torch.zeros(2)}, file)
    assert list(select_vae(read_contents([file]).tensors)) == ["decoder.a", "decoder.b"]
