"""The latent contract of a VAE: which sources state it, and what holds where several do."""

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
from vaedeploy.system.documents import read_document
from vaedeploy.system.text import shown
from vaedeploy.values.latent import LatentSpec, as_numbers, numbers_text

Number = float | tuple[float, ...]

MAX_CONFIG = 1_000_000
"""Largest config.json that is read, in bytes. One takes about 1000."""

CLASS_NAME = "AutoencoderKL"
"""The only class of diffusers' autoencoders that can be loaded."""


@dataclass(frozen=True)
class Statement:
    """The scale and the shift that one source states; None for what it does not state.

    by: the source, as messages call it: "preset mse840k", or the path of a config.json.
    fault: why what it states cannot hold, in words; the caller's values hold then.
    """

    by: str
    scale: Number | None
    shift: Number | None
    fault: str | None = None


@dataclass(frozen=True)
class ModelConfig:
    """What a ``config.json`` says: the architecture, and its statement of the latent contract."""

    architecture: Architecture
    statement: Statement


def preset_statement(preset: Preset, by: str | None = None) -> Statement:
    """The statement of a preset. by: what messages call the source, if not by the preset's name."""
    return Statement(by or f"preset {preset.name}", preset.latent.scale, preset.latent.shift)


def read_config(path: Path) -> ModelConfig:
    """Read a diffusers ``config.json``.

    It is read as plain JSON, because diffusers itself silently sets a missing scaling_factor to 0.18215.

    Raises WeightsError for a file that cannot be read, is not such a config, is the config of another class, or has
    images with other than 3 channels; ContractError where it states the latent contract in values of a wrong type.
    """
    try:
        raw = msgspec.json.decode(read_document(path, MAX_CONFIG), type=dict[str, Any])
        named = {key: raw[key] for key in Architecture.__struct_fields__ if raw.get(key) is not None}
        architecture = msgspec.convert(named, Architecture)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WeightsError(f"{path} is not the config of a diffusers {CLASS_NAME}: {error}") from error
    if raw.get("_class_name") != CLASS_NAME:
        name = raw.get("_class_name")
        found = f"is the config of {shown(str(name))}" if name else "does not name its class (_class_name)"
        raise WeightsError(f"{path} {found}; the class that can be loaded is {CLASS_NAME}")
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
    scale: float | Sequence[float] | None,
    shift: float | Sequence[float] | None,
) -> LatentSpec:
    """The latent contract on which ``statements`` agree.

    given: what messages call the VAE. scale, shift: the caller's values, one number or one a channel. They fill in what
    no statement contains, and decide which statement holds where two differ.

    Raises ContractError where a statement cannot hold and the caller does not give both values; where nothing states
    the scale; where nothing states the shift and a preset of the architecture
    has one; where two statements differ and the caller does not decide; and where the caller's value differs from every
    statement.
    """
    fault = next((s.fault for s in statements if s.fault is not None), None)
    if fault is not None and (scale is None or shift is None):
        raise ContractError(
            f"{fault}. Say what holds, with both of --scale and --shift (scale= and shift= in Python): one number, or "
            "one for each channel, separated by commas"
        )
    agreed_scale = _agreed("scale", [(s.by, s.scale) for s in statements], scale)
    agreed_shift = _agreed("shift", [(s.by, s.shift) for s in statements], shift)
    if agreed_scale is None:
        raise ContractError(
            f"{given} does not state the scale of its latents. Give it: --scale NUMBER (scale= in Python)"
            + _examples(architecture)
        )
    if agreed_shift is None:
        if any(p.latent.shift != 0 for p in presets().values() if not p.config.differences(architecture)):
            raise ContractError(
                f"{given} does not state the shift of its latents, and VAEs of its architecture have one. "
                f"Give it: --shift NUMBER (shift= in Python; 0 for none){_examples(architecture)}"
            )
        agreed_shift = 0.0
    return LatentSpec(architecture.latent_channels, architecture.factor, agreed_scale, agreed_shift)


