"""Latents on disk, good and bad."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from examples import at_most
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vaedeploy.errors import LatentError
from vaedeploy.images.latents import LatentFile, latent_from_bytes, read_latent, write_latent
from vaedeploy.values.latent import LatentSpec

# Latents

SPEC = LatentSpec(channels=2, factor=8, scale=(0.5, 0.25), shift=0.1)


@at_most(25)
@given(
    latent=hnp.arrays(
        np.float32, hnp.array_shapes(min_dims=4, max_dims=4, max_side=4), elements=st.floats(-100, 100, width=32)
    ),
    name=st.text(min_size=1, max_size=10),
    size=st.none() | st.tuples(st.integers(1, 9999), st.integers(1, 9999)),
)
def test_latent_round_trip(
    tmp_path_factory: pytest.TempPathFactory, latent: np.ndarray, name: str, size: tuple[int, int] | None
) -> None:
    path = tmp_path_factory.mktemp("latent") / "a.safetensors"
    write_latent(path, LatentFile(latent, "12ab", name, SPEC, size))
    for read in (read_latent(path), latent_from_bytes(path.read_bytes(), "it")):
        np.testing.assert_array_equal(read.latent, latent)
        assert read.latent.dtype == np.float32
        assert (read.vae_identity, read.vae_name, read.spec, read.size) == ("12ab", name, SPEC, size)


def test_latent_is_written_as_specified(tmp_path: Path) -> None:
    latent = np.ones((1, 2, 3, 4), np.float32).transpose(0, 1, 3, 2)
    write_latent(tmp_path / "a.safetensors", LatentFile(latent, "12ab", "tiny", SPEC, (31, 20)))
    with safetensors.safe_open(tmp_path / "a.safetensors", "numpy") as file:
        assert file.metadata() == {
            "vaedeploy.identity": "12ab",
            "vaedeploy.vae": "tiny",
            "vaedeploy.latent": '{"channels":2,"factor":8,"scale":[0.5,0.25],"shift":0.1,"sampled":true}',
            "vaedeploy.size": "[31,20]",
        }
        np.testing.assert_array_equal(file.get_tensor("latent"), latent)


def test_latent_of_another_program_is_read(tmp_path: Path) -> None:
    latent = np.random.default_rng(0).normal(size=(1, 4, 2, 2)).astype(np.float16)
    safetensors.numpy.save_file({"latent": latent, "other": latent}, tmp_path / "a.safetensors")
    path = tmp_path / "a.safetensors"
    for read in (read_latent(path), latent_from_bytes(path.read_bytes(), "it")):
        np.testing.assert_array_equal(read.latent, latent.astype(np.float32))
        assert (read.vae_identity, read.vae_name, read.spec, read.size) == (None, None, None, None)


def _tensors(metadata: dict[str, str] | None = None, **tensors: np.ndarray) -> bytes:
    return safetensors.numpy.save(tensors, metadata)


ZEROS = np.zeros((1, 2, 2, 2), np.float32)
BF16 = b'{"latent":{"dtype":"BF16","shape":[1,1,1,1],"data_offsets":[0,2]}}'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_tensors(z=ZEROS, y=ZEROS), "{} has no tensor 'latent', so it is not a latent file; it has y, z"),
        (
            _tensors(**dict.fromkeys("edcba", ZEROS)),
            "{} has no tensor 'latent', so it is not a latent file; it has a, b, c and 2 more",
        ),
        (_tensors(), "{} has no tensor 'latent', so it is not a latent file; it has none"),
        (_tensors(latent=ZEROS[0]), "{} has a latent of type F32 and shape (2, 2, 2); {wanted}"),
        (
            _tensors(latent=ZEROS[:, :, None]),
            "{} has a latent of type F32 and shape (1, 2, 1, 2, 2); {wanted}. It has an axis for one frame, as those "
            "of Wan and Qwen-Image do: give latent[:, :, 0]",
        ),
        (_tensors(latent=ZEROS.astype(np.int32)), "{} has a latent of type I32 and shape (1, 2, 2, 2); {wanted}"),
        (
            struct.pack("<Q", len(BF16)) + BF16 + b"\0\0",
            "{} has a latent of type BF16 and shape (1, 1, 1, 1); {wanted}",
        ),
        (_tensors(latent=ZEROS[:0]), "{} has a latent without elements: its shape is (0, 2, 2, 2)"),
        (_tensors(latent=ZEROS + np.nan), "{} has NaN or infinity in its latent"),
        (_tensors(latent=ZEROS.astype(np.float64) + 1e300), "{} has NaN or infinity in its latent"),
        (
            _tensors({"vaedeploy.size": "[3]"}, latent=ZEROS),
            "{} has vaedeploy.size '[3]' in its metadata, which cannot be used: Expected `array` of length 2",
        ),
        (
            _tensors({"vaedeploy.latent": '{"channels":0,"factor":8,"scale":1}'}, latent=ZEROS),
            '{} has vaedeploy.latent \'{{"channels":0,"factor":8,"scale":1}}\' in its metadata, which cannot be used: '
            "latent channels is 0; it must be 1 or more",
        ),
    ],
)
def test_what_is_no_latent_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(LatentError) as caught:
        read_latent(path)
    wanted = "it must be (B, C, h, w) of type F32, F16 or F64"
    assert str(caught.value) == message.format(path, wanted=wanted)
    with pytest.raises(LatentError) as caught:
        latent_from_bytes(data, "it")
    assert str(caught.value) == message.format("it", wanted=wanted)


@pytest.mark.parametrize("data", [b"", b"hello, I am text", _tensors(latent=ZEROS)[:-1], _tensors(latent=ZEROS)[:20]])
def test_file_that_is_not_safetensors_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(LatentError) as caught:
        read_latent(path)
    assert str(caught.value).startswith(f"{path} is not a safetensors file, or is truncated: ")
    with pytest.raises(LatentError, match=r"^it is not a safetensors file, or is truncated: "):
        latent_from_bytes(data, "it")


def test_missing_latent_and_folder(tmp_path: Path) -> None:
    with pytest.raises(LatentError) as caught:
        read_latent(tmp_path / "none.safetensors")
    assert str(caught.value) == f"there is no file {tmp_path / 'none.safetensors'}"
    with pytest.raises(LatentError) as caught:
        read_latent(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path} cannot be read: ")


@pytest.mark.parametrize("latent", [np.zeros((2, 2, 2), np.float32), np.zeros((1, 2, 2, 2))])
def test_array_that_is_no_latent_is_not_written(tmp_path: Path, latent: np.ndarray) -> None:
    with pytest.raises(LatentError) as caught:
        write_latent(tmp_path / "a.safetensors", LatentFile(latent))
    assert str(caught.value) == (f"latent is {latent.dtype} of shape {latent.shape}; it must be (B, C, h, w) float32")
    assert list(tmp_path.iterdir()) == []
