"""Presets: what each states, and what is refused."""

from __future__ import annotations

import re

import msgspec
import pytest

from vaedeploy.errors import UnknownPresetError
from vaedeploy.source.network import tensor_shapes
from vaedeploy.source.preset import Preset, architectures, get_preset, preset_of_file, presets, unknown_preset
from vaedeploy.values.latent import LatentSpec
from vaedeploy.values.presets import preset_names

NAMES = [
    "mse840k", "ema560k", "sd15", "anime2", "sdxl", "sdxl-fp16-fix", "sd3", "flux1",
    "flux2", "flux2-small-decoder", "ernie-image", "ideogram4", "fibo2",
    "taesd", "taesdxl", "taesd3", "taef1",
    "dc-ae-f32c32", "dc-ae-f32c32-sana-1.0", "dc-ae-f64c128", "dc-ae-f128c512", "hunyuanimage",
    "qwen-image", "qwen-image-layered", "qwen-image-2.1", "wan-2.1", "wan-2.2",
    "kandinsky22", "kandinsky3", "stable-cascade", "asymmetric-x1.5", "asymmetric-x2", "svd",
    "kvae-2d",
    "demo", "demo-mse",
]  # fmt: skip
ALL = len(NAMES)
CARRIED = ("demo", "demo-mse")
SEE_THROUGH = ("qwen-image-layered", "qwen-image-2.1")


def test_the_names_alone_are_those_of_the_presets() -> None:
    assert preset_names() == tuple(presets())


def test_presets_are_those_that_are_documented() -> None:
    assert list(presets()) == NAMES
    assert [preset.name for preset in presets().values()] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_latent_contract_agrees_with_the_architecture(name: str) -> None:
    preset = get_preset(name)
    assert not preset.config.differences(architectures()[preset.architecture])
    shape = preset.latent_shape
    assert shape.image_channels == (4 if name in SEE_THROUGH else 3)
    if preset.latent is not None:
        numbers = preset.latent.scale, preset.latent.shift
        assert preset.latent == LatentSpec(shape.channels, shape.factor, *numbers, shape.sampled, shape.image_channels)


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_says_what_it_is_for_and_where_its_weights_are(name: str) -> None:
    preset = get_preset(name)
    assert re.fullmatch(r"(realism|reference|anime|fidelity|speed|preview|trial): \S.*", preset.purpose)
    assert preset.licence
    assert (preset.repository is None) == (name in CARRIED)
    assert (preset.packaged_file is not None) == (name in CARRIED)
    for sha256 in (preset.sha256, *preset.also_sha256):
        assert sha256 is None or re.fullmatch("[0-9a-f]{64}", sha256)


@pytest.mark.parametrize(
    ("name", "scale", "shift"),
    [
        ("mse840k", 0.18215, 0.0),
        ("anime2", 0.18215, 0.0),
        ("sdxl", 0.13025, 0.0),
        ("sdxl-fp16-fix", 0.13025, 0.0),
        ("sd3", 1.5305, 0.0609),
        ("flux1", 0.3611, 0.1159),
    ],
)
def test_published_contracts(name: str, scale: float, shift: float) -> None:
    latent = get_preset(name).latent
    assert latent is not None
    assert latent == LatentSpec(latent.channels, 8, scale, shift, sampled=True)
    assert latent.channels == (16 if shift else 4)


def test_sizes_of_the_stable_diffusion_vae() -> None:
    """34.16 M parameters in the encoder and 49.49 M in the decoder, each with its quant convolution."""
    shapes = tensor_shapes(get_preset("mse840k").config)
    counts = {"encoder": 0, "decoder": 0, "quant_conv": 0, "post_quant_conv": 0}
    for name, shape in shapes.items():
        size = 1
        for side in shape:
            size *= side
        counts[name.split(".")[0]] += size
    assert counts == {"encoder": 34_163_592, "decoder": 49_490_179, "quant_conv": 72, "post_quant_conv": 20}


@pytest.mark.parametrize("name", ["sd3", "flux1"])
def test_sixteen_channel_vaes_have_no_quant_convolutions(name: str) -> None:
    shapes = tensor_shapes(get_preset(name).config)
    assert not any("quant_conv" in tensor for tensor in shapes)
    assert shapes["decoder.conv_in.weight"] == (512, 16, 3, 3)
    assert shapes["encoder.conv_out.weight"] == (32, 512, 3, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mse840", f"no preset is named 'mse840'; the nearest are: mse840k. To see all {ALL}: vaedeploy presets"),
        ("sdlx", f"no preset is named 'sdlx'; the nearest are: sdxl. To see all {ALL}: vaedeploy presets"),
        ("Demo", f"no preset is named 'Demo'; the nearest are: demo, demo-mse. To see all {ALL}: vaedeploy presets"),
        ("SDXL", f"no preset is named 'SDXL'; the nearest are: sdxl, taesdxl. To see all {ALL}: vaedeploy presets"),
        ("FLUX", f"no preset is named 'FLUX'; the nearest are: flux2, flux1. To see all {ALL}: vaedeploy presets"),
        ("vqgan", f"no preset is named 'vqgan'. To see all {ALL}: vaedeploy presets"),
        ("", f"no preset is named ''. To see all {ALL}: vaedeploy presets"),
    ],
)
def test_unknown_preset_names_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UnknownPresetError) as caught:
        get_preset(name)
    assert str(caught.value) == message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("stable-diffusion-xl", ["sdxl"]),
        ("stable-diffusion-xl-base-1.0", ["sdxl"]),
        ("stable-diffusion-v1-5", ["sd15"]),
        ("Stable Diffusion 3.5", ["sd3"]),
        ("stable-video-diffusion", ["svd"]),
        ("sdxl-vae", ["sdxl"]),
        ("sd-1.5", ["sd15"]),
        ("sd-vae-ft-mse", ["mse840k"]),
        ("vae-ft-mse-840000", ["mse840k"]),
        ("sana", ["dc-ae-f32c32", "dc-ae-f32c32-sana-1.0"]),
        ("flux", ["flux2", "flux1"]),
        ("my-vae", []),
    ],
)
def test_a_preset_is_known_by_the_name_of_its_model(name: str, meant: list[str]) -> None:
    hint = f"; the nearest are: {', '.join(meant)}" if meant else ""
    assert str(unknown_preset(name)) == f"no preset is named '{name}'{hint}. To see all {ALL}: vaedeploy presets"


def test_files_are_known_by_their_hash() -> None:
    assert preset_of_file("c6a580b13a5bc05a5e16e4dbb80608ff2ec251a162311590c1f34c013d7f3dab") == get_preset("mse840k")
    assert preset_of_file("63aeecb90ff7bc1c115395962d3e803571385b61938377bc7089b36e81e92e2e") == get_preset("sdxl")
    assert preset_of_file("0" * 64) is None


def test_no_file_is_claimed_by_two_presets() -> None:
    claimed = [sha for p in presets().values() for sha in (p.sha256, *p.also_sha256) if sha is not None]
    assert len(claimed) == len(set(claimed)) > 6


def test_unknown_keys_are_refused() -> None:
    table = msgspec.to_builtins(get_preset("demo")) | {"config": {}, "licens": "MIT"}
    with pytest.raises(msgspec.ValidationError, match="unknown field `licens`"):
        msgspec.convert(table, Preset)