def _config_statement(raw: dict[str, Any], path: Path) -> Statement:
    scale, shift = (_number(raw, key, path) for key in ("scaling_factor", "shift_factor"))
    mean, std = (_vector(raw, key, path) for key in ("latents_mean", "latents_std"))
    if scale is None:
        return Statement(str(path), None, shift)
    if mean is None and std is None:
        # A config with a scale whose shift is null or missing belongs to a VAE without a shift. Null states a shift of
        # 0, which contradicts a preset with a shift; a missing key states nothing, so it contradicts none.
        return Statement(str(path), scale, 0.0 if shift is None and "shift_factor" in raw else shift)
    scales = None
    if mean is not None and std is not None and 0.0 not in std:
        # diffusers' pipelines compute (z - mean) * scale / std.
        scales = tuple(scale / s for s in std)
        if shift is None:
            return Statement(str(path), scales, mean)
    fault = (
        f"{path} states its latents' mean and deviation in a way that cannot hold: latents_mean and latents_std "
        "belong together, without a shift_factor and without zeros in latents_std"
    )
    if scales is not None and mean is not None:
        fault += (
            f". Its means and deviations say --scale {numbers_text(scales)} --shift {numbers_text(mean)}, and its "
            f"factors say --scale {scale} --shift {shift}"
        )
    return Statement(str(path), None, None, fault)


def _number(raw: dict[str, Any], key: str, path: Path) -> float | None:
    value = raw.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ContractError(f"{path}: {key} is {shown(repr(value))}; it must be a number")
    return float(value)


def _vector(raw: dict[str, Any], key: str, path: Path) -> tuple[float, ...] | None:
    value = raw.get(key)
    if value is None:
        return None
    try:
        return msgspec.convert(value, tuple[float, ...])
    except msgspec.ValidationError as error:
        raise ContractError(f"{path}: {key} is {shown(repr(value))}; it must be a list of numbers") from error


def _agreed(
    what: str, stated: Sequence[tuple[str, Number | None]], given: float | Sequence[float] | None
) -> Number | None:
    """The value that holds, of those that are stated and the one that the caller gave; None where nobody gives one.

    what: "scale" or "shift". stated: (source, value) of each statement.
    """
    given = None if given is None else as_numbers(what, given)
    known = [(by, value) for by, value in stated if value is not None]
    sources = ", ".join(f"{by} says {value}" for by, value in known)
    if given is not None and known:
        confirmed = next((value for _, value in known if _same(value, given)), None)
        if confirmed is None:
            raise ContractError(
                f"the latent {what} is stated already: {sources}, and {given} was given "
                f"(--{what}, or {what}= in Python). "
                + (f"Leave --{what} out" if all(_same(known[0][1], v) for _, v in known) else "Give one of those")
                + f". Where a config.json is wrong, change it there; where a preset's is not that of your weights, "
                f"give them alone: --vae PATH --{what} {numbers_text(given)}"
            )
        return confirmed
    if any(not _same(known[0][1], value) for _, value in known):
        raise ContractError(
            f"the latent {what} is stated in two ways: {sources}. Say which holds: --{what} NUMBER ({what}= in Python)"
        )
    return known[0][1] if known else given


def _same(a: Number, b: Number) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(math.isclose, a, b))
    return not isinstance(a, tuple) and not isinstance(b, tuple) and math.isclose(a, b)


def _examples(architecture: Architecture) -> str:
    """The contracts of the presets that share the architecture, from which a user can find the right numbers."""
    alike = [p for p in presets().values() if not p.config.differences(architecture)]
    contracts = ", ".join(
        f"{p.name} has {p.latent.scale}" + (f" with shift {p.latent.shift}" if p.latent.shift else "") for p in alike
    )
    return f". Of this architecture: {contracts}" if contracts else ""
