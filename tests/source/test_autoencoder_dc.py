"""DC-AE: one name for all blocks, and counters of batch norms."""

from __future__ import annotations

import json
from pathlib import Path

from checkpoints import message_of
from family_cases import CASES

from vaedeploy.errors import ContractError, WeightsError
from vaedeploy.source import get_preset, load_reference
from vaedeploy.source.families import FAMILIES
from vaedeploy.source.network import tensor_shapes

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
    assert "does not state the scale of its latents" in message_of(ContractError, path)
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
