"""Weights in a hub repository -> weights on this disk."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from vaedeploy.source import hub
from vaedeploy.source.contract import class_named
from vaedeploy.source.families import FAMILIES
from vaedeploy.source.folder import STEM, WEIGHTS, parts_of
from vaedeploy.source.locate import SUBFOLDERS, Found, OnHub
from vaedeploy.system.hub import Fetched
from vaedeploy.system.progress import Progress
from vaedeploy.values.origin import Origin


def download(source: OnHub, progress: Progress) -> Found:
    """Fetch weights from the hub, or find them in its cache. Raises DownloadError and WeightsError."""
    folders = ("", *SUBFOLDERS) if source.subfolder is None else (source.subfolder,)
    if source.preset is None:
        return _download_described(source, folders, progress)
    preset, repository = source.preset, source.repository
    is_own = repository == preset.repository and source.subfolder is None
    revision = source.revision or (preset.revision if is_own else None)
    fetched = (
        hub.fetch(repository, [preset.file], revision=revision, progress=progress)
        if is_own
        else _fetch_weights(repository, folders, revision, progress)
    )
    # A known sha256 identifies weights better than a config. Only files with diffusers' own names have a config beside
    # them.
    has_config = not (is_own and preset.sha256) and Path(fetched.file).name.startswith(STEM)
    config = hub.fetch_beside(fetched, repository, "config.json") if has_config else None
    parts = _fetch_parts(repository, fetched, progress)
    # Another revision than the preset's may have other weights.
    return _found(source, fetched, parts, config, own=is_own and source.revision in (None, preset.revision))


def _download_described(source: OnHub, folders: tuple[str, ...], progress: Progress) -> Found:
    """Fetch a VAE that its config.json describes. The config comes first: weights beside it may be a transformer's."""
    repository, left = source.repository, _paths(folders, ("config.json",))
    first = config = hub.fetch(repository, left, revision=source.revision, progress=progress)
    while class_named(config.path) not in FAMILIES:
        left = left[left.index(config.file) + 1 :]
        other = hub.fetch_if_there(repository, left, revision=source.revision, progress=progress)
        if other is None:
            # Reading it raises an error that says which class it is, and which can be loaded.
            return _found(source, first, (first.path,), first.path, own=False)
        config = other
    folder = str(PurePosixPath(config.file).parent)
    weights = _fetch_weights(repository, (folder,), config.revision or source.revision, progress)
    return _found(source, weights, _fetch_parts(repository, weights, progress), config.path, own=False)


def _fetch_weights(repository: str, folders: tuple[str, ...], revision: str | None, progress: Progress) -> Fetched:
    """The most precise weights in the first of ``folders`` that has any, or the list of their parts."""
    where = " or ".join(f"in {folder}/" if folder not in ("", ".") else "at its top" for folder in folders)
    named = f"{WEIGHTS[0]} (nor .bin, nor a list of parts, nor a variant fp16 or bf16 of these) {where}"
    return hub.fetch(repository, _paths(folders, WEIGHTS), named, revision=revision, progress=progress)


def _fetch_parts(repository: str, fetched: Fetched, progress: Progress) -> tuple[Path, ...]:
    """The weights files on this disk: ``fetched`` itself, or those that it lists."""
    parts = parts_of(fetched.path)
    if parts == (fetched.path,):
        return parts
    places = [str(PurePosixPath(fetched.file).with_name(part.name)) for part in parts]
    return tuple(hub.fetch(repository, [place], revision=fetched.revision, progress=progress).path for place in places)


def _paths(folders: tuple[str, ...], names: tuple[str, ...]) -> list[str]:
    return [str(PurePosixPath(folder, name)) for folder in folders for name in names]


def _found(source: OnHub, fetched: Fetched, files: tuple[Path, ...], config: Path | None, *, own: bool) -> Found:
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
    return Found(origin, where, name, files, preset, config=config, own=own)
