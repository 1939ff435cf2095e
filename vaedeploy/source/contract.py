"""The latent contract of a VAE: which sources state it, and which one holds where several do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from vaedeploy.errors import ContractError, WeightsError
from vaedeploy.source.families import FAMILIES, REFUSED, family_of
from vaedeploy.source.family import OWN_MODULES, Architecture, LatentShape
from vaedeploy.source.preset import Preset, presets
from vaedeploy.source.statement import Number, Statement
from vaedeploy.system.documents import read_document
from vaedeploy.system.text import shown
from vaedeploy.values.latent import LatentSpec, as_numbers, numbers_text

MAX_CONFIG = 1_000_000
"""Largest config.json that is read, in bytes. One takes about 1000."""


@dataclass(frozen=True)
class ModelConfig:
    """What a ``config.json`` says: the architecture, and all of its fields."""

    architecture: Architecture
    raw: dict[str, Any]


def preset_statement(preset: Preset, by: str | None = None) -> Statement:
    """The statement of a preset. by: what messages call the source, if not by the preset's name."""
    by, latent = by or f"preset {preset.name}", preset.latent
    return Statement(by, latent.scale, latent.shift) if latent is not None else Statement(by, None, None)


def class_named(path: Path) -> str | None:
    """The class that a ``config.json`` names; None where it names none, or is no such file."""
    try:
        name = msgspec.json.decode(read_document(path, MAX_CONFIG), type=dict[str, Any]).get("_class_name")
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return name if isinstance(name, str) else None


def read_config(path: Path) -> ModelConfig:
    """Read a diffusers ``config.json``.

    It is read as plain JSON, because diffusers itself silently sets a missing scaling_factor to 0.18215.

    Raises WeightsError for a file that cannot be read, is not such a config, is the config of a class that cannot be
    loaded, or asks for what its family cannot do.
    """
    class_name: str | None = None
    try:
        raw = msgspec.json.decode(read_document(path, MAX_CONFIG), type=dict[str, Any])
        named = raw.get("_class_name")
        class_name = None if named is None else str(named)
        family = FAMILIES.get(class_name or "")
        if class_name in REFUSED:
            why = REFUSED[class_name]
            raise WeightsError(f"is the config of {class_name}, which cannot be loaded: {why}. {OWN_MODULES}")
        if family is None:
            found = f"is the config of {shown(class_name)}" if class_name else "does not name its class (_class_name)"
            raise WeightsError(f"{found}; the classes that can be loaded are {', '.join(FAMILIES)}. {OWN_MODULES}")
        return ModelConfig(family.read(raw), raw)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    except WeightsError as error:
        raise WeightsError(f"{path} {error}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        of = f"diffusers {class_name}" if class_name else "VAE of diffusers"
        raise WeightsError(f"{path} is not the config of a {of}: {error}") from error


def agree(
    statements: Sequence[Statement],
    architecture: Architecture,
    given: str,
    scale: float | Sequence[float] | None,
    shift: float | Sequence[float] | None,
) -> LatentSpec:
    """The latent contract on which ``statements`` agree.

    given: what messages call the config, or the weights if there is none. scale, shift: the caller's values, one number
    or one per channel. They fill in what no statement contains, and decide where two statements differ.

    Raises ContractError where a statement cannot hold and the caller does not give both values; where nothing states
    the scale; where nothing states the shift and a preset of the architecture has one; where two statements differ and
    the caller does not decide; and where the caller's value differs from every statement.
    """
    fault = next((s.fault for s in statements if s.fault is not None), None)
    if fault is not None and (scale is None or shift is None):
        raise ContractError(
            f"{fault}. Say what holds, with both of --scale and --shift (scale= and shift= in Python): one number, or "
            "one for each channel, separated by commas"
        )
    shape = family_of(architecture).latent(architecture)
    for statement in statements:
        _check(statement, shape)
    agreed_scale = _agreed("scale", [(s.by, s.scale) for s in statements], scale)
    agreed_shift = _agreed("shift", [(s.by, s.shift) for s in statements], shift)
    if agreed_scale is None:
        raise ContractError(
            f"{given} does not state the scale of the latents. Give it: --scale NUMBER (scale= in Python)"
            + _examples(architecture)
        )
    if agreed_shift is None:
        if any(latent.shift != 0 for latent in _alike(architecture).values()):
            raise ContractError(
                f"{given} does not state the shift of the latents, and VAEs of its architecture have one. "
                f"Give it: --shift NUMBER (shift= in Python; 0 for none){_examples(architecture)}"
            )
        agreed_shift = 0.0
    return LatentSpec(
        shape.channels, shape.factor, agreed_scale, agreed_shift, shape.sampled, image_channels=shape.image_channels
    )


def _check(statement: Statement, shape: LatentShape) -> None:
    """Raise ContractError, which names the source, if no contract can have the numbers that it states."""
    try:
        scale = 1.0 if statement.scale is None else statement.scale
        LatentSpec(shape.channels, shape.factor, scale, statement.shift or 0.0)
    except ContractError as error:
        raise ContractError(f"{statement.by} cannot hold: {error}. Change it there") from error


def _agreed(
    what: str, stated: Sequence[tuple[str, Number | None]], given: float | Sequence[float] | None
) -> Number | None:
    """The value that holds, among those stated and the caller's; None where there is none.

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


def _alike(architecture: Architecture) -> dict[str, LatentSpec]:
    """The contracts of the presets that share the architecture, by their names."""
    alike = (preset for preset in presets().values() if not preset.config.differences(architecture))
    return {preset.name: preset.latent for preset in alike if preset.latent is not None}


def _examples(architecture: Architecture) -> str:
    """The contracts of the presets that share the architecture, from which a user can find the right numbers."""
    contracts = ", ".join(
        f"{name} has {latent.scale}" + (f" with shift {latent.shift}" if latent.shift else "")
        for name, latent in _alike(architecture).items()
    )
    return f". Of this architecture: {contracts}" if contracts else ""
