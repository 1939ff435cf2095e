"""Weights from the hub, a folder, a single file or a seed -> ``Reference``: a VAE as two PyTorch modules."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vaedeploy.errors import UnknownPresetError, WeightsError
from vaedeploy.source import checkpoint
from vaedeploy.source.autoencoder_kl.config import Architecture
from vaedeploy.source.contract import CLASS_NAME, Statement, agree, preset_statement, read_config
from vaedeploy.source.fit import fit, load
from vaedeploy.source.locate import FILE_SUFFIXES, Found, find_path, find_weights
from vaedeploy.source.preset import Preset, architectures, get_preset, preset_of_file, presets
from vaedeploy.system.progress import Progress, silent
from vaedeploy.values.latent import LatentSpec
from vaedeploy.values.origin import Origin
from vaedeploy.values.reference import Reference

__all__ = ["Reference", "check_source", "load_reference", "reload_reference"]

RANDOM = "random:"


@dataclass(frozen=True)
class _Plan:
    """What the weights are to become.

    title: what messages call the architecture.
    statements: who states the latent contract.
    preset: the preset whose architecture and contract are used, if any.
    """

    name: str
    architecture: Architecture
    title: str
    statements: tuple[Statement, ...]
    preset: Preset | None = None


def load_reference(
    vae: str | Path,
    weights: str | Path | None = None,
    *,
    scale: float | None = None,
    shift: float | None = None,
    progress: Progress = silent,
) -> Reference:
    """Load a VAE as PyTorch modules: float32, eval mode, no gradients.

    vae: a preset's name, or a path to a VAE of its own: a diffusers folder, or a weights file of a known architecture.
    weights: others for a preset's architecture: a hub repository, a diffusers folder, a file, or ``random:SEED``.
    scale, shift: the latent contract, where nothing states it, or which of two statements that differ holds.
    progress: is told how far loading is, see ``Progress``.

    Raises UnknownPresetError, WeightsError, ContractError (also for a scale or shift other than what the preset or the
    model's own config states) and DownloadError, each with what to do.
    """
    return _find(vae, weights, functools.partial(agree, scale=scale, shift=shift), progress)


def check_source(vae: str | Path, weights: str | Path | None = None) -> None:
    """Raise what ``load_reference`` would raise, as far as that can be told at once: without PyTorch and the hub."""
    preset = _preset_named(vae)
    if preset is None:
        given = find_path(_path_alone(vae, weights), preset=None).file
    elif weights is None or not Path(weights).exists():
        if weights is not None and str(weights).startswith(RANDOM):
            _seed(str(weights))
        return
    else:
        given = find_path(Path(weights), preset.name).file
    checkpoint.check_kind(given)


def reload_reference(
    origin: Origin, latent: LatentSpec, weights: str | Path | None = None, progress: Progress = silent
) -> Reference:
    """The reference that ``origin`` names, with the latent contract that it was exported with.

    weights: where its weights are now, if not where ``origin`` says; that they are the same is left to the caller.

    Raises WeightsError where it was made of a user's own modules, or where its weights have changed since.
    """

    def kept(*_: object) -> LatentSpec:
        return latent

    if origin.kind == "modules":
        raise WeightsError(
            "this VAE was made of PyTorch modules of your own"
            + (f", which no weights ({weights}) can stand for" if weights is not None else "")
            + "; pass them again: reference= of vaedeploy.verify_bundle, in Python"
        )
    if weights is not None:
        vae, source = (origin.preset, weights) if origin.preset else (weights, None)
        return _find(vae, source, kept, progress)
    own = origin.preset is None or origin.kind == "package" or origin.location == get_preset(origin.preset).repository
    source = None if own else origin.location
    reference = _find(origin.preset or origin.location, source, kept, progress)
    if reference.origin.sha256 != origin.sha256:
        raise WeightsError(
            f"the weights of {origin.location} have changed: sha256 was {origin.sha256}, is {reference.origin.sha256}. "
            "Export the VAE again"
        )
    return reference


Contract = Callable[[Sequence[Statement], Architecture, str], LatentSpec]
"""Who states what, the architecture, and what messages call the VAE -> the latent contract that holds."""


def _find(vae: str | Path, weights: str | Path | None, contract: Contract, progress: Progress) -> Reference:
    preset = _preset_named(vae)
    if preset is not None and str(weights).startswith(RANDOM):
        return _draw(preset, str(weights), contract)
    if preset is not None:
        found = find_weights(preset, weights, progress)
        return _load(found, _preset_plan(preset, found), contract, progress)
    path = _path_alone(vae, weights)
    found = find_path(path, preset=None)
    plan = _folder_plan(path, found) if path.is_dir() else _file_plan(found)
    return _load(found, plan, contract, progress)


def _path_alone(vae: str | Path, weights: str | Path | None) -> Path:
    """The path that ``vae`` is, which takes no other weights."""
    if weights is not None:
        raise WeightsError(
            f"--weights puts other weights into a preset's architecture, and --vae {vae} is not a preset. "
            f"Give the weights alone (--vae {weights}), or a preset with them; vaedeploy presets lists them"
        )
    return Path(vae)


def _preset_named(vae: str | Path) -> Preset | None:
    """The preset that ``vae`` names, or None where it is a path. A preset wins over a folder of its name."""
    if not isinstance(vae, str | Path):
        raise WeightsError(
            f"the VAE is of type {type(vae).__name__}; give a preset's name, a path, or two modules of your own as "
            "vaedeploy.Reference(encoder=..., decoder=..., latent=vaedeploy.LatentSpec(...))"
        )
    if isinstance(vae, str) and vae in presets():
        return get_preset(vae)
    if Path(vae).exists():
        return None
    if isinstance(vae, Path) or "/" in vae or "\\" in vae or vae.endswith(FILE_SUFFIXES):
        raise WeightsError(
            f"there is no file or folder {vae}. --vae takes a preset's name, a diffusers folder or a weights file; "
            "a hub repository goes with a preset: --vae PRESET --weights owner/name"
        )
    raise _unknown(vae)


def _unknown(vae: str) -> UnknownPresetError:
    try:
        get_preset(vae)
    except UnknownPresetError as error:
        return error
    raise AssertionError(f"{vae} is a preset")


def _seed(given: str) -> int:
    """The number in ``random:SEED``."""
    seed = given.removeprefix(RANDOM)
    if not (seed.isascii() and seed.isdecimal() and int(seed) < 2**63):
        raise WeightsError(f"--weights {given}: the seed must be a whole number from 0 to 2^63 - 1, as in random:0")
    return int(seed)


def _draw(preset: Preset, given: str, contract: Contract) -> Reference:
    seed, latent = _seed(given), contract([preset_statement(preset)], preset.config, given)

    from vaedeploy.source.autoencoder_kl.modules import build, random_tensors

    encoder, decoder = build(preset.config, random_tensors(preset.config, seed))
    return Reference(
        encoder=encoder,
        decoder=decoder,
        latent=latent,
        name=preset.name,
        origin=Origin(kind="random", location=given, sha256=None, preset=preset.name),
        architecture=CLASS_NAME,
    )


def _preset_plan(preset: Preset, found: Found) -> _Plan:
    title = f"preset {preset.name} (architecture {preset.architecture})"
    statements = [preset_statement(preset)]
    if found.config is not None:
        config = read_config(found.config)
        differing = preset.config.differences(config.architecture)
        if differing:
            told = "; ".join(
                f"{n} {getattr(config.architecture, n)}, not {getattr(preset.config, n)}" for n in differing
            )
            raise WeightsError(
                f"{found.where} is of another architecture than {title}: its config.json has {told}. "
                "Give the preset that it belongs to (vaedeploy presets), or the folder itself: --vae PATH"
            )
        statements.append(config.statement)
    return _Plan(preset.name, preset.config, title, tuple(statements), preset)


def _folder_plan(path: Path, found: Found) -> _Plan:
    if found.config is None:
        raise WeightsError(
            f"{found.file.parent} has no config.json to say which VAE it is. Give the weights file itself "
            f"(--vae {found.file}), or a preset with the folder (--vae PRESET --weights {path})"
        )
    config = read_config(found.config)
    folder = path.resolve()
    name = folder.parent.name if folder.name == "vae" else folder.name
    return _Plan(name or "vae", config.architecture, str(found.config), (config.statement,))


def _file_plan(found: Found) -> _Plan:
    """A lone file's architecture is the known one that its tensors fit."""
    tensors = checkpoint.select_vae(checkpoint.read_tensors(found.file))
    fits = {name: fit(tensors, architecture) for name, architecture in architectures().items()}
    nearest = min(fits, key=lambda name: fits[name].faults)
    if fits[nearest].faults:
        raise WeightsError(
            f"{found.where} fits none of the known architectures ({', '.join(fits)}). "
            f"The nearest is {nearest}: {fits[nearest].complaint()}. "
            "A VAE of another shape loads from a diffusers folder with its config.json"
        )
    return _Plan(found.file.stem, architectures()[nearest], f"architecture {nearest}", ())


def _load(found: Found, plan: _Plan, contract: Contract, progress: Progress) -> Reference:
    sha256 = checkpoint.sha256_of(found.file)
    if found.own:
        _check_sha256(plan.preset, found, sha256)
    known = preset_of_file(sha256)
    statements = list(plan.statements)
    if known is not None and known != plan.preset:
        statements.append(preset_statement(known, f"{found.where} (by its sha256 the file of preset {known.name})"))
    latent = contract(statements, plan.architecture, found.where)
    tensors = checkpoint.select_vae(checkpoint.read_tensors(found.file))
    matched = fit(tensors, plan.architecture)
    if matched.faults:
        raise WeightsError(
            f"{found.where} does not fit {plan.title}: {matched.complaint()}. "
            "Give weights of this architecture, or the preset that they belong to: vaedeploy presets"
        )

    from vaedeploy.source.autoencoder_kl.modules import build

    weights = load(tensors, matched, plan.architecture, found.where, progress)
    encoder, decoder = build(plan.architecture, weights)
    # Other weights have a licence of their own, which is not known here.
    licensed = plan.preset if found.own else known
    return Reference(
        encoder=encoder,
        decoder=decoder,
        latent=latent,
        name=plan.name,
        origin=msgspec.structs.replace(found.origin, sha256=sha256),
        licence=licensed.licence if licensed is not None else None,
        architecture=CLASS_NAME,
    )


def _check_sha256(preset: Preset | None, found: Found, sha256: str) -> None:
    if preset is None or preset.sha256 in (None, sha256):
        return
    # The hub's cache links to its files; with the link alone deleted, the same file would be linked again.
    file = found.file.resolve()
    raise WeightsError(
        f"{found.where} has sha256 {sha256}, but preset {preset.name} is known by {preset.sha256}: the file was "
        f"changed or damaged. Delete {file} and run the command again; or, if you trust it, copy it and give the copy: "
        "--weights PATH"
    )
