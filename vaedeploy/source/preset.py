"""The VAEs that vaedeploy knows by name: ``presets.toml``, read into ``Preset`` values."""

from __future__ import annotations

import difflib
import functools
import re
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from vaedeploy.errors import UnknownPresetError
from vaedeploy.source.families import FAMILIES, family_of
from vaedeploy.source.family import Architecture, LatentShape
from vaedeploy.values.latent import LatentSpec
from vaedeploy.values.presets import presets_document

MOST_NAMED = 3
"""How many similar presets are named for an unknown name."""

LEAST_SHARE = 0.75
"""A preset may be meant if words about it make up this share of the letters of an unknown name. In ``my-vae`` they make
up less: most presets have the word vae.
"""


class Preset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A VAE that is known by name.

    purpose: what it is for, in one line.
    architecture: name of the ``Architecture`` in ``config``, which also has the fields (``Architecture.unshaped``) in
        which a preset differs from its model's config.json.
    repository: hub repository that holds ``file``; None where the package carries the weights.
    file: path in the repository, or name in the package's ``weights`` folder.
    latent: its latent contract; None where its weights state scale and shift.
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
    repository: str | None = None
    latent: LatentSpec | None = None
    revision: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    also_sha256: tuple[str, ...] = ()

    @property
    def latent_shape(self) -> LatentShape:
        """Channels and factor of its latents."""
        return family_of(self.config).latent(self.config)

    @property
    def packaged_file(self) -> Path | None:
        """Path of the weights that the package carries; None for a preset on the hub."""
        if self.repository is not None:
            return None
        return Path(str(resources.files("vaedeploy.source") / "weights" / self.file))


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    architectures: dict[str, dict[str, Any]]
    presets: dict[str, dict[str, Any]]


@functools.cache
def _document() -> _Document:
    return msgspec.toml.decode(presets_document(), type=_Document)


def _config(name: str, instead: dict[str, Any]) -> Architecture:
    """The architecture of that name, with the fields ``instead`` replaced."""
    fields = {**_document().architectures[name], **instead}
    architecture: Architecture = FAMILIES[fields.pop("class")].read(fields)
    return architecture


@functools.cache
def _presets() -> dict[str, Preset]:
    by_name = {}
    for name, table in _document().presets.items():
        config = _config(table["architecture"], table.get("instead", {}))
        fields = {key: value for key, value in table.items() if key != "instead"}
        if "means" in (latent := table.get("latent", {})):
            fields["latent"] = _scaled(**latent)
        preset = msgspec.convert({**fields, "name": name, "config": {}}, Preset)
        by_name[name] = msgspec.structs.replace(preset, config=config)
    return by_name


def _scaled(means: list[float], deviations: list[float], **others: int) -> dict[str, Any]:
    """The latent contract of a model that sees (z - mean) / deviation in each channel."""
    return {**others, "scale": [1.0 / deviation for deviation in deviations], "shift": means}


@functools.cache
def _architectures() -> dict[str, Architecture]:
    return {name: _config(name, {}) for name in _document().architectures}


def architectures() -> dict[str, Architecture]:
    """Every known architecture by its name, in the order of ``presets.toml``."""
    return dict(_architectures())


def presets() -> dict[str, Preset]:
    """Every preset by its name, in the order of ``presets.toml``."""
    return dict(_presets())


def get_preset(name: str) -> Preset:
    """The preset of that name. Raises UnknownPresetError, which names the nearest ones."""
    if name in _presets():
        return _presets()[name]
    raise unknown_preset(name)


def unknown_preset(name: str, nor: str = "") -> UnknownPresetError:
    """The error for a name that no preset has; it names the nearest ones. nor: what else has no such name, in words."""
    known = _presets()
    near = difflib.get_close_matches(name.lower(), known, n=MOST_NAMED) or _described_by(name)[:MOST_NAMED]
    hint = f"; the nearest are: {', '.join(near)}" if near else ""
    return UnknownPresetError(f"no preset is named {name!r}{nor}{hint}. To see all {len(known)}: vaedeploy presets")


def _described_by(name: str) -> list[str]:
    """The presets with the most words of their repository and purpose in ``name``, as in ``stable-diffusion-xl``. Empty
    if those words are less than ``LEAST_SHARE`` of it.
    """
    given = _words(name)
    shares = {
        preset.name: sum(map(len, given & _words(f"{preset.repository} {preset.purpose}")))
        for preset in _presets().values()
    }
    least = max(max(shares.values()), LEAST_SHARE * sum(map(len, given)), 1)
    return [preset for preset, share in shares.items() if share >= least]


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower()))


def preset_of_file(sha256: str) -> Preset | None:
    """The preset to which a weights file with this sha256 belongs; None where it belongs to none."""
    return next((p for p in _presets().values() if sha256 in (p.sha256, *p.also_sha256)), None)
