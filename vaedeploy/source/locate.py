"""Where a VAE's weights come from: the package, a folder, a file, the hub, or a random seed.

``find_source`` finds out without PyTorch, without the network and without reading tensors, so that what cannot be
loaded is refused before anything slow begins. ``repository`` fetches what is on the hub.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vaedeploy.errors import WeightsError
from vaedeploy.source import checkpoint
from vaedeploy.source.folder import STEM, find_weights
from vaedeploy.source.pair import half_named
from vaedeploy.source.preset import Preset, get_preset, presets, unknown_preset
from vaedeploy.system.hub import REPOSITORY_NAME
from vaedeploy.system.missing import missing
from vaedeploy.system.places import exists, is_folder
from vaedeploy.system.text import shown, whole_number
from vaedeploy.values.origin import WEIGHTS_SUFFIXES, Origin
from vaedeploy.values.reference import Reference

SUBFOLDERS = ("vae", "movq", "vqgan")
"""Folders in which diffusers' pipelines keep their VAE: nearly all, Kandinsky's, and those of Stable Cascade."""

LOADED = "a Reference already has weights and a latent contract; leave out weights, scale and shift"

WEIGHTS_TAKES = (
    "a hub repository (owner/name or owner/name@revision), a diffusers folder, a .safetensors or .ckpt file, or "
    "random:SEED"
)

RANDOM = "random:"


@dataclass(frozen=True)
class Found:
    """Weights on this disk that have not been read yet. where: what messages call them. name: what a bundle of them is
    called, unless they are a preset's own.
    files: the weights file, or its parts.
    preset: the preset whose architecture they are loaded into; None where they determine the architecture themselves.
    folder: the diffusers folder, as the user gave it; None where its config.json is not needed.
    config: the config.json beside the weights, if there is one.
    own: whether they are the preset's own weights, whose sha256 must be the one that the preset states.
    """

    origin: Origin
    where: str
    name: str
    files: tuple[Path, ...]
    preset: Preset | None = None
    folder: Path | None = None
    config: Path | None = None
    own: bool = False

    @property
    def file(self) -> Path:
        """The weights file, or its first part."""
        return self.files[0]


@dataclass(frozen=True)
class OnHub:
    """Weights in a hub repository that have not been downloaded yet.

    preset: None where the repository's config.json determines the architecture. revision: None for the preset's, or the
    newest. subfolder: the only folder to search; None for all that may hold a VAE.
    """

    preset: Preset | None
    repository: str
    revision: str | None = None
    subfolder: str | None = None


@dataclass(frozen=True)
class Seed:
    """Weights to be drawn at random for a preset's architecture. given: ``random:NUMBER``, as the user wrote it."""

    preset: Preset
    given: str
    number: int

    @property
    def name(self) -> str:
        """What a bundle of them is called."""
        return f"{self.preset.name}-random-{self.number}"


Source = Reference | Found | OnHub | Seed
"""Where a VAE comes from. A ``Reference`` is loaded already."""


def find_source(
    vae: str | Path | Reference,
    weights: str | Path | None = None,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
) -> Source:
    """Find what ``vae`` and ``weights`` name, without PyTorch and without the network.

    vae, weights, revision, subfolder: as ``load_reference`` takes them. Raises UnknownPresetError and WeightsError,
    whose messages say what to do.
    """
    if isinstance(vae, Reference):
        if (weights, revision, subfolder) != (None, None, None):
            raise WeightsError(LOADED)
        return vae
    if subfolder is not None and (Path(subfolder).is_absolute() or ".." in Path(subfolder).parts):
        raise WeightsError(f"--subfolder is {subfolder}; it must be a folder within the repository, such as vae")
    source = _find(vae, weights, subfolder)
    if isinstance(source, OnHub):
        if revision is not None and source.revision not in (None, revision):
            raise WeightsError(
                f"the revision of {source.repository} is given twice: @{source.revision} and --revision {revision}. "
                "Give one of them"
            )
        return dataclasses.replace(source, revision=source.revision or revision)
    what = source.given if isinstance(source, Seed) else source.where
    if revision is not None:
        raise WeightsError(f"--revision {revision} is for hub repositories, and {what} is none. Leave it out")
    if subfolder is not None and (isinstance(source, Seed) or source.origin.subfolder is None):
        raise WeightsError(f"--subfolder {subfolder} is for folders and hub repositories, and {what} is neither")
    return source


def known_name(source: Source) -> str | None:
    """The name of the VAE at ``source``; None where only its weights tell it."""
    if isinstance(source, Reference | Seed):
        return source.name
    if isinstance(source, Found):
        if source.own and source.preset is not None:
            return source.preset.name
        described = source.preset is None and source.folder is not None and half_named(source.file) is None
        return source.name if described else None
    if source.preset is None:
        return source.repository.split("/")[1]
    asked_own = source.repository == source.preset.repository and (source.revision, source.subfolder) == (None, None)
    return source.preset.name if asked_own else None


def _find(vae: str | Path, weights: str | Path | None, subfolder: str | None) -> Found | OnHub | Seed:
    preset = _preset_named(vae)
    if preset is None:
        if weights is not None:
            return _with_config(vae, weights, subfolder)
        named = None if exists(vae) else _repository(vae)
        return OnHub(None, *named, subfolder) if named is not None else _find_path(Path(vae), None, subfolder)
    if weights is None:
        return OnHub(preset, preset.repository, None, subfolder) if preset.repository else _find_packaged(preset)
    given = str(weights)
    if given.startswith(RANDOM):
        return Seed(preset, given, _seed(given))
    if exists(weights):
        return _find_path(Path(weights), preset, subfolder)
    if (named := _repository(weights)) is not None:
        return OnHub(preset, *named, subfolder)
    raise WeightsError(f"{missing('file or folder', given)}. --weights takes {WEIGHTS_TAKES}")


