"""``calibration.json``: the largest magnitude of every tensor of a bundle's portable graphs."""

from __future__ import annotations

import math

import msgspec

from vaedeploy.errors import BundleError
from vaedeploy.values.kinds import Part

NAME = "calibration.json"
"""The path of the calibration in a bundle."""


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The contents of ``calibration.json``.

    maxima: part -> name of a tensor in the portable graph -> its largest magnitude over all inputs. A magnitude that is
    not finite is null in JSON and None here.
    measured_on: a description of each input, such as ``astronaut 512x512``.
    """

    maxima: dict[Part, dict[str, float | None]]
    measured_on: tuple[str, ...]

    def of(self, part: Part) -> dict[str, float]:
        """The maxima of one part, with infinity for None, as ``rescale`` takes them; empty if it was not measured."""
        return {name: math.inf if maximum is None else maximum for name, maximum in self.maxima.get(part, {}).items()}


def encode_calibration(calibration: Calibration) -> bytes:
    """The bytes of ``calibration.json``."""
    return msgspec.json.format(msgspec.json.encode(calibration, order="sorted"), indent=2) + b"\n"


def decode_calibration(data: bytes) -> Calibration:
    """Read the bytes of ``calibration.json``. Raises BundleError if they are not JSON with its fields and types."""
    try:
        return msgspec.json.decode(data, type=Calibration)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BundleError(f"{NAME} cannot be used: {error}. Export the bundle again with --force") from error
