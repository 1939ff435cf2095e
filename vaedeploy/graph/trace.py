"""Reference -> Graph: traces each half of a VAE to ONNX, with the latent contract in the graph."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import TYPE_CHECKING, get_args

import msgspec
import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from vaedeploy.errors import ExportError, InputError
from vaedeploy.graph.graph import Graph
from vaedeploy.graph.heads import OneHead
from vaedeploy.graph.probe import probe_part
from vaedeploy.graph.simplify import simplify
from vaedeploy.system.torch_state import plain_torch
from vaedeploy.values import interface as interfaces
from vaedeploy.values.interface import Interface, spatial_axes
from vaedeploy.values.kinds import ImageInput, Part
from vaedeploy.values.latent import LatentSpec
from vaedeploy.values.reference import eval_mode
from vaedeploy.values.trials import trial_latents
from vaedeploy.version import __version__

if TYPE_CHECKING:
    from vaedeploy.values.reference import Reference


OPSET = 20
"""The opset of traced graphs, not a newer one: GroupNormalization (21) is slower in ONNX Runtime, and Attention (23)
does not build in TensorRT.
"""

TRACE_BATCH = 2
"""The batch that is traced. The tracer would take 1 as a constant."""

TRACE_LATENT = (8, 12)
"""Height and width of the traced latent. They differ, so that the tracer does not take them as one size."""

log = logging.getLogger(__name__)


class EncoderGraph(nn.Module):
    """The encoder with the latent contract: it takes pixels and gives latents as the diffusion model sees them."""

    def __init__(self, encoder: nn.Module, latent: LatentSpec, image_input: ImageInput) -> None:
        super().__init__()
        self.encoder = encoder
        self.scale, self.shift = per_channel(latent.scale), per_channel(latent.shift)
        self.sampled, self.image_input = latent.sampled, image_input

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.image_input == "uint8":  # cast first: TensorRT refuses to transpose uint8
            image = image.to(torch.float32).permute(0, 3, 1, 2) / 127.5 - 1
        if not self.sampled:
            latent: Tensor = self.encoder(image)
            return (latent.to(torch.float32) - self.shift) * self.scale
        mean, std = self.encoder(image)
        return (mean.to(torch.float32) - self.shift) * self.scale, std.to(torch.float32) * abs(self.scale)


class DecoderGraph(nn.Module):
    """The decoder with the latent contract: it takes latents as the diffusion model sees them, and gives the image in
    floats, the image in bytes, and whether the floats are finite.
    """

    def __init__(self, decoder: nn.Module, latent: LatentSpec) -> None:
        super().__init__()
        self.decoder = decoder
        self.scale, self.shift = per_channel(latent.scale), per_channel(latent.shift)

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        image = self.decoder(latent / self.scale + self.shift).to(torch.float32)
        levels = ((image + 1) * 127.5).round().clamp(0, 255)
        # Levels are transposed before the cast, since TensorRT refuses to transpose uint8. Broken values are counted in
        # float32, since ONNX Runtime's CUDA provider, in some versions, has no minimum operator for opset 20.
        broken = torch.isfinite(image).logical_not().flatten(1).sum(1, dtype=torch.float32)
        return image, levels.permute(0, 2, 3, 1).to(torch.uint8), broken == 0


def per_channel(value: float | tuple[float, ...]) -> float | Tensor:
    """A scale or shift in a shape that broadcasts over a (B, C, h, w) latent."""
    return torch.tensor(value).reshape(1, -1, 1, 1) if isinstance(value, tuple) else value


def trace_graph(reference: Reference, part: Part, *, image_input: ImageInput = "float") -> Graph:
    """Trace one half of ``reference`` to ONNX, opset 20, with dynamic batch, height and width.

    The modules must be in float32 on the CPU; see ``Interface`` for names, shapes and value ranges. Until the graph is
    saved, its weights share the module's memory.

    Raises ExportError where a module breaks the latent contract, where torch cannot trace it, and where the batch,
    height or width became constant while tracing; InputError for any other ``image_input``.
    """
    if image_input not in get_args(ImageInput):
        raise InputError(f"image_input is {image_input!r}; it must be 'float' or 'uint8'")
    interface = Interface(part, reference.latent, image_input)
    factor = reference.latent.factor
    height, width = (latents * factor for latents in TRACE_LATENT)
    module: nn.Module
    with plain_torch(), eval_mode(getattr(reference, part)):
        # The probe computes, which tracing does not.
        probe_part(reference, part, TRACE_BATCH, *(trial_latents(latents, factor) * factor for latents in TRACE_LATENT))
        if part == "encoder":
            module = EncoderGraph(reference.encoder, reference.latent, image_input)
        else:
            module = DecoderGraph(reference.decoder, reference.latent)
        model = _trace(module.eval(), interface, interface.takes(TRACE_BATCH, height, width))
    _name_sizes(model, part)
    _check_sizes(model, part)
    _describe(model, part, reference)
    return Graph(model, part)


def _trace(module: nn.Module, interface: Interface, example: interfaces.Tensor) -> ir.Model:
    dynamic = dict.fromkeys((0, *spatial_axes(interface.input)), torch.export.Dim.DYNAMIC)
    part = interface.part
    try:
        with _quiet(), OneHead():
            program = torch.onnx.export(
                module,
                (torch.from_numpy(np.zeros(example.shape, example.dtype)),),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=(dynamic,),
                input_names=[interface.input],
                output_names=interface.outputs,
                verbose=False,
                optimize=False,  # it would drop constants of the model: see simplify
            )
            assert program is not None  # only the old exporter returns None
            simplify(program.model)
    except Exception as error:
        # The first lines say what is wrong and where; the rest is advice on changing PyTorch code.
        reason = " ".join(" ".join(str(error.__cause__ or error).split("\n")[:3]).split()).rstrip(".:")
        raise ExportError(
            f"torch could not trace the {part} ({type(module.get_submodule(part)).__name__}) to ONNX: {reason}. "
            "The exporter's own report is this error's cause; the command line shows it with: vaedeploy --verbose"
        ) from error
    return program.model


def _name_sizes(model: ir.Model, part: Part) -> None:
    """Rename the tracer's symbols (such as s59) to batch, height and width, or latent_height and latent_width."""
    shape = model.graph.inputs[0].shape
    assert shape is not None
    spatial = [d for d in list(shape)[1:] if isinstance(d, ir.SymbolicDim)]
    names = ("height", "width") if part == "encoder" else ("latent_height", "latent_width")
    new_names = {str(shape[0]): "batch"} | {str(d): name for d, name in zip(spatial, names, strict=True)}
    symbol = re.compile(r"\b(" + "|".join(map(re.escape, new_names)) + r")\b")
    for value in _values(model):
        if value.shape is not None:
            value.shape = ir.Shape([_rename_dim(d, symbol, new_names) for d in value.shape])


