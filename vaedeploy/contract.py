"""Who states a VAE's latent contract, and what holds where several do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from vaedeploy.errors import ContractError, WeightsError
from vaedeploy.latent import LatentSpec
from vaedeploy.preset import Architecture, Preset, presets

Number = float | tuple[float, ...]

CLASS_NAME = "AutoencoderKL"
"""The one class of diffusers' autoencoders that can be loaded."""


@dataclass(frozen=True)
class Statement:
    """A scale and a shift, as far as ``by`` states them: "preset mse840k", or a config.json by its path."""

    by: str
    scale: Number | None
    shift: Number | None


@dataclass(frozen=True)
class ModelConfig:
    """What a model's own ``config.json`` says."""

    architecture: Architecture
    statement: Statement


def preset_statement(preset: Preset, by: str | None = None) -> Statement:
    """What a preset states, for itself or for the file that ``by`` names."""
    return Statement(by or f"preset {preset.name}", preset.latent.scale, preset.latent.shift)


def read_config(path: Path) -> ModelConfig:
    """A diffusers ``config.json``, read raw: diffusers itself fills a missing scaling_factor with 0.18215 in silence.

    Raises WeightsError for a file that is not such a config or is another class's, ContractError where it states the
    latent contract in a way that cannot hold.
    """
    try:
        raw = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        named = {key: raw[key] for key in Architecture.__struct_fields__ if raw.get(key) is not None}
        architecture = msgspec.convert(named, Architecture)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    except msgspec.MsgspecError as error:
        raise WeightsError(f"{path} is not the config of a diffusers {CLASS_NAME}: {error}") from error
    if raw.get("_class_name") != CLASS_NAME:
        raise WeightsError(
            f"{path} is the config of {raw.get('_class_name') or 'no class that it names'}; "
            f"the class that can be loaded is {CLASS_NAME}"
        )
    if (architecture.in_channels, architecture.out_channels) != (3, 3):
        raise WeightsError(
            f"{path} has {architecture.in_channels} channels in and {architecture.out_channels} out; "
            "both must be 3 (RGB)"
        )
    return ModelConfig(architecture, _config_statement(raw, path))


def agree(
    statements: Sequence[Statement],
    architecture: Architecture,
    given: str,
    scale: float | None,
    shift: float | None,
) -> LatentSpec:
    """The latent contract that ``statements`` agree on; ``scale`` and ``shift`` win over them where given.

    ``given`` is what the message calls the VAE. Raises ContractError where nothing states the scale, or where two
    statements differ and the caller does not say which holds.
    """
    held_scale = scale if scale is not None else _agreed("scale", [(s.by, s.scale) for s in statements])
    held_shift = shift if shift is not None else _agreed("shift", [(s.by, s.shift) for s in statements])
    if held_scale is None:
        raise ContractError(
            f"{given} does not state the scale of its latents. Give it: --scale NUMBER{_examples(architecture)}"
        )
    if held_shift is None:
        if any(p.latent.shift != 0 for p in presets().values() if not p.config.differences(architecture)):
            raise ContractError(
                f"{given} does not state the shift of its latents, and VAEs of its architecture have one. "
                f"Give it: --shift NUMBER (0 for none){_examples(architecture)}"
            )
        held_shift = 0.0
    return LatentSpec(architecture.latent_channels, architecture.factor, held_scale, held_shift)


def _config_statement(raw: dict[str, Any], path: Path) -> Statement:
    scale, shift = (_number(raw, key, path) for key in ("scaling_factor", "shift_factor"))
    mean, std = (_vector(raw, key, path) for key in ("latents_mean", "latents_std"))
    if scale is None:
        return Statement(str(path), None, shift)
    if mean is None and std is None:
        # A config that states the scale and leaves the shift out, or null, is of a VAE without one. That of a preset
        # with a shift is stated, so null contradicts it, but a key that is left out does not.
        return Statement(str(path), scale, 0.0 if shift is None and "shift_factor" in raw else shift)
    if mean is None or std is None or shift is not None or 0.0 in std:
        raise ContractError(
            f"{path} states its latents' mean and deviation in a way that cannot hold: latents_mean and latents_std "
            "belong together, without a shift_factor and without zeros in latents_std"
        )
    # As diffusers' pipelines apply them: (z - mean) * scale / std.
    return Statement(str(path), tuple(scale / s for s in std), mean)


def _number(raw: dict[str, Any], key: str, path: Path) -> float | None:
    value = raw.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ContractError(f"{path}: {key} is {value!r}; it must be a number")
    return float(value)


def _vector(raw: dict[str, Any], key: str, path: Path) -> tuple[float, ...] | None:
    value = raw.get(key)
    if value is None:
        return None
    try:
        return msgspec.convert(value, tuple[float, ...])
    except msgspec.ValidationError as error:
        raise ContractError(f"{path}: {key} is {value!r}; it must be a list of numbers") from error


def _agreed(what: str, stated: Sequence[tuple[str, Number | None]]) -> Number | None:
    known = [(by, value) for by, value in stated if value is not None]
    if not known:
        return None
    first_by, first = known[0]
    for by, value in known[1:]:
        if not _same(first, value):
            raise ContractError(
                f"the latent {what} is stated in two ways: {first_by} says {first}, {by} says {value}. "
                f"Say which holds: --{what} NUMBER"
            )
    return first


def _same(a: Number, b: Number) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(math.isclose, a, b))
    return not isinstance(a, tuple) and not isinstance(b, tuple) and math.isclose(a, b)


def _examples(architecture: Architecture) -> str:
    """Contracts of the presets that share the architecture, for whoever has to find the right numbers."""
    alike = [p for p in presets().values() if not p.config.differences(architecture)]
    told = ", ".join(
        f"{p.name} has {p.latent.scale}" + (f" with shift {p.latent.shift}" if p.latent.shift else "") for p in alike
    )
    return f". Of this architecture: {told}" if told else ""
