"""What one source states about a latent contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from vaedeploy.errors import ContractError
from vaedeploy.system.text import shown
from vaedeploy.values.latent import numbers_text

Number = float | tuple[float, ...]


@dataclass(frozen=True)
class Statement:
    """The scale and the shift that one source states; None for what it does not state.

    by: the source, as messages call it: "preset mse840k", or the path of a config.json.
    fault: why its numbers cannot hold, in words; the caller's values then hold.
    """

    by: str
    scale: Number | None
    shift: Number | None
    fault: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it states nothing."""
        return (self.scale, self.shift, self.fault) == (None, None, None)


def config_statement(raw: Mapping[str, Any], by: str) -> Statement:
    """What diffusers' usual fields state: scaling_factor and shift_factor, or latents_mean and latents_std.

    raw: a ``config.json``. by: its path, for messages. Raises ContractError for fields of a wrong type.
    """
    scale, shift = (number(raw, key, by) for key in ("scaling_factor", "shift_factor"))
    mean, std = (vector(raw, key, by) for key in ("latents_mean", "latents_std"))
    if scale is None and (mean, std) != (None, None):
        fault = (
            f"{by} has latents_mean or latents_std and no scaling_factor, so it does not say what scale they belong to"
        )
        return Statement(by, None, None, fault)
    if scale is None:
        return Statement(by, None, shift)
    if mean is None and std is None:
        # A config with a scale whose shift is null or missing belongs to a VAE without a shift. Null states a shift of
        # 0, which contradicts a preset with a shift; a missing key states nothing, so it contradicts none.
        return Statement(by, scale, 0.0 if shift is None and "shift_factor" in raw else shift)
    scales = None
    if mean is not None and std is not None and 0.0 not in std:
        # diffusers' pipelines compute (z - mean) * scale / std.
        scales = tuple(scale / s for s in std)
        if shift is None:
            return Statement(by, scales, mean)
    fault = (
        f"{by} states its latents' mean and deviation in a way that cannot hold: latents_mean and latents_std "
        "belong together, without a shift_factor and without zeros in latents_std"
    )
    if scales is not None and mean is not None:
        fault += (
            f". Its means and deviations say --scale {numbers_text(scales)} --shift {numbers_text(mean)}, and its "
            f"factors say --scale {scale} --shift {shift}"
        )
    return Statement(by, None, None, fault)


def number(raw: Mapping[str, Any], key: str, by: str) -> float | None:
    """A number of a config; None where it is missing or null. Raises ContractError for anything else."""
    value = raw.get(key)
    if value is None:
        return None
    try:
        return msgspec.convert(value, float)
    except msgspec.ValidationError as error:  # also for a whole number that is too large for a float
        raise ContractError(f"{by}: {key} is {shown(repr(value))}; it must be a number") from error


def vector(raw: Mapping[str, Any], key: str, by: str) -> tuple[float, ...] | None:
    """A list of numbers of a config; None where it is missing or null. Raises ContractError for anything else."""
    value = raw.get(key)
    if value is None:
        return None
    try:
        return msgspec.convert(value, tuple[float, ...])
    except msgspec.ValidationError as error:
        raise ContractError(f"{by}: {key} is {shown(repr(value))}; it must be a list of numbers") from error
