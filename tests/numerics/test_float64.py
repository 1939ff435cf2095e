"""The float64 reference is PyTorch's own float64, to rounding."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from examples import at_most
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vaedeploy.numerics.float64 import _Deferred, _Float64Arithmetic, call_in_float64, conv3x3

# The transforms multiply by up to 8 and divide by up to 24: a hundred roundings of 1e-16 are plenty.
ROUNDING = 1e-13


def in_float64(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a copy of ``module`` in float64 gives, by PyTorch alone."""
    torch.set_default_dtype(torch.float64)
    try:
        return copy.deepcopy(module).double()(x.clone())
    finally:
        torch.set_default_dtype(torch.float32)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@at_most(30)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 9),
    outputs=st.integers(1, 9),
    height=st.integers(1, 41),
    width=st.integers(1, 41),
    seed=st.integers(0, 2**31),
)
def test_convolution_is_torchs(batch: int, channels: int, outputs: int, height: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(outputs, channels, 3, 3, generator=generator, dtype=torch.float64)
    bias = torch.randn(outputs, generator=generator, dtype=torch.float64)
    error = conv3x3(x, weight, bias) - F.conv2d(x, weight, bias, padding=1)
    # Beside the sums of magnitudes: of results that cancel to nearly nothing, roundings are any share.
    assert error.norm() < ROUNDING * F.conv2d(x.abs(), weight.abs(), bias.abs(), padding=1).norm()


def test_convolution_in_many_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that does not fit one strip, with a last strip that is not full."""
    monkeypatch.setattr("vaedeploy.numerics.winograd.STRIP_ELEMENTS", 2000)
    x, weight = torch.randn(2, 3, 50, 37, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    assert relative(conv3x3(x, weight), F.conv2d(x, weight, padding=1)) < ROUNDING


class InPlace(nn.Module):
    """Changes what it has computed, by methods, operators and assignment."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.GroupNorm(4, 8),
            nn.Conv2d(8, 6, 3, padding=1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.first(x)
        first.mul_(2.0)
        kept = normal = self.norm(first)
        normal.add_(first)
        normal[:, 0] = 0.5
        normal *= 3.0
        return self.last(F.relu_(kept))


class Written(nn.Module):
    """One way of changing a tensor that something else holds."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.norm, self.last = way, nn.GroupNorm(3, 6), nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([x, x + 1], dim=1)
        h = self.norm(x)
        match self.way:
            case "source":
                x.add_(1)
            case "view":
                h[:, :2].mul_(2)
            case "buffer":
                h = torch.zeros(x.shape)
                h[:, :2].copy_(x[:, :2])
            case "silu":
                h = F.silu(h, inplace=True) + h
            case "relu":
                h = F.relu(h, inplace=True) + h
            case "out":
                torch.mul(x, 2.0, out=h)
            case "divided":
                z = x / 1.0
                z.add_(1)
                h = h + x + z
        return self.last(h)


WAYS = ("source", "view", "buffer", "silu", "relu", "out", "divided")

MODULES = {
    **{f"written to: {way}": Written(way) for way in WAYS},
    "in place": InPlace(),
    "ends put off": nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Upsample(scale_factor=2.0)),
    "normalised": nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 6, 3, padding=1)
    ),
    "not before a convolution": nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Flatten(2), nn.Softmax(2)
    ),
    "without weights": nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(4, 4, affine=False), nn.Conv2d(4, 2, 1)
    ),
    "strided and padded": nn.Conv2d(3, 5, (5, 3), stride=(3, 2), padding=(2, 1)),
    "strided": nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 8, 3, stride=2), nn.Tanh()),
    "dilated": nn.Sequential(nn.Conv2d(3, 8, 3, dilation=2, padding=2), nn.Conv2d(8, 8, 3, dilation=2)),
    "grouped": nn.Conv2d(3, 6, 3, padding=1, groups=3),
    "same": nn.Conv2d(3, 6, 3, padding="same"),
    "reflected": nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"),
    "transposed": nn.ConvTranspose2d(3, 4, 4, stride=2, padding=1),
    "upsampled": nn.Sequential(nn.Upsample(scale_factor=2.0, mode="nearest"), nn.Conv2d(3, 5, 3, padding=1)),
}


@pytest.mark.parametrize("worthwhile", [1, 10**9], ids=["winograd", "direct"])
@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_modules_compute_as_their_float64_copies(
    module: nn.Module, worthwhile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vaedeploy.numerics.float64.WORTHWHILE", worthwhile)
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 3, 26, 30, dtype=torch.float64)
    with torch.no_grad():
        expected = in_float64(module, x)
        (found,) = call_in_float64(module, x)
    assert found.dtype == torch.float64
    assert type(found) is torch.Tensor
    assert relative(found, expected) < ROUNDING


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_large_results_are_rounded_once(module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """As at 512x512, with a size that is large here: each operation's result is rounded to float32, 6e-8 of it."""
    monkeypatch.setattr("vaedeploy.numerics.float64.LARGE", 1000)
    monkeypatch.setattr("vaedeploy.numerics.float64.WORTHWHILE", 1)
    monkeypatch.setattr("vaedeploy.numerics.winograd.STRIP_ELEMENTS", 3000)
    monkeypatch.setattr("vaedeploy.numerics.float64.STRIP_ELEMENTS", 3000)
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 3, 26, 30, dtype=torch.float64)
    residual = nn.Conv2d(3, 3, 1)
    with torch.no_grad():
        expected = in_float64(Residual(module, residual), x)
        (found,) = call_in_float64(Residual(module, residual), x)
    assert relative(found.double(), expected) < 5e-7  # up to six operations, whose random kernels cancel somewhat


class Residual(nn.Module):
    def __init__(self, module: nn.Module, residual: nn.Module) -> None:
        super().__init__()
        self.module, self.residual = module, residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module((self.residual(x) + x) / 1.0)


def test_what_is_put_off_is_never_whole() -> None:
    """Normalisation, SiLU and upsampling: the memory that this saves is why they are put off."""
    x, norm = torch.randn(1, 8, 16, 16, dtype=torch.float64), nn.GroupNorm(2, 8)
    with _Float64Arithmetic():
        for value in (
            F.group_norm(x, 2),
            F.silu(F.group_norm(x, 2)),
            F.interpolate(x, scale_factor=2.0),
            norm(x),
            F.dropout(norm(x), training=False),
        ):
            assert isinstance(value, _Deferred)
        assert not isinstance(F.interpolate(x, scale_factor=2.0, mode="bilinear"), _Deferred)
        assert not isinstance(F.interpolate(x, scale_factor=3.0), _Deferred)


def test_what_is_put_off_can_be_in_a_list() -> None:
    x = torch.randn(2, 4, 6, 10, dtype=torch.float64)
    with _Float64Arithmetic():
        found = torch.cat([F.group_norm(x, 2), x], dim=1)
    assert relative(found, torch.cat([F.group_norm(x, 2), x], dim=1)) < ROUNDING


def test_module_is_left_alone() -> None:
    module = nn.Conv2d(3, 4, 3, padding=1)
    before = copy.deepcopy(module.state_dict())
    call_in_float64(module, torch.randn(1, 3, 8, 8, dtype=torch.float64))
    for name, tensor in module.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name])


def test_float32_is_not_good_enough_to_be_the_reference() -> None:
    """The test's own resolution: the same module in float32 is a million times farther off."""
    module = MODULES["normalised"]
    x = torch.randn(2, 3, 26, 30, dtype=torch.float64)
    with torch.no_grad():
        expected = copy.deepcopy(module).double()(x)
        assert relative(module(x.float()).double(), expected) > 1e6 * ROUNDING
