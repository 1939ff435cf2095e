"""Where a VAE's weights are: in the package, on the hub (downloaded), in a folder, or a file. Nothing is read here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vaedeploy.errors import WeightsError
from vaedeploy.source import hub
from vaedeploy.source.preset import Preset
from vaedeploy.system.progress import Progress
from vaedeploy.values.origin import Origin

FOLDER_FILES = tuple(
    f"diffusion_pytorch_model{variant}" for variant in (".safetensors", ".bin", ".fp16.safetensors", ".fp16.bin")
)
"""Names of the weights in a diffusers folder, the most precise first."""

REPOSITORY_FILES = tuple(folder + name for folder in ("", "vae/") for name in FOLDER_FILES[:2])
"""Where a hub repository holds a VAE's weights: it is one of a VAE, or one of a pipeline with a VAE in it."""

REPOSITORY_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

FILE_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")

WEIGHTS_TAKES = "a hub repository (owner/name), a diffusers folder, a .safetensors or .ckpt file, or random:SEED"


@dataclass(frozen=True)
class Found:
    """Weights, found but not read.

    where: what a message calls them.
    config: the model's own config.json, if there is one.
    own: they are where the preset says that its weights are.
    """

    origin: Origin
    where: str
    file: Path
    config: Path | None = None
    own: bool = False


def find_weights(preset: Preset, weights: str | Path | None, progress: Progress) -> Found:
    """The preset's own weights, or ``weights`` for its architecture; downloaded where they are on the hub."""
    packaged = preset.packaged_file
    if weights is None and packaged is not None:
        if not packaged.exists():
            raise WeightsError(
                f"this installation carries no weights for preset {preset.name} ({packaged} is missing). "
                "Install vaedeploy again, or give other weights: --weights PATH"
            )
        origin = Origin(kind="package", location=preset.name, sha256=None, preset=preset.name)
        return Found(origin, f"preset {preset.name}", file=packaged, own=True)
    if weights is None:
        return _find_on_hub(str(preset.repository), preset, progress)
    if Path(weights).exists():
        return find_path(Path(weights), preset.name)
    given = str(weights)
    if isinstance(weights, str) and REPOSITORY_NAME.fullmatch(given) and not given.endswith(FILE_SUFFIXES):
        return _find_on_hub(given, preset, progress)
    raise WeightsError(f"there is no file or folder {given}. --weights takes {WEIGHTS_TAKES}")


def find_path(path: Path, preset: str | None) -> Found:
    """The weights in a diffusers folder, which may be a pipeline's with a VAE in it, or a file."""
    location = str(path.resolve())
    if not path.is_dir():
        return Found(Origin(kind="file", location=location, sha256=None, preset=preset), str(path), file=path)
    folder = path / "vae" if not (path / "config.json").exists() and (path / "vae").is_dir() else path
    file = next((folder / name for name in FOLDER_FILES if (folder / name).exists()), None)
    if file is None:
        raise WeightsError(
            f"{folder} holds no {' or '.join(FOLDER_FILES[:2])}. Give a diffusers folder, or the weights file itself"
        )
    config = folder / "config.json"
    origin = Origin(kind="folder", location=location, sha256=None, preset=preset)
    return Found(origin, str(file), file=file, config=config if config.exists() else None)


def _find_on_hub(repository: str, preset: Preset, progress: Progress) -> Found:
    own = repository == preset.repository
    files = (preset.file,) if own else REPOSITORY_FILES
    fetched = hub.fetch(repository, files, revision=preset.revision if own else None, progress=progress)
    # A known hash says more than a config could, and a file that is not diffusers' own has none beside it.
    has_config = not (own and preset.sha256) and Path(fetched.file).name in FOLDER_FILES
    config = hub.fetch_beside(fetched, repository, "config.json") if has_config else None
    origin = Origin(kind="hub", location=repository, sha256=None, preset=preset.name, revision=fetched.revision)
    return Found(origin, f"{repository}/{fetched.file}", file=fetched.path, config=config, own=own)
