"""``calibration.json``: the largest magnitude of every tensor."""

from __future__ import annotations

import math

import msgspec

from vaedeploy.errors import BundleError
from vaedeploy.values.kinds import Part

NAME = "calibration.json"
"""The place of a ``Calibration`` in a bundle."""


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The contents of ``calibration.json``.

    maxima: part -> name of a tensor in the portable graph -> its largest magnitude over all inputs. One that is not
    finite is null in JSON and None here.
    measured_on: what each input was, such as ``astronaut 512x512``.
    """

    maxima: dict[Part, dict[str, float | None]]
    measured_on: tuple[str, ...]

    def of(self, part: Part) -> dict[str, float]:
        """One part's maxima, as ``rescale`` takes them: what was not finite is infinite. Empty if not measured."""
        return {name: math.inf if m is None else m for name, m in self.maxima.get(part, {}).items()}


def encode_calibration(calibration: Calibration) -> bytes:
    """The bytes of ``calibration.json``."""
    return msgspec.json.format(msgspec.json.encode(calibration, order="sorted"), indent=2) + b"\n"


def decode_calibration(data: bytes) -> Calibration:
    """Read the bytes of ``calibration.json``. Raises BundleError for what is not JSON, or of other fields or types."""
    try:
        return msgspec.json.decode(data, type=Calibration)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BundleError(f"{NAME} cannot be used: {error}. Export the bundle again with --force") from error
