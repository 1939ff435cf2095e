"""Who states a VAE's latent contract, and what holds where several do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from vaedeploy.errors import ContractError, WeightsError
from vaedeploy.source.autoencoder_kl.config import Architecture
from vaedeploy.source.preset import Preset, presets
from vaedeploy.values.latent import LatentSpec

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
    """The latent contract that ``statements`` agree on. ``scale`` and ``shift`` fill in what none of them states, and
    say which holds where two differ.

    ``given`` is what the message calls the VAE. Raises ContractError where nothing states the scale, where two
    statements differ and the caller does not say which holds, and where the caller says something else than they do.
    """
    held_scale = _held("scale", [(s.by, s.scale) for s in statements], scale)
    held_shift = _held("shift", [(s.by, s.shift) for s in statements], shift)
    if held_scale is None:
        raise ContractError(
            f"{given} does not state the scale of its latents. Give it: --scale NUMBER (scale= in Python)"
            + _examples(architecture)
        )
    if held_shift is None:
        if any(p.latent.shift != 0 for p in presets().values() if not p.config.differences(architecture)):
            raise ContractError(
                f"{given} does not state the shift of its latents, and VAEs of its architecture have one. "
                f"Give it: --shift NUMBER (shift= in Python; 0 for none){_examples(architecture)}"
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


def _held(what: str, stated: Sequence[tuple[str, Number | None]], given: float | None) -> Number | None:
    """The value that holds, of those that are stated and the one that the caller gave; None where there is none."""
    known = [(by, value) for by, value in stated if value is not None]
    told = ", ".join(f"{by} says {value}" for by, value in known)
    if given is not None and known:
        found = next((value for _, value in known if _same(value, given)), None)
        if found is None:
            raise ContractError(
                f"the latent {what} is stated already: {told}, and {given} was given (--{what}, or {what}= in Python). "
                + (f"Leave --{what} out" if all(_same(known[0][1], v) for _, v in known) else "Give one of those")
                + f". Where a config.json is wrong, change it there; where a preset's is not that of your weights, "
                f"give them alone: --vae PATH --{what} {given}"
            )
        return found
    if any(not _same(known[0][1], value) for _, value in known):
        raise ContractError(
            f"the latent {what} is stated in two ways: {told}. Say which holds: --{what} NUMBER ({what}= in Python)"
        )
    return known[0][1] if known else given


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
