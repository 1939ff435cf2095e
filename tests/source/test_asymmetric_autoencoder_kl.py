"""AsymmetricAutoencoderKL without a mask."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from checkpoints import message_of
from family_cases import CASES

from vaedeploy.errors import WeightsError
from vaedeploy.source import load_reference

CASE = CASES["AsymmetricAutoencoderKL"]


def test_what_only_a_mask_needs_is_left_out(tmp_path: Path) -> None:
    assert any("condition_encoder" in name for name in CASE.tensors())
    decoder = load_reference(CASE.folder(tmp_path)).decoder
    assert not any("condition_encoder" in name for name in decoder.state_dict())
    assert decoder(torch.zeros(1, 4, 3, 5)).shape == (1, 3, 6, 10)


def test_halves_of_different_factors(tmp_path: Path) -> None:
    file = CASE.folder(tmp_path) / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "up_block_out_channels": [12]}))
    assert message_of(WeightsError, tmp_path).startswith(
        f"{file} has 2 blocks that make images smaller and 1 that make them larger, so it decodes to "
        "another size than it encodes. Any VAE can be given as two modules of your own: vaedeploy.Reference("
    )
