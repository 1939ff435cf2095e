"""``bundle.json``, the manifest of a bundle, as structs. ``docs/bundle-format.md`` specifies every field."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from vaedeploy.bundle.graphs import EXTRA_FORMS
from vaedeploy.values.interface import Interface
from vaedeploy.values.kinds import Backend, ComputeCapability, Form, ImageInput, Part, Precision, Sha256
from vaedeploy.values.latent import LatentSpec, numbers_text
from vaedeploy.values.origin import Origin
from vaedeploy.values.shapes import ShapeSet

FORMAT = 1
"""The version of the bundle format that this package writes. It reads no other version."""

NAME = "bundle.json"
"""The path of the manifest in a bundle."""

Count = Annotated[int, msgspec.Meta(ge=0)]


class VaeInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The VAE that a bundle holds.

    name: for people, and for naming folders.
    identity: sha256 over both modules' weights and the latent contract. VAEs with equal identities give equal latents.
    architecture: the class that it was made from, such as ``AutoencoderKL``.
    licence: of the weights, if known.
    origin: where the weights came from.
    """

    name: str
    identity: str
    architecture: str
    licence: str | None
    origin: Origin


class FileInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The sha256 of a file in the bundle, in lower-case hexadecimal, and its size in bytes."""

    sha256: Sha256
    bytes: Count


class Verification(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The summary of the last verification.

    passed: whether every case kept every limit. reference: what the outputs were compared with.
    backend: what computed the outputs.
    worst: metric -> its worst value over all cases. A value that is not finite is null in JSON and None here.
    cases: how many cases were run.
    """

    passed: bool
    reference: str
    backend: str
    worst: Mapping[str, float | None]
    cases: int


class EngineIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that an engine depends on.

    Two engines with equal identities are interchangeable. An engine whose identity differs in any field from the wanted
    one is stale.

    graph: ``Manifest.contents`` of its part when it was built.
    rewritten: the same sha256 of the graph that the rewrites made from it for the builder, so that a change of any rule
        makes the engine stale.
    precision: of the graph that was given to the builder.
    backend: the library that built it.
    backend_version: such as "1.7.1.116". Only the version that wrote an engine can read it.
    compute_capability: of the GPUs that it runs on, such as "8.9".
    gpu: the only GPU model that it runs on; None if it runs on all GPUs of that compute capability.
    shapes: name -> shape set, from the profile, in the order of the engine's optimisation profiles. Equality ignores
        the order.
    options: the builder's options by name.
    """

    graph: Sha256
    rewritten: Sha256
    precision: Precision
    backend: Backend
    backend_version: str
    compute_capability: ComputeCapability
    gpu: str | None
    shapes: Annotated[dict[str, ShapeSet], msgspec.Meta(min_length=1)]
    options: dict[str, bool | int | str]

    @property
    def digest(self) -> str:
        """sha256 over all fields, in hexadecimal."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()

    @property
    def mark(self) -> bytes:
        """The name of the engine's network, which its bytes contain: ``vaedeploy:`` and the digest."""
        return f"vaedeploy:{self.digest}".encode()


class EngineInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The description of an engine in the bundle.

    profile: the name of the profile that it was built for. part: the half that it computes.
    identity: everything that it depends on.
    activation_bytes: name of a shape set -> bytes of device memory that an execution context takes at the largest size
        of that set, as reported by the builder.
    weights_bytes: bytes of its weights, as reported by the builder.
    tensors: input or output -> type and shape, such as "float32 (-1, 4, -1, -1)".
    layers: kind of layer, such as "convolution float16" -> how many the network had before the builder fused layers.
    cuda_graphs: whether the runtime records CUDA graphs; see ``engines.profile.Profile``.
    verification: of this engine on its GPU; None if it has not been run there and compared.
    """

    profile: str
    part: Part
    identity: EngineIdentity
    activation_bytes: dict[str, Count]
    weights_bytes: Count
    tensors: dict[str, str]
    layers: dict[str, Count]
    cuda_graphs: bool = True
    verification: Verification | None = None

    def __post_init__(self) -> None:
        if self.activation_bytes.keys() != self.identity.shapes.keys():
            raise ValueError("activation_bytes and identity.shapes have other names")


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The contents of ``bundle.json``.

    format: the version of the bundle format.
    vaedeploy: the version of vaedeploy that wrote the bundle.
    vae: the VAE. latent: its latent contract. contract_given: whether the caller of the export stated scale or shift.
    image_input: whether the encoder takes float or uint8 images.
    precision: of the graphs, except the portable ones (always fp32) and some of a bf16 bundle (see ``graphs.FORMS``).
    graphs: part -> form -> file name. Every part has the form ``portable``.
    rows: part -> file name of the document with its pieces, see ``bundle.rows``.
    rewrites: file name of a graph -> rule -> number of places that the rule changed in the portable graph to make it.
    keep_fp32: names of nodes of the portable graphs that stay in float32 where the others are lowered.
    files: path with forward slashes -> sha256 and size, for every file of the bundle except ``bundle.json``.
    contents: part -> sha256 of what the portable graph computes, whoever made it. Graphs with equal values compute the
        same.
    engines: path of an engine -> its description.
    verification: the last one; None if none was run since the graphs were made.
    unfinished: paths of files that a writer is putting into the bundle. A file that is not also in ``files`` is not
        part of the bundle: the writer was killed, or is at work.
    seal: sha256 over the bytes of ``bundle.json`` with zeros in place of the seal. None in a bundle that was written
        before manifests were sealed.
    """

    format: int = FORMAT
    vaedeploy: str
    vae: VaeInfo
    latent: LatentSpec
    contract_given: bool = False
    image_input: ImageInput
    precision: Precision
    graphs: dict[Part, dict[Form, str]]
    rows: dict[Part, str] = {}
    rewrites: dict[str, dict[str, int]] = {}
    keep_fp32: tuple[str, ...] = ()
    files: dict[str, FileInfo] = {}
    contents: dict[Part, Sha256] = {}
    engines: dict[str, EngineInfo] = {}
    verification: Verification | None = None
    unfinished: tuple[str, ...] = ()
    seal: Sha256 | None = None

    @property
    def rewritten(self) -> bool:
        """Whether the exact rewrites were applied: rules other than the one that lowers the precision."""
        return any(not rule.startswith("lower_precision") for rules in self.rewrites.values() for rule in rules)

    def interface(self, part: Part) -> Interface:
        """The names, shapes and dtypes of the inputs and outputs of one half."""
        return Interface(part, self.latent, self.image_input)

    def export_command(self, out: Path) -> str:
        """The shell command that makes this bundle again at ``out``; for the user's own modules, the call in Python."""
        origin = self.vae.origin
        if origin.kind == "modules":
            return f"vaedeploy.export_vae(..., out={str(out)!r}, force=True), in Python and with your own modules"
        words = ["vaedeploy", "export", origin.preset or origin.config or origin.location]
        if (origin.preset or origin.config) and origin.kind != "package" and origin.location != origin.preset:
            words += ["--weights", origin.location]
        if origin.subfolder:
            words += ["--subfolder", origin.subfolder]
        if origin.preset is None or self.contract_given:
            words += ["--scale", numbers_text(self.latent.scale), "--shift", numbers_text(self.latent.shift)]
        if self.precision != "fp32":
            words += ["--precision", self.precision]
        for name in self.keep_fp32:
            words += ["--keep-fp32", name]
        if self.image_input != "float":
            words += ["--image-input", self.image_input]
        for form in EXTRA_FORMS:
            words += ["--form", form] if form in self.graphs["decoder"] else []
        if not self.rewritten:
            words.append("--no-rewrite")
        return shlex.join([*words, "--out", str(out), "--force"])

    def build_command(self, bundle: Path, engine: str) -> str:
        """The shell command that builds the engine in the file ``engine`` of the bundle at ``bundle`` again."""
        info = self.engines[engine]
        words = ["vaedeploy", "build", str(bundle), "--profile", info.profile, "--backend", info.identity.backend]
        return shlex.join(words)
