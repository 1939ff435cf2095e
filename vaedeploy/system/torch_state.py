"""PyTorch's process-wide settings, put aside while this package computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def plain_torch() -> Iterator[None]:
    """Context in which PyTorch computes in float32 on the CPU, whatever the caller has set.

    The default dtype, the default device, inference mode and autocast would otherwise reach weights and graphs.
    """
    import torch

    dtype = torch.get_default_dtype()
    try:
        if dtype != torch.float32:  # other threads see it as well
            torch.set_default_dtype(torch.float32)
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            stack.enter_context(torch.device("cpu"))
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            yield
    finally:
        if dtype != torch.float32:
            torch.set_default_dtype(dtype)
