"""Weights that do not fit the architecture that they are loaded into."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest
import torch
from checkpoints import (
    DEMO,
    DEMO_CONFIG,
    FITS_NOT,
    MORE,
    NAMINGS,
    changed,
    compvis,
    config_of,
    exported_compvis,
    folder,
    message_of,
    write_safetensors,
)
from torch import Tensor

from vaedeploy.errors import WeightsError
from vaedeploy.source import load_reference
from vaedeploy.source.fit import fit
from vaedeploy.source.network import tensor_shapes
from vaedeploy.source.preset import architectures
from vaedeploy.source.stored import Stored


@pytest.mark.parametrize("naming", ["diffusers", "compvis"])
def test_missing_surplus_and_misshapen_tensors_are_listed(
    tmp_path: Path, tensors: dict[str, Tensor], naming: str
) -> None:
    wrong = NAMINGS[naming](tensors)
    del wrong["quant_conv.bias"], wrong["encoder.conv_in.weight"]
    wrong["extra.weight"] = torch.zeros(1)
    wrong["decoder.conv_in.bias"] = torch.zeros(64)
    file = write_safetensors(wrong, tmp_path / "vae.safetensors")
    assert message_of(WeightsError, "demo", file) == (
        f"{file} {FITS_NOT} 2 tensors missing (encoder.conv_in.weight, quant_conv.bias); "
        "1 tensor surplus (extra.weight); "
        f"1 tensor of the wrong shape (decoder.conv_in.bias: expected (128,), given (64,)). {MORE}"
    )


def test_weights_of_another_architecture(tmp_path: Path) -> None:
    file = write_safetensors(changed(DEMO.config, layers_per_block=1), tmp_path / "vae.safetensors")
    names = [
        name
        for name in tensor_shapes(DEMO.config)
        if re.search(r"(down_blocks.*resnets\.1|up_blocks.*resnets\.2)", name)
    ]
    assert message_of(WeightsError, "demo", file) == (
        f"{file} {FITS_NOT} {len(names)} tensors missing ({', '.join(names[:3])} and {len(names) - 3} more). {MORE}"
    )


def test_lone_file_of_no_known_architecture(tmp_path: Path) -> None:
    file = write_safetensors(
        compvis(changed(DEMO.config, use_quant_conv=False, use_post_quant_conv=False)), tmp_path / "vae.safetensors"
    )
    assert message_of(WeightsError, file) == (
        f"{file} fits none of the known architectures ({', '.join(architectures())}). "
        "The nearest is demo: 4 tensors missing (quant_conv.weight, quant_conv.bias, post_quant_conv.weight "
        "and 1 more). "
        "A VAE of another shape loads from a diffusers folder with its config.json; to put these weights into it: "
        f"FOLDER --weights {file}"
    )


def test_a_file_beside_its_config_says_to_give_the_folder(tmp_path: Path) -> None:
    tensors = changed(DEMO.config, use_quant_conv=False, use_post_quant_conv=False)
    config = msgspec.structs.replace(DEMO.config, use_quant_conv=False, use_post_quant_conv=False)
    where = folder(tmp_path / "vae a", config_of(config, **DEMO_CONFIG), tensors)
    file = where / "diffusion_pytorch_model.safetensors"
    line = f"vaedeploy export '{where}'"
    fits = f"{file} fits none of the architectures that are known by their tensors, but config.json is beside it: "
    assert message_of(WeightsError, file) == fits + line
    assert load_reference(where).latent == DEMO.latent
    assert message_of(WeightsError, "demo", file).endswith(
        f". They fit no preset, but config.json is beside it: {line}"
    )
    other = write_safetensors(tensors, where / "mine.safetensors")
    assert message_of(WeightsError, other).endswith(f" is beside it: {line} --weights '{other}'")
    assert load_reference(where, other).latent == DEMO.latent
    # A config that is no VAE's helps nobody.
    (where / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    assert message_of(WeightsError, file).endswith(f"FOLDER --weights {file}")


@pytest.mark.parametrize(
    ("architecture", "some"),
    [
        ("sd", ["encoder.mid.attn_1.q.weight", "decoder.up.0.block.0.nin_shortcut.bias"]),
        ("kl-f4", ["decoder.up.2.upsample.conv.bias"]),
        ("kl-f16", ["encoder.down.4.attn.1.proj_out.weight", "decoder.up.4.attn.2.norm.bias"]),
        ("kl-f32", ["encoder.down.5.attn.0.k.weight", "decoder.up.4.attn.0.v.weight"]),
    ],
)
def test_compvis_names_of_each_architecture(architecture: str, some: list[str]) -> None:
    """Files of full size without a number in them: names and shapes are all that is looked at."""
    shapes = tensor_shapes(architectures()[architecture])
    meta = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    for names in (compvis, exported_compvis):
        stored = {
            name: Stored(tuple(t.shape), unread) for name, t in names(meta, blocks=decoder_blocks(shapes)).items()
        }
        assert names is exported_compvis or stored.keys() >= set(some)
        matched = fit(stored, architectures()[architecture])
        assert (matched.faults, matched.found) == (0, len(shapes))
        others = [name for name, other in architectures().items() if not fit(stored, other).faults]
        assert others == [architecture]


def unread() -> Tensor:
    raise AssertionError("a tensor was read")


def decoder_blocks(names: Iterable[str]) -> int:
    return 1 + max(int(match[1]) for name in names if (match := re.match(r"decoder\.up_blocks\.(\d)", name)))


def test_compvis_resampling_without_its_bias(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    wrong = compvis(tensors)
    for name in ("decoder.up.3.upsample.conv.bias", "encoder.down.0.downsample.conv.bias"):
        file = write_safetensors({n: t for n, t in wrong.items() if n != name}, tmp_path / "vae.safetensors")
        message = message_of(WeightsError, "demo", file)
        assert message.startswith(f"{file} {FITS_NOT} 1 tensor missing (")


def test_three_by_three_attention_is_not_cut_down(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    wrong = compvis(tensors)
    wrong["encoder.mid.attn_1.q.weight"] = torch.zeros(128, 128, 3, 3)
    file = write_safetensors(wrong, tmp_path / "vae.safetensors")
    assert message_of(WeightsError, "demo", file) == (
        f"{file} {FITS_NOT} 1 tensor of the wrong shape (encoder.mid.attn_1.q.weight: expected (128, 128), "
        f"given (128, 128, 3, 3)). {MORE}"
    )
