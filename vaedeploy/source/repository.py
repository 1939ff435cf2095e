"""Weights in a hub repository -> weights on this disk."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from vaedeploy.source import hub
from vaedeploy.source.contract import class_named
from vaedeploy.source.families import FAMILIES
from vaedeploy.source.locate import FOLDER_FILES, SUBFOLDERS, Found, OnHub
from vaedeploy.system.progress import Progress
from vaedeploy.values.origin import Origin


def download(source: OnHub, progress: Progress) -> Found:
    """Fetch weights from the hub, or find them in its cache. Raises DownloadError and WeightsError."""
    folders = ("", *SUBFOLDERS) if source.subfolder is None else (source.subfolder,)
    if source.preset is None:
        return _download_described(source, folders, progress)
    preset, repository = source.preset, source.repository
    is_own = repository == preset.repository and source.subfolder is None
    files = [preset.file] if is_own else _paths(folders, FOLDER_FILES)
    revision = source.revision or (preset.revision if is_own else None)
    fetched = hub.fetch(repository, files, revision=revision, progress=progress)
    # A known sha256 identifies weights better than a config does. Only diffusers' own file names have a config beside
    # them.
    has_config = not (is_own and preset.sha256) and Path(fetched.file).name in FOLDER_FILES
    config = hub.fetch_beside(fetched, repository, "config.json") if has_config else None
    # Another revision than the preset's may have other weights.
    return _found(source, fetched, config, own=is_own and source.revision in (None, preset.revision))


def _download_described(source: OnHub, folders: tuple[str, ...], progress: Progress) -> Found:
    """Fetch a VAE that its config.json describes. That comes first: the weights beside one may be of a transformer."""
    repository, left = source.repository, _paths(folders, ("config.json",))
    first = config = hub.fetch(repository, left, revision=source.revision, progress=progress)
    while class_named(config.path) not in FAMILIES:
        left = left[left.index(config.file) + 1 :]
        other = hub.fetch_if_there(repository, left, revision=source.revision, progress=progress)
        if other is None:
            # Reading it says which class it is, and which can be loaded.
            return _found(source, first, first.path, own=False)
        config = other
    folder = str(PurePosixPath(config.file).parent)
    weights = hub.fetch(repository, _paths((folder,), FOLDER_FILES), revision=config.revision, progress=progress)
    return _found(source, weights, config.path, own=False)


def _paths(folders: tuple[str, ...], names: tuple[str, ...]) -> list[str]:
    return [str(PurePosixPath(folder, name)) for folder in folders for name in names]


def _found(source: OnHub, fetched: hub.Fetched, config: Path | None, *, own: bool) -> Found:
    repository, preset = source.repository, source.preset
    origin = Origin(
        kind="hub",
        location=repository,
        sha256=None,
        preset=preset.name if preset else None,
        revision=fetched.revision,
        subfolder=source.subfolder,
    )
    where, name = f"{repository}/{fetched.file}", repository.split("/")[1]
    return Found(origin, where, name, (fetched.path,), preset, config=config, own=own)