def _rename_dim(dim: int | ir.SymbolicDim, symbol: re.Pattern[str], names: dict[str, str]) -> int | str | None:
    if isinstance(dim, int) or dim.value is None:
        return dim if isinstance(dim, int) else None
    return symbol.sub(lambda match: names[match[1]], dim.value)


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    for node in model.graph:
        yield from node.outputs


def _check_sizes(model: ir.Model, part: Part) -> None:
    """Refuse a module whose output has a constant batch, height or width."""
    first = model.graph.outputs[0]
    batch, _, height, width = first.shape or ir.Shape([None] * 4)
    sizes = {"batch": batch, "height": height, "width": width}
    constants = [name for name, size in sizes.items() if isinstance(size, int)]
    if constants:
        raise ExportError(f"the {part} gives {first.name} whose {', '.join(constants)} became constant while tracing")


def _describe(model: ir.Model, part: Part, reference: Reference) -> None:
    """Record in the model what it is, and remove metadata that depends on the machine that traced it."""
    for node in model.graph:
        for key in [k for k in node.metadata_props if k.endswith(("stack_trace", "fx_node"))]:
            del node.metadata_props[key]
    model.producer_name, model.producer_version = "vaedeploy", __version__
    model.graph.name = f"{reference.name} {part}"
    model.metadata_props.clear()
    model.metadata_props.update(
        {
            "vaedeploy.version": __version__,
            "vaedeploy.part": part,
            "vaedeploy.preset": reference.origin.preset or "",
            "vaedeploy.weights_sha256": reference.origin.sha256 or "",
            "vaedeploy.identity": reference.identity,
            "vaedeploy.latent": msgspec.json.encode(reference.latent).decode(),
        }
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's warnings, logs and prints off the terminal, unless this package's own log is at DEBUG."""
    if log.isEnabledFor(logging.DEBUG):
        yield
        return
    before = logging.root.manager.disable
    # Failures arrive as exceptions; torch logs some of them as errors as well.
    logging.disable(logging.CRITICAL)
    try:
        # torch prints the graph of a module that it cannot trace to stderr, past every log.
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
