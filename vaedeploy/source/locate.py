"""Where a VAE's weights are: in the package, in a folder or a file, on the hub, or nowhere but in a seed.

``find_source`` answers without PyTorch, without the network and without reading tensors, so what cannot be loaded is
refused before anything slow begins. ``download`` turns what is on the hub into a file on this disk.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vaedeploy.errors import WeightsError
from vaedeploy.source import checkpoint, hub
from vaedeploy.source.preset import Preset, get_preset, presets
from vaedeploy.system.progress import Progress
from vaedeploy.values.origin import Origin
from vaedeploy.values.reference import Reference

FOLDER_FILES = tuple(
    f"diffusion_pytorch_model{variant}" for variant in (".safetensors", ".bin", ".fp16.safetensors", ".fp16.bin")
)
"""Names of the weights in a diffusers folder, the most precise first."""

REPOSITORY_FILES = tuple(folder + name for folder in ("", "vae/") for name in FOLDER_FILES[:2])
"""Where a hub repository holds a VAE's weights: it is one of a VAE, or one of a pipeline with a VAE in it."""

REPOSITORY_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

FILE_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")

LOADED = "a Reference has its weights and its latent contract already; give no weights, scale or shift"

WEIGHTS_TAKES = "a hub repository (owner/name), a diffusers folder, a .safetensors or .ckpt file, or random:SEED"


RANDOM = "random:"


@dataclass(frozen=True)
class Found:
    """Weights on this disk, not read yet.

    where: what messages call them. preset: whose architecture they are loaded into; None: their own.
    folder: the diffusers folder, as it was given. config: its config.json, if there is one.
    own: they are the preset's own weights, so its sha256 must be theirs.
    """

    origin: Origin
    where: str
    file: Path
    preset: Preset | None = None
    folder: Path | None = None
    config: Path | None = None
    own: bool = False


@dataclass(frozen=True)
class OnHub:
    """Weights in a hub repository, not downloaded yet."""

    preset: Preset
    repository: str


@dataclass(frozen=True)
class Seed:
    """Weights drawn at random for a preset's architecture. given: ``random:NUMBER``."""

    preset: Preset
    given: str
    number: int


Source = Reference | Found | OnHub | Seed
"""Where a VAE comes from; a ``Reference`` is loaded already."""


def find_source(vae: str | Path | Reference, weights: str | Path | None = None) -> Source:
    """Resolve ``vae`` and ``weights``, as ``load_reference`` takes them, without PyTorch and without the network.

    Raises UnknownPresetError and WeightsError, each with what to do.
    """
    if isinstance(vae, Reference):
        if weights is not None:
            raise WeightsError(LOADED)
        return vae
    preset = _preset_named(vae)
    if preset is None:
        if weights is not None:
            raise WeightsError(
                f"--weights puts other weights into a preset's architecture, and --vae {vae} is not a preset. "
                f"Give the weights alone (--vae {weights}), or a preset with them; vaedeploy presets lists them"
            )
        return _find_path(Path(vae), None)
    if weights is None:
        return OnHub(preset, preset.repository) if preset.repository else _find_packaged(preset)
    given = str(weights)
    if given.startswith(RANDOM):
        return Seed(preset, given, _seed(given))
    if Path(weights).exists():
        return _find_path(Path(weights), preset)
    if isinstance(weights, str) and REPOSITORY_NAME.fullmatch(given) and not given.endswith(FILE_SUFFIXES):
        return OnHub(preset, given)
    raise WeightsError(f"there is no file or folder {given}. --weights takes {WEIGHTS_TAKES}")


def download(source: OnHub, progress: Progress) -> Found:
    """Fetch weights from the hub, or take them from its cache. Raises DownloadError and WeightsError."""
    preset, repository = source.preset, source.repository
    own = repository == preset.repository
    files = (preset.file,) if own else REPOSITORY_FILES
    fetched = hub.fetch(repository, files, revision=preset.revision if own else None, progress=progress)
    # A known hash says more than a config could, and a file that is not diffusers' own has none beside it.
    has_config = not (own and preset.sha256) and Path(fetched.file).name in FOLDER_FILES
    config = hub.fetch_beside(fetched, repository, "config.json") if has_config else None
    origin = Origin(kind="hub", location=repository, sha256=None, preset=preset.name, revision=fetched.revision)
    return Found(origin, f"{repository}/{fetched.file}", fetched.path, preset, config=config, own=own)


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
    return get_preset(vae)  # which raises, naming the nearest ones


def _seed(given: str) -> int:
    """The number in ``random:SEED``."""
    seed = given.removeprefix(RANDOM)
    if not (seed.isascii() and seed.isdecimal() and int(seed) < 2**63):
        raise WeightsError(f"--weights {given}: the seed must be a whole number from 0 to 2^63 - 1, as in random:0")
    return int(seed)


def _find_packaged(preset: Preset) -> Found:
    """The weights that the package carries."""
    file = preset.packaged_file
    if file is None or not file.exists():
        raise WeightsError(
            f"this installation carries no weights for preset {preset.name} ({file} is missing). "
            "Install vaedeploy again, or give other weights: --weights PATH"
        )
    origin = Origin(kind="package", location=preset.name, sha256=None, preset=preset.name)
    return Found(origin, f"preset {preset.name}", file, preset, own=True)


def _find_path(path: Path, preset: Preset | None) -> Found:
    """The weights in a diffusers folder, which may be a pipeline's with a VAE in it, or a file."""
    location, named = str(path.resolve()), preset.name if preset else None
    if not path.is_dir():
        checkpoint.check_kind(path)
        origin = Origin(kind="file", location=location, sha256=None, preset=named)
        return Found(origin, str(path), path, preset)
    folder = path / "vae" if not (path / "config.json").exists() and (path / "vae").is_dir() else path
    file = next((folder / name for name in FOLDER_FILES if (folder / name).exists()), None)
    if file is None:
        raise WeightsError(
            f"{folder} holds no {' or '.join(FOLDER_FILES[:2])}. Give a diffusers folder, or the weights file itself"
        )
    checkpoint.check_kind(file)
    config = folder / "config.json"
    origin = Origin(kind="folder", location=location, sha256=None, preset=named)
    return Found(origin, str(file), file, preset, path, config if config.exists() else None)
