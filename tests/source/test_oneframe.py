"""One frame of a 3-D convolution is a 2-D one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vaedeploy.source.oneframe import NearestDouble, frame_convolution


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("index", [-1, 1], ids=["causal", "centred"])
def test_convolution_of_one_frame(index: int, stride: int, bias: bool) -> None:
    torch.manual_seed(0)
    whole = nn.Conv3d(4, 6, (3, 3, 5), stride=(1, stride, stride), groups=2, bias=bias).double()
    x = torch.randn(2, 4, 9, 12, dtype=torch.float64)
    before, after = (2, 0) if index == -1 else (1, 1)
    expected = whole(nn.functional.pad(x[:, :, None], (2, 2, 1, 1, before, after)))[:, :, 0]
    flat = frame_convolution(whole, index, (1, 2))
    assert isinstance(flat, nn.Conv2d)
    torch.testing.assert_close(flat(x), expected, rtol=0, atol=1e-15)


def test_convolution_draws_no_random_numbers() -> None:
    whole = nn.Conv3d(2, 2, 3)
    before = torch.get_rng_state()
    frame_convolution(whole, -1, (0, 0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (64, 33)])
def test_nearest_is_nearest_exact_at_twice_the_size(size: tuple[int, int]) -> None:
    x = torch.randn(1, 2, *size, dtype=torch.float64)
    exact = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest-exact")
    assert torch.equal(NearestDouble()(x), exact)
