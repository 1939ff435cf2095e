"""The network into which weights are loaded: a preset's, a config.json's, or the one that their tensors match."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vaedeploy.errors import WeightsError
from vaedeploy.source import checkpoint
from vaedeploy.source.contract import preset_statement, read_config
from vaedeploy.source.families import family_of
from vaedeploy.source.family import Architecture
from vaedeploy.source.fit import Fit, fit
from vaedeploy.source.folder import find_weights
from vaedeploy.source.locate import Found
from vaedeploy.source.preset import Preset, architectures, presets
from vaedeploy.source.recognise import kind_of
from vaedeploy.source.statement import Statement
from vaedeploy.source.stored import Stored

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Plan:
    """The network into which weights are loaded.

    name: name of the reference that is made.
    title: what messages call the architecture.
    raw: the config.json; empty where there is none. by: what messages call it, or else the weights.
    preset: the preset whose statement of the latent contract holds.
    """

    name: str
    architecture: Architecture
    title: str
    by: str
    raw: Mapping[str, Any] = field(default_factory=dict)
    preset: Preset | None = None

    def statements(self, tensors: Mapping[str, Tensor]) -> list[Statement]:
        """What a preset, a config or the weights state about the latent contract."""
        stated = family_of(self.architecture).statement(self.raw, self.architecture, tensors, self.by)
        found = [] if self.preset is None else [preset_statement(self.preset)]
        return [*found, stated] if self.raw or not stated.is_empty else found


def preset_plan(preset: Preset, found: Found) -> Plan:
    """The plan for weights that are given with a preset.

    Raises WeightsError where a config beside them describes another network.
    """
    title = f"preset {preset.name} (architecture {preset.architecture})"
    raw: Mapping[str, Any] = {}
    if found.config is not None:
        config = read_config(found.config)
        differing = preset.config.differences(config.architecture)
        if differing:
            differences = "; ".join(
                f"{n} {getattr(config.architecture, n)}, not {getattr(preset.config, n)}" for n in differing
            )
            raise WeightsError(
                f"{found.where} is of another architecture than {title}: its config.json has {differences}. "
                "Give the preset that it belongs to (vaedeploy presets), or the folder itself: --vae PATH"
            )
        raw = config.raw
    name = preset.name if found.own else found.name
    return Plan(name, preset.config, title, str(found.config or found.where), raw, preset)


def config_plan(found: Found) -> Plan:
    """The plan for weights whose config.json determines the architecture. Raises WeightsError where there is none."""
    if found.config is None:
        raise WeightsError(
            f"{found.file.parent} has no config.json to say which VAE it is. Give the weights file itself "
            f"(--vae {found.file}), or a preset with the folder (--vae PRESET --weights {found.folder})"
        )
    config = read_config(found.config)
    return Plan(found.name, config.architecture, str(found.config), str(found.config), config.raw)


def misfit(found: Found, plan: Plan, tensors: Mapping[str, Stored], matched: Fit) -> str:
    """A message: what is wrong with tensors that do not fit, and what they would fit."""
    # One at a time, up to the first that fits: each must be built.
    others = architectures().items()
    fitting = next((name for name, architecture in others if not fit(tensors, architecture).faults), None)
    if not matched.found and fitting is None:
        return _no_vae(found, tensors)
    if fitting is not None:
        known = ", ".join(preset.name for preset in presets().values() if preset.architecture == fitting)
        advice = f"They are of architecture {fitting}: give the weights alone (--vae PATH)" + (
            f", or the preset that they belong to: {known}" if known else ""
        )
    elif beside := _config_beside(found):
        advice = f"They fit no preset, but {beside}"
    elif found.preset is not None:
        advice = (
            "They fit no preset. A VAE of another shape loads from a diffusers folder with its config.json: "
            "--vae FOLDER"
        )
    else:
        advice = "Give the config.json that belongs to these weights, or the weights that belong to it"
    return f"{found.where} does not fit {plan.title}: {matched.complaint()}. {advice}"


def _no_vae(found: Found, tensors: Mapping[str, Stored]) -> str:
    kind = kind_of(tensors)
    names = f"its tensors are named {checkpoint.listed(tensors)}" if tensors else "it holds no tensors"
    what = f"it looks like {kind}" if kind else names
    if beside := _config_beside(found):
        return f"{found.where} holds no VAE that is known without its config.json, but {beside}"
    if kind is None and found.config is None and any(name.startswith("decoder.") for name in tensors):
        advice = "A VAE that is none of the presets' loads from a diffusers folder with its config.json: --vae FOLDER"
    else:
        advice = "Give the VAE's own weights, or a checkpoint with them in it"
    return f"{found.where} holds no VAE that can be loaded: {what}. {advice}"


def _config_beside(found: Found) -> str | None:
    """A hint that a VAE's config.json is beside weights given without it, and what to type; None where there is none.

    Whether the weights fit it shows when it is given.
    """
    folder = found.file.parent
    if found.config is not None or not (folder / "config.json").exists():
        return None
    try:
        read_config(folder / "config.json")
    except WeightsError:
        return None
    try:
        alone = found.file in find_weights(folder).files
    except WeightsError:  # it may have several variants, equally precise
        alone = False
    weights = [] if alone else ["--weights", str(found.file)]
    return f"config.json is beside it: {shlex.join(['vaedeploy', 'export', str(folder), *weights])}"


def file_plan(found: Found, tensors: Mapping[str, Stored]) -> tuple[Plan, Fit]:
    """The plan for a file without a config, and its fit: the known architecture that its tensors match.

    Raises WeightsError where they match none.
    """
    fits: dict[str, Fit] = {}
    for name, architecture in architectures().items():
        fits[name] = matched = fit(tensors, architecture)
        if not matched.faults:
            return Plan(found.name, architecture, f"architecture {name}", found.where), matched
    nearest = min(fits, key=lambda name: fits[name].faults)
    if not fits[nearest].found:
        raise WeightsError(_no_vae(found, tensors))
    if beside := _config_beside(found):
        raise WeightsError(
            f"{found.where} fits none of the architectures that are known by their tensors, but {beside}"
        )
    raise WeightsError(
        f"{found.where} fits none of the known architectures ({', '.join(fits)}). "
        f"The nearest is {nearest}: {fits[nearest].complaint()}. "
        "A VAE of another shape loads from a diffusers folder with its config.json; to put these weights into it: "
        f"FOLDER --weights {found.where}"
    )
