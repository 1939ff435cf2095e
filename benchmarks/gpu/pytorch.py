"""PyTorch in the GPU benchmark: eager, and torch.compile in a process of its own."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.measuring import BASE, DEVICE, Run, errors, row_of, take_turns
from vaedeploy.images.photos import crop_batch, load_photos
from vaedeploy.values.reference import Reference

COMPILED = (("decoder", 512, 1), ("decoder", 512, 4), ("encoder", 512, 1), ("decoder", 1024, 1))

ROOT = Path(__file__).parents[2]
"""The top folder of the repository, in which ``python -m benchmarks.gpu`` runs."""


COMPILE_SECONDS = 120
"""The time limit of one case of torch.compile, in seconds: its tuning takes minutes for some."""


TOLD = "torch.compile fp16, channels-last"
"""In the default mode."""


class Half(nn.Module):
    """One half of a VAE in one precision. Like its graph, it takes and gives float32, with scale and shift applied."""

    def __init__(self, reference: Reference, part: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
        super().__init__()
        bare = reference.encoder if part == "encoder" else reference.decoder
        self.bare = copy.deepcopy(bare).requires_grad_(False).to(DEVICE, dtype).to(memory_format=layout)
        self.part, self.dtype = part, dtype
        self.wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.scale, self.shift = reference.latent.scale, reference.latent.shift

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.wide)
        if self.part == "decoder":
            return self.bare((x / self.scale + self.shift).to(self.dtype)).to(self.wide)
        return (self.bare(x.to(self.dtype))[0].to(self.wide) - self.shift) * self.scale


def eager(half: nn.Module, x: Tensor, layout: torch.memory_format = torch.contiguous_format) -> Run:
    x = x.contiguous(memory_format=layout)

    @torch.no_grad()
    def call() -> Tensor:
        return half(x)

    return call


def waited_for(call: Run) -> Run:
    """The call, and then a wait for the GPU, as a program needs that hands the result on."""

    def wait() -> Tensor:
        result = call()
        if DEVICE == "cuda":
            torch.cuda.current_stream().synchronize()
        return result

    return wait


def modules(reference: Reference, part: str, x: Tensor) -> dict[str, Run]:
    plain, last = torch.contiguous_format, torch.channels_last
    return {
        BASE: eager(Half(reference, part, torch.float16, plain), x),
        "eager fp16, channels-last": eager(Half(reference, part, torch.float16, last), x, last),
        "eager bf16": eager(Half(reference, part, torch.bfloat16, plain), x),
    }


def compiled(
    reference: Reference, part: str, size: int, batch: int, rounds: int, fused: Callable[..., dict[str, Run]]
) -> list[dict[str, Any]]:
    """Time torch.compile, eager and what ``fused`` gives in turns, as rows of ``speed``.

    fused: takes the input and the output's shape, and returns calls by name.
    """
    x = inputs(reference, size, batch)[part]
    last = torch.channels_last
    tuned = torch.compile(Half(reference, part, torch.float16, last), fullgraph=True, dynamic=False)
    expected = exact(reference, part, x)
    compiled_call = eager(tuned, x, last)
    plain = eager(Half(reference, part, torch.float16, torch.contiguous_format), x)
    calls = {BASE: plain, TOLD: compiled_call, f"{TOLD}, waited for": waited_for(compiled_call)}
    calls |= fused(x, tuple(expected.shape))
    far = {name: errors(call(), expected) for name, call in calls.items()}
    times = take_turns(calls, rounds)
    return [row_of(part, size, batch, name, times, far[name]) | {"with": TOLD} for name in times]


def compiled_elsewhere(case: tuple[str, int, int], seconds: float, arguments: list[str]) -> list[dict[str, Any]]:
    """Run ``compiled`` in a process that is stopped after ``seconds``."""
    part, size, batch = case
    row = {"part": part, "size": size, "batch": batch, "name": TOLD}
    command = [sys.executable, "-m", "benchmarks.gpu", "--compiled", part, str(size), str(batch), *arguments]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=seconds, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return [row | {"failed": f"its tuning was not done after {seconds:.0f} s"}]
    if ended.returncode:
        return [row | {"failed": ended.stderr.strip()[-400:]}]
    return json.loads(ended.stdout.splitlines()[-1])


@torch.no_grad()
def inputs(reference: Reference, size: int, batch: int) -> dict[str, Tensor]:
    """{part: its input}: photographs, and the latents that the encoder makes of them in float64.

    The encoder runs one batch item at a time, since a batch of large ones would not fit into memory.
    """
    photos = torch.from_numpy(crop_batch(load_photos(), batch, size, size)).to(DEVICE)
    image = photos.permute(0, 3, 1, 2).float() / 127.5 - 1
    return {"encoder": image, "decoder": exact(reference, "encoder", image).float()}


@torch.no_grad()
def exact(reference: Reference, part: str, x: Tensor) -> Tensor:
    """PyTorch's result in float64, computed one batch item at a time."""
    half = Half(reference, part, torch.float64, torch.contiguous_format)
    return torch.cat([half(item) for item in x.split(1)])
