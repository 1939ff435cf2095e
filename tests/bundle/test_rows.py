"""The document of a half in pieces: read as it was written, and refused where it contradicts itself."""

from __future__ import annotations

import msgspec
import pytest

from vaedeploy.bundle.rows import Cut, Piece, RowsTable, Size, decode_rows, encode_rows
from vaedeploy.errors import BundleError

SHAPE = (Size(1), Size(4), Size(1, rows=True), Size(1, columns=True))
TABLE = RowsTable(
    part="decoder",
    factor=8,
    input="latent",
    outputs=("image",),
    untiled=100,
    cuts=(Cut("latent", SHAPE, 2, 1), Cut("image", (Size(1), Size(3), Size(8, True), Size(8, False, True)), 2, 8)),
    pieces=(Piece(targets=("image",), strips=("latent",), model=b"model", steps=1, halo=2),),
)

piece, (latent, image) = msgspec.to_builtins(TABLE.pieces[0]), msgspec.to_builtins(TABLE.cuts)

NORM = {"groups": 2, "epsilon": 1e-5, "mean": "mean", "inverse": "inverse"}


def test_what_is_written_is_read() -> None:
    assert decode_rows(encode_rows(TABLE), "name") == TABLE


def test_sizes_follow_the_latent() -> None:
    latent, image = TABLE.cuts
    assert latent.at(5, 7) == (1, 4, 5, 7)
    assert image.at(5, 7) == (1, 3, 40, 56)
    assert image.bytes_at(5, 7) == 3 * 40 * 56 * 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 2}, "^name has version 2; this vaedeploy knows version 1 only$"),
        ({"outputs": ("image", "more")}, "no piece gives more"),
        ({"input": "other"}, "a piece takes latent before it is computed"),
        ({"cuts": TABLE.cuts[:1]}, "a piece gives image, which is not among the cuts"),
        ({"factor": 0}, "Expected `int` >= 1"),
        ({"pieces": [piece | {"steps": 3}]}, "a piece has 3 steps for a row of latents, and image has other rows"),
        ({"pieces": [piece | {"targets": []}]}, "a piece gives nothing, or joins tensors with rows"),
        ({"cuts": [latent | {"axis": None}, image]}, "latent has an axis and no scale, or a scale and no axis"),
        ({"cuts": [latent | {"axis": 3}, image]}, "latent has no rows along its axis 3"),
        ({"cuts": [latent | {"dtype": "object"}, image]}, "Invalid enum value 'object'"),
        ({"cuts": [latent | {"norms": [NORM]}, image]}, "latent is normalised, and has no statistics of its rows"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(change: dict[str, object], reason: str) -> None:
    fields = msgspec.to_builtins(TABLE) | msgspec.to_builtins(change)
    with pytest.raises(BundleError, match=reason):
        decode_rows(msgspec.json.encode(fields), "name")


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"[" * 100000])
def test_what_is_no_table_is_refused(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"^name cannot be used: "):
        decode_rows(data, "name")
