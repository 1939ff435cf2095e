"""Weights from the package, the hub, a folder, a file or a seed -> ``Reference``: a VAE as two PyTorch modules."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from vaedeploy.errors import WeightsError
from vaedeploy.source import checkpoint
from vaedeploy.source.contract import agree, preset_statement, read_config
from vaedeploy.source.families import family_of
from vaedeploy.source.family import Architecture
from vaedeploy.source.fit import Fit, fit, load
from vaedeploy.source.locate import LOADED, PIPELINE_FOLDERS, Found, OnHub, Seed, Source, download, find_source
from vaedeploy.source.preset import Preset, architectures, get_preset, preset_of_file, presets
from vaedeploy.source.recognise import kind_of, stated_model
from vaedeploy.source.statement import Statement
from vaedeploy.source.stored import Stored
from vaedeploy.system.progress import Progress, silent
from vaedeploy.system.torch_state import plain_torch
from vaedeploy.values.latent import LatentSpec
from vaedeploy.values.origin import Origin
from vaedeploy.values.reference import Reference

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["find_source", "load_reference", "load_source", "reload_reference"]


@dataclass(frozen=True)
class _Plan:
    """The network into which weights are loaded.

    name: name of the reference that is made.
    title: what messages call the architecture.
    raw: what a config.json says; empty where there is none. by: what messages call it, or the weights in its place.
    preset: the preset whose statement of the latent contract holds.
    """

    name: str
    architecture: Architecture
    title: str
    by: str
    raw: Mapping[str, Any] = field(default_factory=dict)
    preset: Preset | None = None

    def statements(self, tensors: Mapping[str, Tensor]) -> list[Statement]:
        """What is stated about the latent contract, by a preset, by a config, or by the weights."""
        stated = family_of(self.architecture).statement(self.raw, self.architecture, tensors, self.by)
        found = [] if self.preset is None else [preset_statement(self.preset)]
        return [*found, stated] if self.raw or not stated.is_empty else found


def load_reference(
    vae: str | Path,
    weights: str | Path | None = None,
    *,
    scale: float | Sequence[float] | None = None,
    shift: float | Sequence[float] | None = None,
    progress: Progress = silent,
) -> Reference:
    """Load a VAE as PyTorch modules: float32, eval mode, no gradients.

    vae: a preset's name, or the path of a VAE: a diffusers folder, or a weights file of a known architecture.
    weights: other weights for a preset's architecture: a hub repository, a diffusers folder, a file, or
    ``random:SEED``.
    scale, shift: the latent contract where nothing states it; where two statements differ, the one that holds. One
        number, or one for each channel.
    progress: called as loading advances, see ``Progress``.

    Raises UnknownPresetError, WeightsError, ContractError (also for a scale or shift other than the one that the preset
    or the model's config states) and DownloadError, whose messages say what to do.
    """
    return load_source(find_source(vae, weights), scale=scale, shift=shift, progress=progress)


def load_source(
    source: Source,
    *,
    scale: float | Sequence[float] | None = None,
    shift: float | Sequence[float] | None = None,
    progress: Progress = silent,
) -> Reference:
    """Load what ``find_source`` found; see ``load_reference``. Raises WeightsError, ContractError and DownloadError."""
    if isinstance(source, Reference) and (scale, shift) != (None, None):
        raise WeightsError(LOADED)
    return _load(source, functools.partial(agree, scale=scale, shift=shift), progress)


def reload_reference(
    origin: Origin, latent: LatentSpec, weights: str | Path | None = None, progress: Progress = silent
) -> Reference:
    """Load the reference that ``origin`` names again.

    latent: the latent contract with which it was exported.
    weights: where its weights are now, if not where ``origin`` says. The caller checks that they are the same weights.

    Raises the errors of ``load_source``, and WeightsError where the reference was made of a user's own modules, or
    where its weights have changed since.
    """

    def exported_contract(*_: object) -> LatentSpec:
        return latent

    if origin.kind == "modules":
        raise WeightsError(
            "this VAE was made of PyTorch modules of your own"
            + (f", which no weights ({weights}) can stand for" if weights is not None else "")
            + "; pass them again: reference= of vaedeploy.verify_bundle, in Python"
        )
    if weights is not None:
        vae, other = (origin.preset, weights) if origin.preset else (weights, None)
        return _load(find_source(vae, other), exported_contract, progress)
    implied = (
        origin.preset is None or origin.kind == "package" or origin.location == get_preset(origin.preset).repository
    )
    if origin.kind in ("file", "folder") and not Path(origin.location).exists():
        raise WeightsError(
            f"the weights of this VAE, {origin.location}, are not there. Say where they are: --weights PATH"
        )
    source = find_source(origin.preset or Path(origin.location), None if implied else origin.location)
    if isinstance(source, OnHub):
        # Not the newest: a branch of the repository may have moved on since.
        source = dataclasses.replace(source, revision=origin.revision)
    reference = _load(source, exported_contract, progress)
    if reference.origin.sha256 != origin.sha256:
        raise WeightsError(
            f"the weights of {origin.location} have changed: sha256 was {origin.sha256}, is {reference.origin.sha256}. "
            "Export the VAE again"
        )
    return reference


Contract = Callable[[Sequence[Statement], Architecture, str], LatentSpec]
"""(statements, architecture, what messages call the VAE) -> the latent contract that holds."""


def _load(source: Source, contract: Contract, progress: Progress) -> Reference:
    if isinstance(source, Reference):
        return source
    found = download(source, progress) if isinstance(source, OnHub) else source
    with plain_torch():
        return _draw(found, contract) if isinstance(found, Seed) else _read(found, contract, progress)


def _draw(source: Seed, contract: Contract) -> Reference:
    from vaedeploy.source.network import build, random_tensors

    preset = source.preset
    plan = _Plan(preset.name, preset.config, f"preset {preset.name}", source.given, preset=preset)
    stating = random_tensors(preset.config, source.number, family_of(preset.config).contract_tensors)
    latent = contract(plan.statements(stating), preset.config, source.given)
    encoder, decoder = build(preset.config, random_tensors(preset.config, source.number))
    return Reference(
        encoder=encoder,
        decoder=decoder,
        latent=latent,
        name=plan.name,
        origin=Origin(kind="random", location=source.given, sha256=None, preset=preset.name),
        architecture=preset.config.class_name,
    )


def _read(found: Found, contract: Contract, progress: Progress) -> Reference:
    plan = _preset_plan(found.preset, found) if found.preset else _folder_plan(found) if found.folder else None
    sha256 = checkpoint.sha256_of(found.files)
    if found.own:
        _check_sha256(found.preset, found, sha256)
    contents = checkpoint.read_contents(found.files)
    tensors = checkpoint.select_vae(contents.tensors)
    if plan is None:
        plan, matched = _file_plan(found, tensors)
    else:
        matched = fit(tensors, plan.architecture)
    if matched.faults:
        raise WeightsError(_misfit(found, plan, tensors, matched))
    from vaedeploy.source.network import build, tensor_shapes

    shapes = {name: shape for name, shape in tensor_shapes(plan.architecture).items() if name in matched.sources}
    stating = {name: shapes.pop(name) for name in family_of(plan.architecture).contract_tensors & shapes.keys()}
    known_preset = preset_of_file(sha256)
    statements = plan.statements(load(tensors, matched, stating, found.where))
    if known_preset is not None and known_preset != found.preset:
        statements.append(
            preset_statement(known_preset, f"{found.where} (by its sha256 the file of preset {known_preset.name})")
        )
    stated = stated_model(contents.tensors, contents.metadata)
    # It contradicts a preset or a config, and never stands for one: VAEs are put into checkpoints of other models.
    if stated is not None and statements and not plan.architecture.differences(stated[0].config):
        statements.append(preset_statement(stated[0], f"{found.where} ({stated[1]})"))
    latent = contract(statements, plan.architecture, found.where)
    weights = load(tensors, matched, shapes, found.where, progress)
    encoder, decoder = build(plan.architecture, weights)
    # Weights that are not the preset's have another licence, which is known only if they are those of some preset.
    licensed = found.preset if found.own else known_preset
    return Reference(
        encoder=encoder,
        decoder=decoder,
        latent=latent,
        name=plan.name,
        origin=msgspec.structs.replace(found.origin, sha256=sha256),
        licence=licensed.licence if licensed is not None else None,
        architecture=plan.architecture.class_name,
    )


def _preset_plan(preset: Preset, found: Found) -> _Plan:
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
    return _Plan(preset.name, preset.config, title, str(found.config or found.where), raw, preset)


def _folder_plan(found: Found) -> _Plan:
    assert found.folder is not None
    if found.config is None:
        raise WeightsError(
            f"{found.file.parent} has no config.json to say which VAE it is. Give the weights file itself "
            f"(--vae {found.file}), or a preset with the folder (--vae PRESET --weights {found.folder})"
        )
    config = read_config(found.config)
    folder = found.folder.resolve()
    name = folder.parent.name if folder.name in PIPELINE_FOLDERS else folder.name
    return _Plan(name or "vae", config.architecture, str(found.config), str(found.config), config.raw)


def _misfit(found: Found, plan: _Plan, tensors: Mapping[str, Stored], matched: Fit) -> str:
    """What is wrong with tensors that do not fit, and what would: a message."""
    if not matched.found:
        return _no_vae(found, tensors)
    fitting = [name for name, architecture in architectures().items() if not fit(tensors, architecture).faults]
    if fitting:
        known = ", ".join(preset.name for preset in presets().values() if preset.architecture == fitting[0])
        advice = f"They are of architecture {fitting[0]}: give the weights alone (--vae PATH)" + (
            f", or the preset that they belong to: {known}" if known else ""
        )
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
    return (
        f"{found.where} holds no VAE that can be loaded: "
        + (f"it looks like {kind}; " if kind else "")
        + f"{names}. Give the VAE's own weights, or a checkpoint with them in it"
    )


def _file_plan(found: Found, tensors: Mapping[str, Stored]) -> tuple[_Plan, Fit]:
    """The plan for a file without a config, and its fit: the known architecture that its tensors match.

    Raises WeightsError where they match none.
    """
    fits = {name: fit(tensors, architecture) for name, architecture in architectures().items()}
    nearest = min(fits, key=lambda name: fits[name].faults)
    if not fits[nearest].found:
        raise WeightsError(_no_vae(found, tensors))
    if fits[nearest].faults:
        raise WeightsError(
            f"{found.where} fits none of the known architectures ({', '.join(fits)}). "
            f"The nearest is {nearest}: {fits[nearest].complaint()}. "
            "A VAE of another shape loads from a diffusers folder with its config.json"
        )
    return _Plan(found.file.stem, architectures()[nearest], f"architecture {nearest}", found.where), fits[nearest]


def _check_sha256(preset: Preset | None, found: Found, sha256: str) -> None:
    if preset is None or preset.sha256 in (None, sha256):
        return
    # In the hub's cache the path is a link. With only the link deleted, the client would link the same file again.
    file = found.file.resolve()
    raise WeightsError(
        f"{found.where} has sha256 {sha256}, but preset {preset.name} is known by {preset.sha256}: the file was "
        f"changed or damaged. Delete {file} and run the command again; or, if you trust it, copy it and give the copy: "
        "--weights PATH"
    )
