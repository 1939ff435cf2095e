"""Weights from the package, the hub, a folder, a file or a seed -> ``Reference``: a VAE as two PyTorch modules."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from vaedeploy.errors import WeightsError
from vaedeploy.source import checkpoint
from vaedeploy.source.contract import agree, preset_statement
from vaedeploy.source.families import family_of
from vaedeploy.source.family import Architecture
from vaedeploy.source.fit import fit, load
from vaedeploy.source.locate import LOADED, Found, OnHub, Seed, Source, find_source, name_in
from vaedeploy.source.plan import Plan, config_plan, file_plan, misfit, preset_plan
from vaedeploy.source.preset import Preset, get_preset, preset_of_file
from vaedeploy.source.recognise import stated_model
from vaedeploy.source.repository import download
from vaedeploy.source.statement import Statement
from vaedeploy.system.places import exists
from vaedeploy.system.progress import Progress, silent
from vaedeploy.system.torch_state import plain_torch
from vaedeploy.values.latent import LatentSpec
from vaedeploy.values.origin import Origin
from vaedeploy.values.presets import preset_names
from vaedeploy.values.reference import Reference

IMPORTING = "Loading PyTorch and diffusers"

__all__ = ["find_source", "load_reference", "load_source", "reload_reference"]


def load_reference(
    vae: str | Path,
    weights: str | Path | None = None,
    *,
    scale: float | Sequence[float] | None = None,
    shift: float | Sequence[float] | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    progress: Progress = silent,
) -> Reference:
    """Load a VAE as PyTorch modules: float32, eval mode, no gradients.

    vae: a preset's name; a hub repository that holds a VAE with its config.json, "owner/name" or "owner/name@revision";
        or the path of a VAE: a diffusers folder, or a weights file of a known architecture.
    weights: other weights: for a preset's architecture, a hub repository, a diffusers folder, a file, or
        ``random:SEED``; for the architecture of the folder ``vae``, a file or folder.
    scale, shift: the latent contract where nothing states it; where two statements differ, the one that holds. One
        number, or one for each channel.
    revision: the branch, tag or commit of the hub repository; its main branch by default.
    subfolder: the folder of the VAE in a repository or folder; by default its top, or its "vae", "movq" or "vqgan".
    progress: called as loading advances, see ``Progress``.

    Raises UnknownPresetError, WeightsError, ContractError (also for a scale or shift other than the one that the preset
    or the model's config states) and DownloadError, whose messages say what to do.
    """
    source = find_source(vae, weights, revision=revision, subfolder=subfolder)
    return load_source(source, scale=scale, shift=shift, progress=progress)


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

    latent: the latent contract with which it was exported. weights: where its weights are now, if not where ``origin``
    says; a preset's name stands for the preset's own weights, unless there is a file or folder of that name. The caller
    checks that they are the same weights.

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
        of_preset = weights in preset_names() and not exists(weights)
        vae = None if of_preset else origin.preset or (Path(origin.config) if origin.config else None)
        source = find_source(vae, weights) if vae is not None else find_source(weights)
        return _load(source, exported_contract, progress)
    for place in (origin.location if origin.kind in ("file", "folder") else None, origin.config):
        if place is not None and not exists(place):
            raise WeightsError(f"the weights of this VAE, {place}, are not there. Say where they are: --weights PATH")
    source = _source_of(origin)
    reference = _load(source, exported_contract, progress)
    if reference.origin.sha256 != origin.sha256:
        raise WeightsError(
            f"the weights of {origin.location} have changed: sha256 was {origin.sha256}, is {reference.origin.sha256}. "
            "Export the VAE again"
        )
    return reference


def _source_of(origin: Origin) -> Source:
    """What ``find_source`` found when the reference was made."""
    preset = None if origin.preset is None else get_preset(origin.preset)
    if origin.kind == "hub":
        # Not the newest: a branch of the repository may have moved on since.
        return OnHub(preset, origin.location, origin.revision, origin.subfolder)
    if origin.config is not None:
        return find_source(Path(origin.config), origin.location, subfolder=origin.subfolder)
    if preset is None:
        return find_source(Path(origin.location), subfolder=origin.subfolder)
    weights = None if origin.kind == "package" else origin.location
    return find_source(preset.name, weights, subfolder=origin.subfolder)


Contract = Callable[[Sequence[Statement], Architecture, str], LatentSpec]
"""(statements, architecture, what messages call the VAE) -> the latent contract that holds."""


def _load(source: Source, contract: Contract, progress: Progress) -> Reference:
    if isinstance(source, Reference):
        return source
    found = download(source, progress) if isinstance(source, OnHub) else source
    if "torch" not in sys.modules:
        progress(IMPORTING, 0, 1)
        # Both take seconds, and half a minute on a busy machine.
        import diffusers.models.autoencoders  # noqa: F401
        import torch  # noqa: F401

        progress(IMPORTING, 1, 1)
    with plain_torch():
        return _draw(found, contract) if isinstance(found, Seed) else _read(found, contract, progress)


def _draw(source: Seed, contract: Contract) -> Reference:
    from vaedeploy.source.network import build, random_tensors

    preset = source.preset
    plan = Plan(source.name, preset.config, f"preset {preset.name}", source.given, preset=preset)
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
    found = _with_other_half(found)
    plan: Plan | None = None
    if found.preset is not None:
        plan = preset_plan(found.preset, found)
    elif found.folder is not None or found.config is not None:
        plan = config_plan(found)
    sha256 = checkpoint.sha256_of(found.files)
    if found.own:
        _check_sha256(found.preset, found, sha256)
    contents = checkpoint.read_contents(found.files)
    tensors = checkpoint.select_vae(contents.tensors)
    if plan is None:
        plan, matched = file_plan(found, tensors)
    else:
        matched = fit(tensors, plan.architecture)
    if matched.faults:
        raise WeightsError(misfit(found, plan, tensors, matched))
    from vaedeploy.source.network import build, tensor_shapes

    shapes = {name: shape for name, shape in tensor_shapes(plan.architecture).items() if name in matched.sources}
    stating = {name: shapes.pop(name) for name in family_of(plan.architecture).contract_tensors & shapes.keys()}
    known_preset = preset_of_file(sha256)
    statements = plan.statements(load(matched, stating, found.where))
    if known_preset is not None and known_preset != found.preset:
        statements.append(
            preset_statement(known_preset, f"{found.where} (by its sha256 the file of preset {known_preset.name})")
        )
    stated = stated_model(contents.tensors, contents.metadata)
    # It may contradict a preset or a config, but never replaces one: VAEs are put into checkpoints of other models.
    if stated is not None and statements and not plan.architecture.differences(stated[0].config):
        statements.append(preset_statement(stated[0], f"{found.where} ({stated[1]})"))
    latent = contract(statements, plan.architecture, plan.by)
    weights = load(matched, shapes, found.where, progress)
    encoder, decoder = build(plan.architecture, weights)
    # Weights other than the preset's have another licence, which is known only if they are some preset's.
    licensed = found.preset if found.own else known_preset
    return Reference(
        encoder=encoder,
        decoder=decoder,
        latent=latent,
        name=plan.name if known_preset is None or known_preset != found.preset else known_preset.name,
        origin=msgspec.structs.replace(found.origin, sha256=sha256),
        licence=licensed.licence if licensed is not None else None,
        architecture=plan.architecture.class_name,
    )


def _with_other_half(found: Found) -> Found:
    """``found``, or both files if it is one file with half of a VAE."""
    half = checkpoint.lone_half(found.file) if len(found.files) == 1 else None
    if half is None:
        return found
    if not half.other.exists():
        raise WeightsError(
            f"{found.where} holds the {half.part} alone, and {half.other.name} is not beside it. Put both files into "
            "one folder"
        )
    # The order, and so the sha256, is the same whichever file was named.
    name = half.name or name_in(found.file.resolve().parent)
    return dataclasses.replace(found, name=name, files=tuple(sorted((found.file, half.other))))


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
