"""Configurations of models, ``config.pbtxt``: protobuf's text of Triton's ``ModelConfig``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vaedeploy.bundle.manifest import EngineInfo, Manifest
from vaedeploy.values.interface import BOOL, FLOAT32, UINT8, channel_axis
from vaedeploy.values.kinds import Part
from vaedeploy.values.served import FINITE
from vaedeploy.version import __version__

MARK = "# Written by vaedeploy"
"""How every configuration that this module writes begins."""

DELAY = 2000
"""The most microseconds that a request waits for others to be joined with."""

TYPES = {FLOAT32: "TYPE_FP32", UINT8: "TYPE_UINT8", BOOL: "TYPE_BOOL"}

LOSSES = """\
Triton runs this file by itself, without vaedeploy's runtime. What that loses:
- no second run in float32 of items with NaN or infinity: ask for the output finite, and look at it
- no check of the files' sha256 when the model is loaded, and none that it is the VAE that you mean
- no words for an image of a wrong size or for NaN in what is sent; no memory limit, and no running by rows
- no choice of the backend, and no other one where this one cannot load the model or does not take a size
- requests of different sizes are never joined: only neighbours in the queue of one size are
The model without --native, for the Python backend, keeps all of it."""


@dataclass(frozen=True)
class Tensor:
    """An input or output. dims: without the batch. lines: its further fields."""

    name: str
    type: str
    dims: Sequence[int]
    lines: Sequence[str] = ()

    def text(self) -> str:
        """Its message."""
        dims = ", ".join(map(str, self.dims))
        fields = [f'name: "{self.name}"', f"data_type: {self.type}", f"dims: [ {dims} ]", *self.lines]
        return "  {\n" + "".join(f"    {field}\n" for field in fields) + "  }"


def python_config(name: str, manifest: Manifest, part: Part, place: str, max_batch: int) -> str:
    """The configuration of a half in the Python backend. place: its bundle's path from the folder of the version."""
    interface = manifest.interface(part)
    inputs = ["image", "image_u8"] if interface.input == "image" else [interface.input]
    ragged = [
        "# model.py takes requests of several sizes at once, and computes those of one size together.",
        "allow_ragged_batch: true",
    ]
    if len(inputs) > 1:
        ragged += ["# Each request has either image or image_u8.", "optional: true"]
    return _config(
        [f"the {part} of the VAE {manifest.vae.name}"],
        name,
        "python",
        max_batch,
        [_tensor(manifest, part, given, ragged) for given in inputs],
        # model.py gives finite with one more axis, since a configuration cannot have a tensor without axes.
        [_tensor(manifest, part, given) for given in interface.outputs],
        [
            "# One process on each GPU, or one on the CPU. On a CPU, more processes gain more than larger batches.",
            "instance_group [ { count: 1 } ]",
            *_parameter("bundle", place),
            *_parameter("part", part),
            *_parameter("identity", manifest.vae.identity),
        ],
    )


def onnxruntime_config(name: str, manifest: Manifest, part: Part, graph: str, max_batch: int) -> str:
    """The configuration of a graph in the onnxruntime backend. graph: its name in the bundle."""
    return _native(
        [f"the {part} of the VAE {manifest.vae.name}: {graph} of the bundle, with its weights beside it"],
        name,
        "onnxruntime",
        manifest,
        part,
        max_batch,
        [
            "# On a GPU the provider rounds to TensorFloat-32 unless told otherwise; vaedeploy turns that off.",
            "optimization {",
            "  execution_accelerators {",
            "    gpu_execution_accelerator: [",
            '      { name: "cuda" parameters { key: "use_tf32" value: "0" } }',
            "    ]",
            "  }",
            "}",
        ],
    )


def tensorrt_config(name: str, manifest: Manifest, engine: str, info: EngineInfo) -> str:
    """The configuration of an engine in the tensorrt backend. engine: its name in the bundle."""
    identity = info.identity
    sizes = [
        f"  {index}: batch {batch}, height {height}, width {width}"
        for index, shapes in enumerate(identity.shapes.values())
        for batch, height, width in [map(_range, shapes.at("min"), shapes.at("max"))]
    ]
    profiles = ", ".join(f'"{index}"' for index in range(len(identity.shapes)))
    # Triton has one limit for all profiles: the largest one's, since each request takes a profile that fits.
    most = max(shapes.at("max")[0] for shapes in identity.shapes.values())
    gpu = identity.gpu or f"GPUs of compute capability {identity.compute_capability}"
    return _native(
        [
            f"the {info.part} of the VAE {manifest.vae.name}: {engine} of the bundle",
            f"It runs on {gpu}, with TensorRT {identity.backend_version} and no other version: take the container that",
            "has it. Its optimisation profiles, for images in pixels:",
            *sizes,
        ],
        name,
        "tensorrt",
        manifest,
        info.part,
        most,
        [f"instance_group [ {{ count: 1 kind: KIND_GPU profile: [ {profiles} ] }} ]"],
    )


def _native(
    what: Sequence[str], name: str, backend: str, manifest: Manifest, part: Part, max_batch: int, more: Sequence[str]
) -> str:
    interface = manifest.interface(part)
    # The graph gives finite with the batch as its only axis, and the configuration must have another.
    flat = {FINITE: ["reshape: { shape: [ ] }"]}
    return _config(
        [*what, *LOSSES.splitlines()],
        name,
        backend,
        max_batch,
        [_tensor(manifest, part, interface.input)],
        [_tensor(manifest, part, given, flat.get(given, ())) for given in interface.outputs],
        more,
    )


def _config(
    what: Sequence[str],
    name: str,
    backend: str,
    max_batch: int,
    inputs: Iterable[Tensor],
    outputs: Iterable[Tensor],
    more: Sequence[str],
) -> str:
    lines = [
        f"{MARK} {__version__}: {what[0]}.",
        *(f"# {line}" for line in what[1:]),
        f'name: "{name}"',
        f'backend: "{backend}"',
        f"max_batch_size: {max_batch}",
        "input [\n" + ",\n".join(tensor.text() for tensor in inputs) + "\n]",
        "output [\n" + ",\n".join(tensor.text() for tensor in outputs) + "\n]",
        "dynamic_batching {",
        f"  max_queue_delay_microseconds: {DELAY}",
        "  # Without max_queue_size: with it, Triton 2.51 leaves a request in the queue for half a second at times.",
        "}",
        *more,
    ]
    return "\n".join(lines) + "\n"


def _tensor(manifest: Manifest, part: Part, name: str, lines: Sequence[str] = ()) -> Tensor:
    """An input or output of a half by name, in Triton's terms."""
    latent = manifest.latent
    if name == FINITE:
        return Tensor(name, TYPES[BOOL], [1], lines)
    dims = [-1, -1, -1]
    dims[channel_axis(name) - 1] = latent.image_channels if name.startswith("image") else latent.channels
    return Tensor(name, TYPES[UINT8 if name == "image_u8" else FLOAT32], dims, lines)


def _parameter(name: str, value: str) -> list[str]:
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    return [f'parameters {{ key: "{name}" value {{ string_value: "{quoted}" }} }}']


def _range(least: int, most: int) -> str:
    return f"{least}" if least == most else f"{least} to {most}"
