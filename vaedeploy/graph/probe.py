"""Runs each half on zeros before it is traced, so that an error says which part of the latent contract is broken."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vaedeploy.errors import ExportError
from vaedeploy.graph.broken import broken_tensor
from vaedeploy.values.interface import Interface
from vaedeploy.values.kinds import Part
from vaedeploy.values.latent import RGB
from vaedeploy.values.reference import eval_mode

if TYPE_CHECKING:
    from vaedeploy.values.reference import Reference


HINTS = {
    "AutoencoderKLOutput": ".latent_dist has .mean and .std",
    "AutoencoderTinyOutput": "return its .latents",
    "DecoderOutput": "return its .sample",
    "DiagonalGaussianDistribution": "return its .mean and .std",
}
"""Type of an object that diffusers' autoencoders return -> how to get tensors from it, for error messages."""


TRIED = (64, 128, 224, 256, 384, 512)
"""Sides in pixels of the square images on which a half is tried, smallest first, if it fails on another size. Models of
one size have one of these; larger ones would take long.
"""


def probe_part(reference: Reference, part: Part, batch: int, height: int, width: int) -> None:
    """Run one half of ``reference`` on zeros, for ``batch`` images of ``height`` x ``width`` pixels.

    Raises ExportError where the module is not in float32 on the CPU, fails, draws random numbers, or breaks the latent
    contract.
    """
    module: nn.Module = getattr(reference, part)
    _check_tensors(module, _label(module, part))
    try:
        _probe(reference, part, batch, height, width)
    except _SizeError as error:
        told, taken = str(error), _taken(reference, part, batch, height, width)
        if taken is not None:
            told += (
                f". It takes one of {taken}, but a bundle takes any batch, and any height and width that are multiples "
                f"of {reference.latent.factor} pixels: let what fixes the size, such as a position embedding or a "
                "view, follow the input"
            )
        raise ExportError(told) from error


class _SizeError(Exception):
    """A failure that another size may not have."""


def _taken(reference: Reference, part: Part, batch: int, height: int, width: int) -> tuple[int, ...] | None:
    """The shape of an input that a half takes, if it does not take the one asked for; None if none was found."""
    factor = reference.latent.factor
    sides = (-(-side // factor) * factor for side in TRIED)
    for size in ((1, height, width), *((batch, side, side) for side in sides)):
        with suppress(ExportError, _SizeError):
            _probe(reference, part, *size)
            return Interface(part, reference.latent).takes(*size).shape
    return None


def _label(module: nn.Module, part: Part) -> str:
    return f"the {part} ({type(module).__name__})"


def _probe(reference: Reference, part: Part, batch: int, height: int, width: int) -> None:
    module: nn.Module = getattr(reference, part)
    latent, label = reference.latent, _label(module, part)
    interface = Interface(part, latent)
    input_shape, gives = interface.takes(batch, height, width).shape, interface.gives(batch, height, width)
    # The graph adds the bytes and the check for NaN; the module gives only the float image.
    names = interface.outputs if part == "encoder" else ("image",)
    expected = gives[names[0]].shape
    images = f", image_channels={latent.image_channels}" if latent.image_channels != RGB else ""
    contract = (
        f"the latent contract (channels={latent.channels}, factor={latent.factor}, sampled={latent.sampled}{images})"
    )
    outputs = _outputs(_run(module, input_shape, label), names, label, contract)
    for name, value in zip(names, outputs, strict=True):
        if tuple(value.shape) != expected:
            raise _SizeError(
                f"{label} gives {name} of shape {tuple(value.shape)} for an input of {input_shape}; "
                f"{contract} wants {expected}"
            )
    # Zeros alone prove nothing, since a module may divide by a norm.
    if not all(output.isfinite().all() for output in outputs) and (tensor := broken_tensor(module)):
        raise ExportError(f"{label} gives NaN or infinity, and has {tensor}. Load or train it again")
    if part == "encoder" and len(outputs) > 1:
        check_deviation(float(outputs[1].min()), label)


def check_deviation(least: float, label: str) -> None:
    """Raise ExportError if ``least``, the least of an encoder's standard deviations, is below 0. label: the
    encoder's.
    """
    if least < 0:
        raise ExportError(
            f"{label} gives a standard deviation of {least:.3g}, and it cannot be negative. If it gives log-variances, "
            "give exp(0.5 * logvar) in their place: the encoder returns (mean, std)"
        )


def _check_tensors(module: nn.Module, label: str) -> None:
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):  # extra state beside a module's tensors
            continue
        if tensor.device.type != "cpu":
            raise ExportError(f"{label} is on the device {tensor.device} ({name}); export takes the CPU: call .cpu()")
        if tensor.dtype.is_floating_point and tensor.dtype != torch.float32:
            raise ExportError(f"{label} is in {tensor.dtype} ({name}); export takes float32: call .float()")


def _run(module: nn.Module, shape: tuple[int, ...], label: str) -> object:
    with torch.random.fork_rng(devices=()), torch.no_grad(), eval_mode(module):
        before = torch.get_rng_state()
        try:
            value: object = module(torch.zeros(shape))
        except Exception as error:
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise _SizeError(f"{label} fails on a float32 input of {shape}: {reason}") from error
        if not torch.equal(before, torch.get_rng_state()):
            raise ExportError(
                f"{label} draws random numbers, and a graph must not. An encoder with a distribution gives "
                "(mean, std), and the runtime samples from that; a decoder takes any noise it needs as part of the "
                "latent"
            )
        return value


def _outputs(value: object, names: tuple[str, ...], label: str, contract: str) -> tuple[Tensor, ...]:
    wanted = "one tensor" if len(names) == 1 else "a tuple of two tensors, (mean, std)"
    outputs = value if len(names) > 1 else (value,)
    if isinstance(outputs, tuple) and len(outputs) == len(names) and all(isinstance(o, Tensor) for o in outputs):
        return outputs
    hint = _hint(value, len(names))
    raise ExportError(f"{label} gives {_kind(value)}; {contract} wants {wanted}" + (f": {hint}" if hint else ""))


def _hint(value: object, outputs: int) -> str | None:
    if isinstance(value, Tensor) and outputs == 2:
        return "split it into mean and std, or say sampled=False where there is no distribution"
    return HINTS.get(type(value).__name__)


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return "one tensor"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"an object of type {type(value).__name__}"
