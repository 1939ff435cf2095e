"""FLUX.2's VAE: packing as the pipelines do it, and a latent contract that lies in the weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from checkpoints import compvis, message_of, write_safetensors
from family_cases import CASES
from pipelines import pipeline_function
from safetensors.torch import load_file, save_file
from torch import Tensor

from vaedeploy.errors import ContractError, WeightsError
from vaedeploy.source import get_preset, load_reference
from vaedeploy.source.autoencoder_kl_flux2.config import Architecture
from vaedeploy.source.families import FAMILIES
from vaedeploy.source.network import build
from vaedeploy.source.pack import pack, unpack
from vaedeploy.values.latent import LatentSpec

CASE = CASES["AutoencoderKLFlux2"]
FAMILY = FAMILIES["AutoencoderKLFlux2"]
FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return CASE.folder(tmp_path / "flux2")


@pytest.mark.parametrize("pipeline", ["flux2", "ernie_image", "bria_fibo2"])
def test_packing_is_that_of_the_pipelines(pipeline: str) -> None:
    latent = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).reshape(2, 3, 4, 6)
    ours = pack(latent, "channel, row, column")
    module = f"{pipeline}.pipeline_{pipeline}"
    assert torch.equal(ours, pipeline_function(module, "_patchify_latents")(latent))
    assert torch.equal(latent, pipeline_function(module, "_unpatchify_latents")(ours))
    assert torch.equal(unpack(ours, "channel, row, column"), latent)


def test_other_packing_is_that_of_ideogram() -> None:
    packed = torch.arange(2 * 12 * 2 * 3, dtype=torch.float32).reshape(2, 12, 2, 3)
    # As its pipeline does in the midst of __call__: sequences (B, h * w, channels) to latents.
    z = packed.permute(0, 2, 3, 1).reshape(2, 6, 12).view(2, 2, 3, 2, 2, 3)
    expected = z.permute(0, 5, 1, 3, 2, 4).contiguous().view(2, 3, 4, 6)
    assert torch.equal(unpack(packed, "row, column, channel"), expected)
    assert torch.equal(pack(expected, "row, column, channel"), packed)


def test_contract_is_that_of_the_statistics_in_the_weights(saved: Path) -> None:
    tensors = load_file(saved / FILE)
    mean, variance = (tensors[f"bn.running_{name}"].double() for name in ("mean", "var"))
    latent = load_reference(saved).latent
    assert (latent.channels, latent.factor, latent.sampled) == (12, 4, True)
    # As the pipeline normalises what it packed.
    packed = torch.randn(1, 12, 2, 2, dtype=torch.float64)
    expected = (packed - mean.view(1, -1, 1, 1)) / torch.sqrt(variance.view(1, -1, 1, 1) + 1e-4)
    scale, shift = (torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (latent.scale, latent.shift))
    torch.testing.assert_close((packed - shift) * scale, expected, rtol=1e-14, atol=0)


def test_epsilon_is_that_of_the_config(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "batch_norm_eps": 0.5}))
    variance = load_file(saved / FILE)["bn.running_var"][0].item()
    scale = load_reference(saved).latent.scale
    assert isinstance(scale, tuple)
    assert math.isclose(scale[0], 1 / math.sqrt(variance + 0.5), rel_tol=1e-14)


def test_weights_without_statistics(saved: Path) -> None:
    tensors = {n: t for n, t in load_file(saved / FILE).items() if not n.startswith("bn.")}
    save_file(tensors, saved / FILE)
    message = message_of(ContractError, saved)
    assert message == (
        f"{saved / 'config.json'} belongs to weights without bn.running_mean and bn.running_var, the statistics of "
        "latents that state their scale and shift. Files that were written for another program may lack them: take "
        "those of the model's own repository. Say what holds, with both of --scale and --shift (scale= and shift= in "
        "Python): one number, or one for each channel, separated by commas"
    )
    numbers: Any = {"scale": [0.5] * 12, "shift": 0.25}
    assert load_reference(saved, **numbers).latent == LatentSpec(12, 4, (0.5,) * 12, 0.25)


def test_variance_that_cannot_be(saved: Path) -> None:
    tensors = load_file(saved / FILE)
    tensors["bn.running_var"][3] = -1.0
    save_file(tensors, saved / FILE)
    assert "whose bn.running_var has -0.9999 as a variance" in message_of(ContractError, saved)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"patch_size": [1, 1]}, "has a patch_size of [1, 1]; what can be packed is [2, 2], as the pipelines"),
        (
            {"decoder_block_out_channels": [8]},
            "has 2 block_out_channels and 1 decoder_block_out_channels; both halves must have the same number",
        ),
    ],
)
def test_configs_that_cannot_be_used(saved: Path, changes: dict[str, Any], problem: str) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, **changes}))
    assert message_of(WeightsError, saved).startswith(f"{saved / 'config.json'} {problem}")


def test_names_of_the_original_code(saved: Path) -> None:
    """BFL's own, which ComfyUI's file has as well."""
    identity, contract = load_reference(saved).identity, load_reference(saved).latent
    original = {
        {"quant_conv": "encoder.", "post_quant_conv": "decoder."}.get(name.split(".")[0], "") + name: tensor
        for name, tensor in compvis(load_file(saved / FILE), blocks=2).items()
    }
    assert {"encoder.quant_conv.bias", "decoder.post_quant_conv.weight", "decoder.up.0.block.0.conv1.bias"} <= set(
        original
    )
    write_safetensors(original, saved / FILE)
    loaded = load_reference(saved)
    assert (loaded.identity, loaded.latent) == (identity, contract)


def test_packing_changes_the_halves_and_not_the_tensors() -> None:
    architecture = FAMILY.read(CASE.config())
    other = msgspec.structs.replace(architecture, packing="row, column, channel")
    assert isinstance(other, Architecture)
    assert not architecture.differences(other)
    latent = torch.randn(1, 12, 2, 2)
    halves = [build(a, CASE.tensors())[1](latent) for a in (architecture, other)]
    assert not torch.equal(*halves)
    turned = torch.from_numpy(latent.numpy().reshape(1, 4, 3, 2, 2).swapaxes(1, 2).reshape(1, 12, 2, 2).copy())
    assert torch.equal(halves[1], build(architecture, CASE.tensors())[1](turned))


def test_presets_say_what_their_pipelines_do_otherwise() -> None:
    configs = {name: get_preset(name).config for name in ("flux2", "ernie-image", "ideogram4")}
    assert all(isinstance(config, Architecture) for config in configs.values())
    assert [(c.batch_norm_eps, c.packing) for c in configs.values() if isinstance(c, Architecture)] == [
        (1e-4, "channel, row, column"),
        (1e-5, "channel, row, column"),
        (1e-4, "row, column, channel"),
    ]


def test_preset_decides_how_its_weights_are_read(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from checkpoints import extend_presets

    small = FAMILY.read(CASE.config())
    mine = msgspec.structs.replace(small, batch_norm_eps=0.5, packing="row, column, channel")
    extend_presets(monkeypatch, msgspec.structs.replace(get_preset("flux2"), name="mine", config=mine, sha256=None))
    loaded, plain = load_reference("mine", saved), load_reference(saved)
    variance = load_file(saved / FILE)["bn.running_var"].double()
    assert torch.allclose(torch.tensor(loaded.latent.scale), ((variance + 0.5) ** -0.5).float())
    assert loaded.latent.shift == plain.latent.shift
    latent = torch.randn(1, 12, 2, 2)
    assert not torch.equal(decoded(loaded.decoder, latent), decoded(plain.decoder, latent))


def decoded(decoder: torch.nn.Module, latent: Tensor) -> Tensor:
    image: Tensor = decoder(latent)
    return image
