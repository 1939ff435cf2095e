"""Attention without an axis of heads is exported, and computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaedeploy.graph.graph import save_graph
from vaedeploy.graph.trace import trace_graph
from vaedeploy.rewrite import rewrite_graph
from vaedeploy.values.latent import LatentSpec
from vaedeploy.values.reference import Reference


class Attends(nn.Module):
    """A decoder that attends over all pixels of a latent, or over its items where ``axes`` is 2."""

    def __init__(self, axes: int, mask_axes: int = 0, **options: Any) -> None:
        super().__init__()
        self.axes, self.mask_axes, self.options = axes, mask_axes, options

    def forward(self, latent: Tensor) -> Tensor:
        tokens = latent.flatten(2).transpose(1, 2)
        shape = tokens.shape
        if self.axes == 2:
            tokens = tokens.flatten(0, 1)
        mask = None
        if self.mask_axes:
            mask = (tokens @ tokens.transpose(-1, -2)).sin()
            mask = mask[0] if self.mask_axes == 2 and mask.ndim == 3 else mask
        attended = F.scaled_dot_product_attention(tokens, tokens, value=tokens * 2, attn_mask=mask, **self.options)
        return attended.reshape(shape).transpose(1, 2).reshape(latent.shape)[:, :3]


@pytest.mark.parametrize(
    ("module", "rewritten"),
    [
        (Attends(3), True),
        (Attends(3, mask_axes=3), False),
        (Attends(3, mask_axes=2), False),
        (Attends(3, is_causal=True, scale=0.5), False),
        (Attends(2), True),
    ],
    ids=["3", "3, masked", "3, one mask", "3, causal", "2"],
)
def test_attention_of_fewer_axes_is_that_of_pytorch(tmp_path: Path, module: nn.Module, rewritten: bool) -> None:
    """rewritten: whether the rules for attention take it; they leave masks alone."""
    reference = Reference(nn.Identity(), module, LatentSpec(channels=4, factor=1, scale=1.0))
    graph = trace_graph(reference, "decoder")
    for target, precision, rule in (("onnxruntime", "fp32", "chunk"), ("onnxruntime-cuda", "fp16", "fuse")):
        outcomes = {o.rule: o.matches for o in rewrite_graph(graph, target, precision).outcomes}
        assert outcomes[f"{rule}_attention"] == rewritten
    save_graph(graph, tmp_path / "decoder.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "decoder.onnx", providers=["CPUExecutionProvider"])
    latent = torch.randn((3, 4, 5, 7), generator=torch.Generator().manual_seed(0))
    (image,) = session.run(["image"], {"latent": latent.numpy()})
    # Sums of up to 105 numbers of about 1, in another order: some units in the last place of float32, 6e-8.
    np.testing.assert_allclose(image, module(latent).numpy(), rtol=1e-5, atol=1e-6)
