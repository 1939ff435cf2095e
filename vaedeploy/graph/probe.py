"""One run of each half on zeros, before it is traced: what breaks the contract is told in the contract's words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vaedeploy.errors import ExportError
from vaedeploy.values.interface import Interface
from vaedeploy.values.kinds import Part

if TYPE_CHECKING:
    from vaedeploy.values.reference import Reference


HINTS = {
    "AutoencoderKLOutput": ".latent_dist has .mean and .std",
    "AutoencoderTinyOutput": "return its .latents",
    "DecoderOutput": "return its .sample",
    "DiagonalGaussianDistribution": "return its .mean and .std",
}
"""What to do with the objects that diffusers' autoencoders give."""


def probe_part(reference: Reference, part: Part, batch: int, height: int, width: int) -> None:
    """Run one half of ``reference`` on zeros, for ``batch`` images of ``height`` x ``width`` pixels.

    Raises ExportError where the module is not in float32 on the CPU, fails, draws random numbers, or gives something
    else than the latent contract says.
    """
    module: nn.Module = getattr(reference, part)
    latent = reference.latent
    who = f"the {part} ({type(module).__name__})"
    _check_tensors(module, who)
    interface = Interface(part, latent)
    given, gives = interface.takes(batch, height, width).shape, interface.gives(batch, height, width)
    # Bytes and the check for NaN are the graph's, not the module's.
    names = interface.outputs if part == "encoder" else ("image",)
    expected = gives[names[0]].shape
    contract = f"the latent contract (channels={latent.channels}, factor={latent.factor}, sampled={latent.sampled})"
    for name, value in zip(names, _outputs(_run(module, given, who), names, who, contract), strict=True):
        if tuple(value.shape) != expected:
            raise ExportError(
                f"{who} gives {name} of shape {tuple(value.shape)} for an input of {given}; {contract} wants {expected}"
            )


def _check_tensors(module: nn.Module, who: str) -> None:
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):  # what a module keeps beside its tensors
            continue
        if tensor.device.type != "cpu":
            raise ExportError(f"{who} is on the device {tensor.device} ({name}); export takes the CPU: call .cpu()")
        if tensor.dtype.is_floating_point and tensor.dtype != torch.float32:
            raise ExportError(f"{who} is in {tensor.dtype} ({name}); export takes float32: call .float()")


def _run(module: nn.Module, shape: tuple[int, ...], who: str) -> object:
    with torch.random.fork_rng(devices=()), torch.no_grad():
        before = torch.get_rng_state()
        try:
            value: object = module.eval()(torch.zeros(shape))
        except Exception as error:
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise ExportError(f"{who} fails on a float32 input of {shape}: {reason}") from error
        if not torch.equal(before, torch.get_rng_state()):
            raise ExportError(
                f"{who} draws random numbers, and a graph must not. An encoder with a distribution gives (mean, std), "
                "and the runtime samples from that; a decoder takes any noise it needs as part of the latent"
            )
        return value


def _outputs(value: object, names: tuple[str, ...], who: str, contract: str) -> tuple[Tensor, ...]:
    wanted = "one tensor" if len(names) == 1 else "a tuple of two tensors, (mean, std)"
    outputs = value if len(names) > 1 else (value,)
    if isinstance(outputs, tuple) and len(outputs) == len(names) and all(isinstance(o, Tensor) for o in outputs):
        return outputs
    hint = _hint(value, len(names))
    raise ExportError(f"{who} gives {_kind(value)}; {contract} wants {wanted}" + (f": {hint}" if hint else ""))


def _hint(value: object, wanted: int) -> str | None:
    if isinstance(value, Tensor) and wanted == 2:
        return "split it into mean and std, or say sampled=False where there is no distribution"
    return HINTS.get(type(value).__name__)


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return "one tensor"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"an object of type {type(value).__name__}"
