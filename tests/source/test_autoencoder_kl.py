"""The modules of AutoencoderKL compute what those of diffusers do, and its configs are read or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from checkpoints import TINY, config_of, folder, message_of
from diffusers import AutoencoderKL
from torch import Tensor

from vaedeploy.errors import WeightsError
from vaedeploy.source import load_reference
from vaedeploy.source.families import FAMILIES
from vaedeploy.source.family import OWN_MODULES
from vaedeploy.source.network import random_tensors

LOADED = (
    f"{', '.join(FAMILIES)}. Any VAE can be given as two modules of your own: vaedeploy.Reference(encoder=..., "
    "decoder=..., latent=vaedeploy.LatentSpec(...)), in Python"
)


@pytest.mark.parametrize("quant", [True, False], ids=["quant-conv", "no-quant-conv"])
def test_modules_compute_what_diffusers_does(tmp_path: Path, photo: Tensor, quant: bool) -> None:
    architecture = msgspec.structs.replace(TINY, use_quant_conv=quant, use_post_quant_conv=quant)
    weights = random_tensors(architecture, seed=3)
    # Log variances far outside of the range that diffusers clamps them to.
    last = "quant_conv" if quant else "encoder.conv_out"
    weights[f"{last}.bias"][4:] = torch.tensor([-200.0, -20.0, 20.0, 200.0])
    path = folder(tmp_path / "own", config_of(architecture, scaling_factor=0.5), weights)
    reference = load_reference(path)
    theirs = AutoencoderKL.from_pretrained(path).eval()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        posterior = theirs.encode(photo).latent_dist
        mean, std = reference.encoder(photo)
        image = reference.decoder(mean)
        assert torch.equal(mean, posterior.mean)
        assert torch.equal(std, posterior.std)
        assert torch.equal(image, theirs.decode(mean).sample)
    assert mean.shape == (2, 4, 20, 32)
    assert image.shape == (2, 3, 40, 64)
    assert std.min() == torch.exp(torch.tensor(-15.0))
    assert std.max() == torch.exp(torch.tensor(10.0))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"_class_name": "AutoencoderNew"},
            f"is the config of AutoencoderNew; the classes that can be loaded are {LOADED}",
        ),
        (
            {"_class_name": None},
            f"does not name its class (_class_name); the classes that can be loaded are {LOADED}",
        ),
        ({"in_channels": 1}, f"has 1 channel in and 3 out; both must be 3 (RGB) or 4 (RGBA). {OWN_MODULES}"),
        (
            {"block_out_channels": "wide"},
            "is not the config of a diffusers AutoencoderKL: Expected `array`, got `str` - at `$.block_out_channels`",
        ),
    ],
)
def test_configs_that_cannot_be_used(own: Any, changes: dict[str, Any], problem: str) -> None:
    path = own(scaling_factor=1.0, **changes)
    assert message_of(WeightsError, path) == f"{path / 'config.json'} {problem}"


def test_config_that_is_not_json(own: Any) -> None:
    path = own(scaling_factor=1.0)
    (path / "config.json").write_text("{")
    assert message_of(WeightsError, path) == (
        f"{path / 'config.json'} is not the config of a VAE of diffusers: Input data was truncated"
    )


def test_config_that_is_no_config(own: Any) -> None:
    path = own(scaling_factor=1.0)
    config = path / "config.json"
    config.write_text('{"a": ' + "[" * 100_000)
    assert message_of(WeightsError, path).startswith(f"{config} is not the config of a VAE of diffusers: ")
    config.write_text(" " * 1_000_001)
    assert message_of(WeightsError, path) == f"{config} cannot be read: it has more than 1,000,000 bytes"
    config.unlink()
    config.symlink_to("/dev/zero")
    assert message_of(WeightsError, path) == f"{config} cannot be read: it is not a regular file"


@pytest.mark.parametrize(
    "changes",
    [{"norm_num_groups": 5}, {"block_out_channels": [8]}, {"down_block_types": ["NoSuchBlock"] * 2}, {"act_fn": "no"}],
)
def test_config_that_diffusers_cannot_build(own: Any, changes: dict[str, Any]) -> None:
    message = message_of(WeightsError, own(scaling_factor=1.0, **changes))
    assert message.startswith("diffusers cannot build an AutoencoderKL of this config: ")
