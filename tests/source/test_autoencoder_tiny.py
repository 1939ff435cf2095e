"""Tiny autoencoders: the original code's names, in one file or two, and a contract that needs no statement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import message_of, write_safetensors
from family_cases import CASES
from safetensors.torch import load_file
from torch import Tensor, nn

from vaedeploy.errors import WeightsError
from vaedeploy.source import get_preset, load_reference, reload_reference
from vaedeploy.source.network import random_tensors
from vaedeploy.values.latent import LatentSpec

CASE = CASES["AutoencoderTiny"]
FILE = "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("prefix", ["", "taesd_"])
def test_lone_file_in_the_names_of_the_original_code(tmp_path: Path, prefix: str) -> None:
    """Layers of a Sequential, of which the first of the decoder clamps its input."""
    tensors = random_tensors(get_preset("taesd3").config, seed=0)
    plain = load_reference(write_safetensors(tensors, tmp_path / "plain.safetensors"))
    original = {}
    for name, tensor in tensors.items():
        half, _, number, rest = name.split(".", 3)
        original[f"{prefix}{half}.{int(number) + (half == 'decoder')}.{rest}"] = tensor
    assert {f"{prefix}encoder.0.weight", f"{prefix}decoder.1.weight", f"{prefix}decoder.3.conv.0.bias"} <= set(original)
    reference = load_reference(write_safetensors(original, tmp_path / "taesd3.safetensors"))
    assert reference.identity == plain.identity
    assert reference.latent == LatentSpec(16, 8, 1.0, 0.0, sampled=False)
    assert reference.architecture == "AutoencoderTiny"


def test_contract_of_a_config(tmp_path: Path) -> None:
    path = CASE.folder(tmp_path / "saved")
    config = json.loads((path / "config.json").read_text())
    for changes, scale, shift in (
        ({"scaling_factor": None, "shift_factor": None}, 1.0, 0.0),
        ({"scaling_factor": 0.5, "shift_factor": 0.25}, 0.5, 0.25),
        ({"latent_magnitude": 5, "latent_shift": 0.75}, 1.0, 0.0),
    ):
        (path / "config.json").write_text(json.dumps({**config, **dict[str, Any](changes)}))
        assert load_reference(path).latent == LatentSpec(4, 4, scale, shift, sampled=False)


def test_halves_of_two_factors(tmp_path: Path) -> None:
    path = CASE.folder(tmp_path / "saved")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "upsampling_scaling_factor": 4}))
    assert message_of(WeightsError, path) == (
        f"{path / 'config.json'} has an encoder that makes images 4 times smaller, and a decoder that makes latents 16 "
        "times larger; both factors must be the same"
    )
    assert load_file(path / FILE)


def halves(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The same weights as TAESD's two files have them: names are places in a Sequential."""
    found: dict[str, dict[str, Tensor]] = {"encoder": {}, "decoder": {}}
    for name, tensor in tensors.items():
        half, _, number, rest = name.split(".", 3)
        found[half][f"{int(number) + (half == 'decoder')}.{rest}"] = tensor
    return found


def write_halves(folder: Path, name: str, seed: int = 0) -> tuple[Path, Path]:
    """(encoder, decoder) of an AutoencoderTiny with seeded weights."""
    parts = halves(random_tensors(get_preset("taesd3").config, seed))
    encoder, decoder = (write_safetensors(parts[half], folder / name.replace("*", half)) for half in parts)
    return encoder, decoder


class Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv(width, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


def conv(before: int, after: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1, **options)


def original(channels: int, width: int = 64) -> tuple[nn.Sequential, nn.Sequential]:
    """The halves as TAESD's own code computes them, with images in [0, 1]."""
    encoder: list[nn.Module] = [conv(3, width), Block(width)]
    decoder: list[nn.Module] = [Clamp(), conv(channels, width), nn.ReLU()]
    for _ in range(3):
        encoder += [conv(width, width, stride=2, bias=False), *(Block(width) for _ in range(3))]
        decoder += [*(Block(width) for _ in range(3)), nn.Upsample(scale_factor=2), conv(width, width, bias=False)]
    return nn.Sequential(*encoder, conv(width, channels)), nn.Sequential(*decoder, Block(width), conv(width, 3))


def test_two_files_compute_what_the_original_halves_do(tmp_path: Path) -> None:
    files = write_halves(tmp_path, "taesd3_*.safetensors")
    reference = load_reference("taesd3", files[0])
    generator = torch.Generator().manual_seed(0)
    image = torch.rand((2, 3, 24, 16), generator=generator, dtype=torch.float64)
    latent = 4 * torch.randn((2, 16, 3, 2), generator=generator, dtype=torch.float64)
    encoder, decoder = (half.double() for half in original(16))
    encoder.load_state_dict(load_file(files[0]), strict=True)
    decoder.load_state_dict(load_file(files[1]), strict=True)
    encode, decode = reference.encoder.double(), reference.decoder.double()
    torch.testing.assert_close(encode(image * 2 - 1), encoder(image), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(decode(latent) / 2 + 0.5, decoder(latent), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["taesd3_*.safetensors", "taesd3-*.fp16.safetensors", "*.safetensors"])
def test_either_of_two_files_stands_for_both(tmp_path: Path, name: str) -> None:
    tensors = random_tensors(get_preset("taesd3").config, 0)
    (tmp_path / "x").mkdir()
    whole = load_reference(write_safetensors(tensors, tmp_path / "whole.safetensors"))
    encoder, decoder = write_halves(tmp_path / "x", name)
    found = [load_reference("taesd3", encoder), load_reference("taesd3", decoder), load_reference(decoder)]
    assert {reference.identity for reference in found} == {whole.identity}
    assert len({reference.origin.sha256 for reference in found}) == 1
    assert found[1].origin.location == str(decoder)
    expected = {"taesd3_*.safetensors": "taesd3", "taesd3-*.fp16.safetensors": "taesd3.fp16", "*.safetensors": "x"}
    assert {reference.name for reference in found} == {expected[name]}
    assert reload_reference(found[1].origin, found[1].latent).identity == whole.identity
    (encoder if name[0] == "*" else decoder).write_bytes(b"")
    with pytest.raises(WeightsError, match="is empty"):
        load_reference("taesd3", decoder if name[0] == "*" else encoder)


def test_folder_with_both_files(tmp_path: Path) -> None:
    encoder, decoder = write_halves(tmp_path, "taesd3_*.safetensors")
    identity = load_reference("taesd3", encoder).identity
    for arguments in ((tmp_path,), ("taesd3", tmp_path)):
        reference = load_reference(*arguments)
        assert (reference.identity, reference.origin.kind) == (identity, "folder")
        assert reload_reference(reference.origin, reference.latent).identity == identity
    write_halves(tmp_path, "other_*.safetensors", seed=1)
    assert message_of(WeightsError, tmp_path) == (
        f"{tmp_path} holds several VAEs in two files each: other_decoder.safetensors, other_encoder.safetensors, "
        "taesd3_decoder.safetensors, taesd3_encoder.safetensors. Give either file of the VAE that you mean"
    )
    for path in tmp_path.glob("other_*"):
        path.unlink()
    decoder.unlink()
    assert message_of(WeightsError, tmp_path) == (
        f"{tmp_path} holds no diffusion_pytorch_model.safetensors or diffusion_pytorch_model.bin; of "
        "taesd3_encoder.safetensors the other half, taesd3_decoder.safetensors, is not there. Give a diffusers folder, "
        "or the weights file itself"
    )


@pytest.mark.parametrize("missing", ["encoder", "decoder"])
def test_half_without_the_other(tmp_path: Path, missing: str) -> None:
    files = dict(zip(("encoder", "decoder"), write_halves(tmp_path, "taesd3_*.safetensors"), strict=True))
    files.pop(missing).unlink()
    ((half, file),) = files.items()
    for arguments in ((file,), ("taesd3", file)):
        assert message_of(WeightsError, *arguments) == (
            f"{file} holds the {half} alone, and taesd3_{missing}.safetensors is not beside it. Put both files into "
            "one folder"
        )


def test_file_that_is_named_like_a_half_and_holds_all(tmp_path: Path) -> None:
    """Its content decides."""
    file = write_safetensors(random_tensors(get_preset("taesd3").config, 0), tmp_path / "better_decoder.safetensors")
    assert load_reference(file).name == "better_decoder"


def test_halves_of_two_vaes(tmp_path: Path) -> None:
    encoder, decoder = write_halves(tmp_path, "taesd3_*.safetensors")
    write_safetensors(halves(random_tensors(get_preset("taesd").config, 0))["decoder"], decoder)
    assert "(decoder.1.weight: expected (64, 16, 3, 3), given (64, 4, 3, 3))" in message_of(
        WeightsError, "taesd3", encoder
    )
