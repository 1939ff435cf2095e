"""DC-AE: one name for all blocks, and the original code's names, in which queries, keys and values are one tensor."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest
import torch
from checkpoints import message_of, write_ckpt, write_safetensors
from diffusers.loaders.single_file_utils import convert_autoencoder_dc_checkpoint_to_diffusers
from family_cases import CASES
from safetensors.torch import load_file
from torch import Tensor

from vaedeploy.errors import ContractError, WeightsError
from vaedeploy.source import get_preset, load_reference
from vaedeploy.source.families import FAMILIES
from vaedeploy.source.fit import fit
from vaedeploy.source.network import tensor_shapes
from vaedeploy.source.preset import architectures
from vaedeploy.source.stored import Stored

CASE, FAMILY = CASES["AutoencoderDC"], FAMILIES["AutoencoderDC"]


def test_one_name_for_all_blocks_is_that_name_for_each() -> None:
    one = FAMILY.read({**CASE.config(), "decoder_norm_types": "rms_norm", "decoder_act_fns": "silu"})
    each = FAMILY.read({**CASE.config(), "decoder_norm_types": ["rms_norm"] * 2, "decoder_act_fns": ["silu"] * 2})
    assert one == each


def test_scale_is_never_filled_in(tmp_path: Path) -> None:
    """The class itself takes 1."""
    path = CASE.folder(tmp_path / "saved")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "scaling_factor": None}))
    assert "does not state the scale of the latents" in message_of(ContractError, path)
    assert load_reference(path, scale=0.5).latent.scale == 0.5


def test_halves_of_two_depths(tmp_path: Path) -> None:
    path = CASE.folder(tmp_path / "saved")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "decoder_block_out_channels": [8]}))
    assert message_of(WeightsError, path) == (
        f"{path / 'config.json'} has 2 encoder_block_out_channels and 1 decoder_block_out_channels; both halves must "
        "have the same number of blocks"
    )


def test_published_sizes() -> None:
    """312 M parameters at a factor of 32; 128 and 512 channels at 64 and 128."""
    shapes = tensor_shapes(get_preset("dc-ae-f32c32").config)
    count = 0
    for shape in shapes.values():
        size = 1
        for side in shape:
            size *= side
        count += size
    assert round(count / 1e6) == 312
    found = [(get_preset(name).latent_shape.channels, get_preset(name).latent_shape.factor) for name in DEEP]
    assert found == [(32, 32), (128, 64), (512, 128)]


DEEP = ("dc-ae-f32c32", "dc-ae-f64c128", "dc-ae-f128c512")


def original(name: str) -> str:
    """A name as the original code has it: stages are lists in modules with a shortcut around each."""
    rules = [
        (r"^encoder\.conv_in\.(?:conv\.)?(weight|bias)", r"encoder.project_in.conv.\1"),
        (r"^encoder\.conv_out\.", "encoder.project_out.main.op_list.0.conv."),
        (r"^decoder\.conv_in\.", "decoder.project_in.main.conv."),
        (r"^decoder\.norm_out\.", "decoder.project_out.op_list.0."),
        (r"^decoder\.conv_out\.conv\.", "decoder.project_out.op_list.2.conv.conv."),
        (r"^decoder\.conv_out\.(weight|bias)", r"decoder.project_out.op_list.2.conv.\1"),
        (r"(down|up)_blocks\.(\d+)\.(\d+)", r"stages.\2.op_list.\3"),
        (r"(op_list\.\d+)\.conv1\.", r"\1.main.conv1.conv."),
        (r"(op_list\.\d+)\.conv2\.", r"\1.main.conv2.conv."),
        (r"(op_list\.\d+)\.norm\.", r"\1.main.conv2.norm."),
        (r"(op_list\.\d+)\.attn\.to_out\.", r"\1.context_module.main.proj.conv."),
        (r"(op_list\.\d+)\.attn\.norm_out\.", r"\1.context_module.main.proj.norm."),
        (r"(op_list\.\d+)\.attn\.to_qkv_multiscale\.(\d)\.proj_in\.", r"\1.context_module.main.aggreg.\2.0."),
        (r"(op_list\.\d+)\.attn\.to_qkv_multiscale\.(\d)\.proj_out\.", r"\1.context_module.main.aggreg.\2.1."),
        (r"(op_list\.\d+)\.conv_out\.conv_(inverted|depth|point)\.", r"\1.local_module.main.\2_conv.conv."),
        (r"(op_list\.\d+)\.conv_out\.norm\.", r"\1.local_module.main.point_conv.norm."),
        (r"(decoder\.stages\.\d+\.op_list\.\d+)\.conv\.(weight|bias)", r"\1.main.conv.conv.\2"),
        (r"(op_list\.\d+)\.conv\.(weight|bias)", r"\1.main.conv.\2"),
    ]
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def originals(tensors: dict[str, Tensor], shuffled: bool = False) -> dict[str, Tensor]:
    """The same weights as the original code has them. shuffled: whether a shuffle of pixels makes images smaller."""
    found = {}
    for name, tensor in tensors.items():
        is_matrix = ".attn.to_" in name and tensor.ndim == 2
        kernel = tensor[:, :, None, None] if is_matrix else tensor
        if match := re.fullmatch(r"(.*)\.attn\.to_([qkv])\.weight", name):
            parts = [tensors[f"{match[1]}.attn.to_{x}.weight"] for x in "qkv"]
            place = original(f"{match[1]}.context_module.main.qkv.conv.weight")
            found[place] = torch.cat(parts)[:, :, None, None]
        else:
            found[original(name)] = kernel
    if shuffled:
        found = {re.sub(DOWN, r"\1.conv.conv.\2", name): tensor for name, tensor in found.items()}
    return found


DOWN = r"^(encoder\.project_in|encoder\.stages\.\d+\.op_list\.\d+\.main)\.conv\.(weight|bias)$"


@pytest.mark.parametrize("name", ["dc-ae-f32c32", "dc-ae-f64c128", "dc-ae-f128c512"])
def test_names_of_the_original_code(name: str) -> None:
    """Each architecture in full size, without a number: what diffusers converts a file to is what is loaded of it."""
    preset = get_preset(name)
    shapes = tensor_shapes(preset.config)
    with torch.device("meta"):
        theirs = originals({name: torch.empty(shape) for name, shape in shapes.items()}, shuffled=name != DEEP[0])
    assert {"encoder.stages.3.op_list.0.context_module.main.qkv.conv.weight", "decoder.project_out.op_list.0.bias"} <= (
        theirs.keys()
    )
    converted = convert_autoencoder_dc_checkpoint_to_diffusers(dict(theirs))
    assert {name: tuple(t.shape) for name, t in converted.items()} == shapes
    stored = {name: Stored(tuple(t.shape), unread) for name, t in theirs.items()}
    matched = fit(stored, preset.config)
    assert (matched.faults, matched.found) == (0, len(shapes))
    others = [known for known, other in architectures().items() if not fit(stored, other).faults]
    assert others == [preset.architecture]


def unread() -> Tensor:
    raise AssertionError("a tensor was read")


def test_folder_in_the_names_of_the_original_code(tmp_path: Path) -> None:
    """Queries, keys and values are three parts of one tensor."""
    path = CASE.folder(tmp_path / "saved")
    identity, file = load_reference(path).identity, path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    theirs = originals(tensors)
    converted = convert_autoencoder_dc_checkpoint_to_diffusers(dict(theirs))
    assert all(torch.equal(converted[name], tensors[name]) for name in tensors)
    write_safetensors(theirs, file)
    assert load_reference(path).identity == identity
    write_ckpt(theirs, file)
    assert load_reference(path).identity == identity


def test_queries_keys_and_values_that_cannot_be_parted(tmp_path: Path) -> None:
    path = CASE.folder(tmp_path / "saved")
    file = path / "diffusion_pytorch_model.safetensors"
    theirs = originals(load_file(file))
    name = next(name for name in theirs if "qkv" in name)
    for wrong, given in ((torch.zeros(10, 16), "(10, 16)"), (torch.zeros(3, 16), "(1, 16)"), (torch.zeros(()), "()")):
        write_safetensors({**theirs, name: wrong}, file)
        message = message_of(WeightsError, path)
        assert f"1 tensor of the wrong shape ({name}: expected (16, 16), given {given})" in message


@pytest.mark.parametrize("spelled", ["Conv", "conv"])
def test_convolution_with_a_stride_by_both_its_names(spelled: str) -> None:
    """SANA's published config says "Conv"; the class takes both for the same."""
    preset = get_preset("dc-ae-f32c32").config
    raw = {**msgspec.structs.asdict(preset), "downsample_block_type": spelled}
    assert not preset.differences(FAMILY.read(raw))
