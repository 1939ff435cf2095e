"""The VAEs that vaedeploy knows by name: ``presets.toml``, read into ``Preset`` values."""

from __future__ import annotations

import difflib
import functools
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from vaedeploy.errors import UnknownPresetError
from vaedeploy.source.autoencoder_kl.config import Architecture
from vaedeploy.values.latent import LatentSpec


class Preset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A VAE that is known by name.

    purpose: what it is for, in one line.
    architecture: name of the ``Architecture`` in ``config``.
    latent: its latent contract.
    repository: hub repository that holds ``file``; None where the package carries the weights.
    file: path in the repository, or name in the package's ``weights`` folder.
    revision: commit or tag of the repository; None stands for its main branch.
    sha256, bytes: hash and size of ``file``; None where unknown.
    also_sha256: hashes of other files in which the same VAE is published.
    """

    name: str
    purpose: str
    architecture: str
    config: Architecture
    file: str
    licence: str
    latent: LatentSpec
    repository: str | None = None
    revision: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    also_sha256: tuple[str, ...] = ()

    @property
    def packaged_file(self) -> Path | None:
        """Path of the weights that the package carries; None for a preset on the hub."""
        if self.repository is not None:
            return None
        return Path(str(resources.files("vaedeploy.source") / "weights" / self.file))


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    architectures: dict[str, Architecture]
    presets: dict[str, dict[str, Any]]


@functools.cache
def _document() -> _Document:
    text = (resources.files("vaedeploy.source") / "presets.toml").read_text(encoding="utf-8")
    return msgspec.toml.decode(text, type=_Document)


@functools.cache
def _presets() -> dict[str, Preset]:
    by_name = {}
    for name, table in _document().presets.items():
        config = _document().architectures[table["architecture"]]
        by_name[name] = msgspec.convert({**table, "name": name, "config": config}, Preset)
    return by_name


def architectures() -> dict[str, Architecture]:
    """Every known architecture by its name, in the order of ``presets.toml``."""
    return dict(_document().architectures)


def presets() -> dict[str, Preset]:
    """Every preset by its name, in the order of ``presets.toml``."""
    return dict(_presets())


def get_preset(name: str) -> Preset:
    """The preset of that name. Raises UnknownPresetError, which names the nearest ones."""
    known = _presets()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = f"; the nearest are: {', '.join(near)}" if near else ""
    raise UnknownPresetError(f"no preset is named {name!r}{hint}. To see all {len(known)}: vaedeploy presets")


def preset_of_file(sha256: str) -> Preset | None:
    """The preset to which a weights file with this sha256 belongs; None where it belongs to none."""
    return next((p for p in _presets().values() if sha256 in (p.sha256, *p.also_sha256)), None)