def _with_config(vae: str | Path, weights: str | Path, subfolder: str | None) -> Found:
    """The weights at ``weights`` for the architecture that the config.json in the folder ``vae`` describes."""
    folder = _vae_folder(Path(vae), subfolder) if is_folder(vae) else None
    if folder is None or not (folder / "config.json").exists():
        raise WeightsError(
            "--weights puts other weights into the architecture of a preset or of a folder with a config.json, and "
            f"--vae {vae} is neither. Give the weights alone (--vae {weights}), or a preset with them; "
            "vaedeploy presets lists them"
        )
    if not exists(weights):
        raise WeightsError(
            f"{missing('file or folder', weights)}. With --vae {vae}, --weights takes a diffusers folder, or a "
            ".safetensors or .ckpt file"
        )
    found = _find_path(Path(weights), None, None)
    origin = msgspec.structs.replace(found.origin, subfolder=subfolder, config=str(Path(vae).resolve()))
    return dataclasses.replace(found, origin=origin, folder=folder, config=folder / "config.json")


def _repository(given: str | Path) -> tuple[str, str | None] | None:
    """(name, revision) of the hub repository that ``given`` names; None where it cannot name one."""
    match = REPOSITORY_NAME.fullmatch(given) if isinstance(given, str) else None
    if match is None or match["name"].endswith(WEIGHTS_SUFFIXES):
        return None
    return match["name"], match["revision"]


def _preset_named(vae: str | Path) -> Preset | None:
    """The preset that ``vae`` names, or None where it is a path. A preset wins over a folder of its name."""
    if not isinstance(vae, str | Path):
        raise WeightsError(_no_name(vae))
    if isinstance(vae, str) and vae in presets():
        return get_preset(vae)
    if exists(vae) or _repository(vae) is not None:
        return None
    if isinstance(vae, Path) or "/" in vae or "\\" in vae or vae.endswith(WEIGHTS_SUFFIXES):
        raise WeightsError(
            f"{missing('file or folder', vae)}. A VAE is a preset's name, a hub repository (owner/name or "
            "owner/name@revision), a diffusers folder or a weights file"
        )
    raise unknown_preset(vae, ", and there is no file or folder of that name")


def _no_name(vae: object) -> str:
    """A message: what to give instead of ``vae``, which is neither a name nor a path."""
    if hasattr(vae, "save_pretrained"):
        return (
            f"the VAE is an object, of type {type(vae).__name__}; save it with .save_pretrained(FOLDER), and give that "
            "folder"
        )
    return (
        f"the VAE is of type {type(vae).__name__}; give a preset's name, a path, or two modules of your own as "
        "vaedeploy.Reference(encoder=..., decoder=..., latent=vaedeploy.LatentSpec(...))"
    )


def _seed(given: str) -> int:
    """The number in ``random:SEED``. Raises WeightsError for anything but a whole number from 0 to 2^63 - 1."""
    seed = whole_number(given.removeprefix(RANDOM))
    if seed is None or seed >= 2**63:
        raise WeightsError(
            f"--weights {shown(given)}: the seed must be a whole number from 0 to 2^63 - 1, as in random:0"
        )
    return seed


def _find_packaged(preset: Preset) -> Found:
    """The weights of a preset that the package carries."""
    file = preset.packaged_file
    if file is None or not file.exists():
        raise WeightsError(
            f"this installation carries no weights for preset {preset.name} ({file} is missing). "
            "Install vaedeploy again, or give other weights: --weights PATH"
        )
    origin = Origin(kind="package", location=preset.name, sha256=None, preset=preset.name)
    return Found(origin, f"preset {preset.name}", preset.name, (file,), preset, own=True)


def _find_path(path: Path, preset: Preset | None, subfolder: str | None) -> Found:
    """The weights in a file or a diffusers folder, which may be a pipeline's with a VAE in it."""
    location, preset_name = str(path.resolve()), preset.name if preset else None
    if not path.is_dir():
        checkpoint.check_kind(path)
        origin = Origin(kind="file", location=location, sha256=None, preset=preset_name)
        # diffusers calls every file alike.
        name = path.stem if not path.stem.startswith(STEM) else name_in(path.resolve().parent)
        return Found(origin, str(path), name, (path,), preset)
    folder = _vae_folder(path, subfolder)
    weights = find_weights(folder)
    for file in weights.files:
        checkpoint.check_kind(file)
    config = folder / "config.json" if (folder / "config.json").exists() else None
    # Without a config, two files are recognised by their tensors, as one file is.
    described = path if config is not None or not weights.in_halves else None
    origin = Origin(kind="folder", location=location, sha256=None, preset=preset_name, subfolder=subfolder)
    name = name_in(folder.resolve())
    return Found(origin, str(weights.where), name, weights.files, preset, described, config)


def _vae_folder(path: Path, subfolder: str | None) -> Path:
    """The folder of the VAE in a diffusers folder: the folder itself, or one within a pipeline's."""
    if subfolder is not None:
        if not (path / subfolder).is_dir():
            raise WeightsError(f"{path} has no folder {subfolder}. Give one that it has: --subfolder NAME")
        return path / subfolder
    if (path / "config.json").exists():
        return path
    return next((path / name for name in SUBFOLDERS if (path / name).is_dir()), path)


def name_in(folder: Path) -> str:
    """The name of a VAE in ``folder``: the pipeline's folder's, if ``folder`` is the VAE's within one."""
    return (folder.parent if folder.name in SUBFOLDERS else folder).name or "vae"
