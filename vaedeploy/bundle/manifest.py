"""``bundle.json``: what a bundle says of itself. ``docs/bundle-format.md`` specifies every field."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated

import msgspec

from vaedeploy.errors import BundleError, ContractError
from vaedeploy.values.interface import Interface
from vaedeploy.values.kinds import Backend, Form, ImageInput, Part, Precision, Sha256
from vaedeploy.values.latent import LatentSpec
from vaedeploy.values.origin import Origin
from vaedeploy.values.shapes import ShapeSet

FORMAT = 1
"""The version of the format that this package writes, and the only one that it reads."""

NAME = "bundle.json"
"""The manifest's place in a bundle."""


class VaeInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which VAE a bundle holds.

    identity: sha256 over both modules' weights and the latent contract: equal identities give equal latents.
    architecture: the class it was made from, such as ``AutoencoderKL``.
    """

    name: str
    identity: str
    architecture: str
    licence: str | None
    origin: Origin


class FileInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file of the bundle must be: its sha256 in lower-case hexadecimal, and its size in bytes."""

    sha256: Sha256
    bytes: Annotated[int, msgspec.Meta(ge=0)]


class Verification(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The summary of the last verification.

    worst: each metric's worst value over all cases; one that is not finite is null in JSON and None here.
    cases: how many cases were run.
    """

    passed: bool
    reference: str
    backend: str
    worst: Mapping[str, float | None]
    cases: int


class EngineIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that an engine depends on. Two builds of equal identity are interchangeable; any difference makes one stale.

    graph: ``Manifest.contents`` of the part that it was built from. rewritten: the same of the graph that was made of
    it and went into the builder, so that a change of any rule shows.
    backend_version: such as "1.7.1.116"; a plan is read by the version that wrote it alone.
    compute_capability: such as "8.9". gpu: the one GPU model that it runs on; None: all of that capability.
    shapes: a profile's, in the order of the plan's optimisation profiles (which makes no difference to equality).
    options: what the builder was told.
    """

    graph: Sha256
    rewritten: Sha256
    precision: Precision
    backend: Backend
    backend_version: str
    compute_capability: str
    gpu: str | None
    shapes: dict[str, ShapeSet]
    options: dict[str, bool | int | str]

    @property
    def digest(self) -> str:
        """sha256 over all of it, in hexadecimal."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()

    @property
    def mark(self) -> bytes:
        """What an engine's own bytes contain: its network is named so."""
        return f"vaedeploy:{self.digest}".encode()


class EngineInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an engine of the bundle is.

    profile: the name of the profile that it was built for.
    activation_bytes: shape set -> device memory that an execution context takes at its largest size, as the builder
    said. weights_bytes: of the weights, as the builder said. cuda_graphs: see ``profile.Profile``.
    tensors: input or output -> its type and shape, such as "float32 (-1, 4, -1, -1)".
    layers: such as "convolution float16" -> how many of them the network had before the builder fused them.
    verification: None as long as it was not run on its GPU and compared.
    """

    profile: str
    part: Part
    identity: EngineIdentity
    activation_bytes: dict[str, int]
    weights_bytes: int
    tensors: dict[str, str]
    layers: dict[str, int]
    cuda_graphs: bool = True
    verification: Verification | None = None


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The contents of ``bundle.json``.

    graphs: part -> form -> file name. Every part has the form ``portable``.
    rewrites: file name of a graph -> what was done to make it from the portable one: rule -> places that it changed.
    files: every file of the bundle but ``bundle.json`` itself, by its path with forward slashes.
    contents: part -> sha256 of the portable graph without what says who made it: equal ones compute the same.
    engines: an engine's file -> what it is.
    verification: None where none was run since the graphs were made.
    """

    format: int = FORMAT
    vaedeploy: str
    vae: VaeInfo
    latent: LatentSpec
    image_input: ImageInput
    precision: Precision
    graphs: dict[Part, dict[Form, str]]
    rewrites: dict[str, dict[str, int]] = {}
    files: dict[str, FileInfo] = {}
    contents: dict[Part, Sha256] = {}
    engines: dict[str, EngineInfo] = {}
    verification: Verification | None = None

    def interface(self, part: Part) -> Interface:
        """What a half takes and gives: names, shapes and dtypes."""
        return Interface(part, self.latent, self.image_input)

    def export_command(self, out: Path) -> str:
        """What to run to make this bundle again at ``out``."""
        origin = self.vae.origin
        if origin.kind == "modules":
            return f"vaedeploy.export_vae(..., out={str(out)!r}, force=True), in Python and with your own modules"
        words = ["vaedeploy", "export", "--vae", origin.preset or origin.location]
        if origin.preset and origin.kind != "package" and origin.location != origin.preset:
            words += ["--weights", origin.location]
        if origin.preset is None and not isinstance(self.latent.scale, tuple):
            words += ["--scale", str(self.latent.scale), "--shift", str(self.latent.shift)]
        if self.precision != "fp32":
            words += ["--precision", self.precision]
        if self.image_input != "float":
            words += ["--image-input", self.image_input]
        return shlex.join([*words, "--out", str(out), "--force"])

    def build_command(self, bundle: Path, engine: str) -> str:
        """What to run to have the engine in the file ``engine`` anew."""
        info = self.engines[engine]
        words = ["vaedeploy", "build", str(bundle), "--profile", info.profile, "--backend", info.identity.backend]
        return shlex.join(words)


class _Head(msgspec.Struct):
    format: int


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of ``bundle.json``."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def decode_manifest(data: bytes, bundle: Path) -> Manifest:
    """Read the bytes of ``bundle.json``; ``bundle`` is what errors name.

    Raises BundleError for what is not JSON, another format version, unknown or missing fields, values of a wrong
    type, paths that leave the bundle, and graphs that are not among the files.
    """
    again = f"Export it again: vaedeploy export --vae NAME --out {shlex.quote(str(bundle))} --force"
    try:
        version = msgspec.json.decode(data, type=_Head).format
        if version != FORMAT:
            raise BundleError(
                f"bundle {bundle} has format {version}; this vaedeploy knows format {FORMAT} only. "
                + ("Upgrade: pip install --upgrade vaedeploy" if version > FORMAT else again)
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, ContractError) as error:
        raise BundleError(f"bundle {bundle}: {NAME} cannot be used: {error}. {again}") from error
    check_manifest(manifest, bundle)
    return manifest


def check_manifest(manifest: Manifest, bundle: Path) -> None:
    """Raise BundleError where the manifest contradicts itself or names a path that is no place in the bundle."""
    graphs = [name for forms in manifest.graphs.values() for name in forms.values()]
    for name in (*manifest.files, *graphs, *manifest.engines):
        if fault := path_fault(name):
            raise BundleError(f"bundle {bundle}: {NAME} names the path {name!r}, which {fault}; it is refused")
    for part in ("encoder", "decoder"):
        if "portable" not in manifest.graphs.get(part, {}):
            raise BundleError(f"bundle {bundle}: {NAME} names no portable graph of the {part}")
    for kind, names in (("graph", graphs), ("engine", manifest.engines)):
        for name in names:
            if name not in manifest.files:
                raise BundleError(f"bundle {bundle}: {NAME} names the {kind} {name} but not among its files")


def path_fault(name: str) -> str | None:
    """Why ``name`` cannot be a file's path in a bundle, on any system; None where it can."""
    if not name or re.search(r"[\x00-\x1f\x7f]", name):
        return "is empty or has control characters"
    if "\\" in name or ":" in name:
        return "has a backslash or a colon"
    if name.startswith("/"):
        return "is absolute"
    segments = name.split("/")
    if ".." in segments:
        return "leaves the bundle"
    if "." in segments or "" in segments or any(s[-1] in ". " for s in segments):
        return "is not in its plain form"
    return "is the manifest itself" if PurePosixPath(name.lower()) == PurePosixPath(NAME) else None
