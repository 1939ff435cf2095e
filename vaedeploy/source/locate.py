"""Where a VAE's weights come from: the package, a folder or a file, the hub, or a random seed.

``find_source`` finds out without PyTorch, without the network and without reading tensors, so that what cannot be
loaded is refused before anything slow begins. ``download`` fetches weights from the hub into a file on this disk.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vaedeploy.errors import WeightsError
from vaedeploy.source import checkpoint, hub
from vaedeploy.source.folder import find_weights
from vaedeploy.source.preset import Preset, get_preset, presets
from vaedeploy.system.progress import Progress
from vaedeploy.values.origin import Origin
from vaedeploy.values.reference import Reference

FOLDER_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
"""Names of the weights file in a diffusers folder or repository, as long as it is of no variant and in one part."""

PIPELINE_FOLDERS = ("vae", "movq", "vqgan")
"""Names of a VAE's folder in a pipeline's: of most, of Kandinsky's and of Stable Cascade's."""

REPOSITORY_FILES = tuple(folder + name for folder in ("", "vae/") for name in FOLDER_FILES)
"""Paths of a VAE's weights in a hub repository, which holds either a VAE or a pipeline with a VAE in it."""

REPOSITORY_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

FILE_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")

LOADED = "a Reference already has weights and a latent contract; leave out weights, scale and shift"

WEIGHTS_TAKES = "a hub repository (owner/name), a diffusers folder, a .safetensors or .ckpt file, or random:SEED"

RANDOM = "random:"


@dataclass(frozen=True)
class Found:
    """Weights on this disk that have not been read yet.

    where: what messages call them.
    files: the weights file, or its parts.
    preset: the preset whose architecture they are loaded into; None where they determine the architecture themselves.
    folder: the diffusers folder, as the user gave it.
    config: the config.json beside the weights, if there is one.
    own: whether they are the preset's own weights, whose sha256 must be the one that the preset states.
    """

    origin: Origin
    where: str
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
    """Weights in a hub repository that have not been downloaded yet. revision: None for the preset's, or the newest."""

    preset: Preset
    repository: str
    revision: str | None = None


@dataclass(frozen=True)
class Seed:
    """Weights to be drawn at random for a preset's architecture. given: ``random:NUMBER``, as the user wrote it."""

    preset: Preset
    given: str
    number: int


Source = Reference | Found | OnHub | Seed
"""Where a VAE comes from. A ``Reference`` is loaded already."""


def find_source(vae: str | Path | Reference, weights: str | Path | None = None) -> Source:
    """Find what ``vae`` and ``weights`` name, without PyTorch and without the network.

    vae, weights: as ``load_reference`` takes them. Raises UnknownPresetError and WeightsError, whose messages say what
    to do.
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
    if _is_there(weights):
        return _find_path(Path(weights), preset)
    if isinstance(weights, str) and REPOSITORY_NAME.fullmatch(given) and not given.endswith(FILE_SUFFIXES):
        return OnHub(preset, given)
    raise WeightsError(f"there is no file or folder {given}. --weights takes {WEIGHTS_TAKES}")


def download(source: OnHub, progress: Progress) -> Found:
    """Fetch weights from the hub, or find them in its cache. Raises DownloadError and WeightsError."""
    preset, repository = source.preset, source.repository
    is_own = repository == preset.repository
    files = (preset.file,) if is_own else REPOSITORY_FILES
    revision = source.revision or (preset.revision if is_own else None)
    fetched = hub.fetch(repository, files, revision=revision, progress=progress)
    # A known sha256 identifies weights better than a config does. Only diffusers' own file names have a config beside
    # them.
    has_config = not (is_own and preset.sha256) and Path(fetched.file).name in FOLDER_FILES
    config = hub.fetch_beside(fetched, repository, "config.json") if has_config else None
    origin = Origin(kind="hub", location=repository, sha256=None, preset=preset.name, revision=fetched.revision)
    return Found(origin, f"{repository}/{fetched.file}", (fetched.path,), preset, config=config, own=is_own)


def _preset_named(vae: str | Path) -> Preset | None:
    """The preset that ``vae`` names, or None where it is a path. A preset wins over a folder of its name."""
    if not isinstance(vae, str | Path):
        raise WeightsError(
            f"the VAE is of type {type(vae).__name__}; give a preset's name, a path, or two modules of your own as "
            "vaedeploy.Reference(encoder=..., decoder=..., latent=vaedeploy.LatentSpec(...))"
        )
    if isinstance(vae, str) and vae in presets():
        return get_preset(vae)
    if _is_there(vae):
        return None
    if isinstance(vae, Path) or "/" in vae or "\\" in vae or vae.endswith(FILE_SUFFIXES):
        raise WeightsError(
            f"there is no file or folder {vae}. --vae takes a preset's name, a diffusers folder or a weights file; "
            "a hub repository goes with a preset: --vae PRESET --weights owner/name"
        )
    return get_preset(vae)  # raises UnknownPresetError, which names the nearest presets


def _is_there(path: str | Path) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # a name that is too long, or a folder that may not be read
        return False


def _seed(given: str) -> int:
    """The number in ``random:SEED``. Raises WeightsError for anything but a whole number from 0 to 2^63 - 1."""
    seed = given.removeprefix(RANDOM)
    if not (seed.isascii() and seed.isdecimal() and int(seed) < 2**63):
        raise WeightsError(f"--weights {given}: the seed must be a whole number from 0 to 2^63 - 1, as in random:0")
    return int(seed)


def _find_packaged(preset: Preset) -> Found:
    """The weights of a preset that the package carries."""
    file = preset.packaged_file
    if file is None or not file.exists():
        raise WeightsError(
            f"this installation carries no weights for preset {preset.name} ({file} is missing). "
            "Install vaedeploy again, or give other weights: --weights PATH"
        )
    origin = Origin(kind="package", location=preset.name, sha256=None, preset=preset.name)
    return Found(origin, f"preset {preset.name}", (file,), preset, own=True)


def _find_path(path: Path, preset: Preset | None) -> Found:
    """The weights in a file or a diffusers folder, which may be that of a pipeline with a VAE in it."""
    location, preset_name = str(path.resolve()), preset.name if preset else None
    if not path.is_dir():
        checkpoint.check_kind(path)
        origin = Origin(kind="file", location=location, sha256=None, preset=preset_name)
        return Found(origin, str(path), (path,), preset)
    inside = [path / name for name in PIPELINE_FOLDERS if (path / name).is_dir()]
    folder = inside[0] if inside and not (path / "config.json").exists() else path
    where, files = find_weights(folder)
    for file in files:
        checkpoint.check_kind(file)
    config = folder / "config.json"
    origin = Origin(kind="folder", location=location, sha256=None, preset=preset_name)
    return Found(origin, str(where), files, preset, path, config if config.exists() else None)
