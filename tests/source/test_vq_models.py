"""VQModel as Kandinsky's MoVQ, and Stable Cascade's PaellaVQModel: contracts, folders, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import message_of
from family_cases import CASES, Case

from vaedeploy.errors import ContractError, WeightsError
from vaedeploy.source import get_preset, load_reference
from vaedeploy.source.families import FAMILIES

MOVQ, PAELLA = CASES["VQModel"], CASES["PaellaVQModel"]


def folder(case: Case, path: Path, **changes: Any) -> Path:
    """What the class saves, with these changes to its config.json; a change to None leaves a field out."""
    case.folder(path)
    config = {**json.loads((path / "config.json").read_text()), **changes}
    (path / "config.json").write_text(json.dumps({key: v for key, v in config.items() if v is not None}))
    return path


@pytest.mark.parametrize("factor", [0.18215, 1.0, None])
def test_movq_is_not_scaled_whatever_its_config_says(tmp_path: Path, factor: float | None) -> None:
    latent = load_reference(folder(MOVQ, tmp_path, scaling_factor=factor)).latent
    assert (latent.scale, latent.shift, latent.sampled) == (1.0, 0.0, False)


def test_latents_of_movq_have_the_channels_of_its_codebook(tmp_path: Path) -> None:
    case = MOVQ._replace(arguments={**MOVQ.arguments, "vq_embed_dim": 6})
    reference = load_reference(case.folder(tmp_path))
    assert reference.latent.channels == 6
    assert reference.encoder(torch.zeros(1, 3, 16, 16)).shape == (1, 6, 4, 4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"norm_type": "group"}, "has norm_type 'group' and lookup_from_codebook False"),
        ({"lookup_from_codebook": True}, "has norm_type 'spatial' and lookup_from_codebook True"),
    ],
)
def test_models_that_are_decoded_from_a_codebook(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    message = message_of(WeightsError, folder(MOVQ, tmp_path, **changes))
    assert message.startswith(
        f"{tmp_path / 'config.json'} {said}; of this class, only MoVQ can be loaded (norm_type 'spatial', no look-up), "
        "because models of other kinds are decoded from a codebook. Any VAE can be given as two modules of your own: "
        "vaedeploy.Reference("
    )


@pytest.mark.parametrize(("case", "name"), [(MOVQ, "movq"), (PAELLA, "vqgan")])
def test_a_pipelines_folder(tmp_path: Path, case: Case, name: str) -> None:
    pipeline = tmp_path / "some-pipeline"
    expected = load_reference(case.folder(pipeline / name)).identity
    reference = load_reference(pipeline)
    assert (reference.name, reference.identity) == ("some-pipeline", expected)
    assert load_reference(pipeline / name).name == "some-pipeline"


def test_paella_is_scaled_the_other_way_round(tmp_path: Path) -> None:
    latent = load_reference(folder(PAELLA, tmp_path, scale_factor=0.25)).latent
    # As StableCascadeDecoderPipeline does before it decodes: latents * scale_factor.
    seen = torch.randn(4)
    raw = 0.25 * seen
    torch.testing.assert_close((raw - latent.shift) * latent.scale, seen)


def test_paellas_images_are_signed_here(tmp_path: Path) -> None:
    theirs: Any = PAELLA.theirs()
    reference = load_reference(PAELLA.folder(tmp_path))
    black = -torch.ones(1, 3, 16, 16)
    assert torch.equal(reference.encoder(black), theirs.encode(torch.zeros(1, 3, 16, 16)).latents)


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (None, "does not state the scale of the latents"),
        (0, "scale_factor is 0; dividing by it is impossible"),
        ("0.3764", "scale_factor is '0.3764'; it must be a number"),
    ],
)
def test_scales_of_paella_that_cannot_be_used(tmp_path: Path, factor: Any, said: str) -> None:
    assert said in message_of(ContractError, folder(PAELLA, tmp_path, scale_factor=factor))


def test_kandinsky_3_is_of_its_published_config() -> None:
    """As kandinsky-community/kandinsky-3 has it in movq/config.json."""
    down = [*["DownEncoderBlock2D"] * 3, "AttnDownEncoderBlock2D"]
    raw: dict[str, Any] = {
        "_class_name": "VQModel", "act_fn": "silu", "block_out_channels": [256, 512, 512, 1024],
        "down_block_types": down, "in_channels": 3, "latent_channels": 4, "layers_per_block": 2,
        "norm_num_groups": 32, "norm_type": "spatial", "num_vq_embeddings": 16384, "out_channels": 3,
        "sample_size": 32, "scaling_factor": 0.18215,
        "up_block_types": ["AttnUpDecoderBlock2D", *["UpDecoderBlock2D"] * 3],
        "vq_embed_dim": 4,
    }  # fmt: skip
    assert not get_preset("kandinsky3").config.differences(FAMILIES["VQModel"].read(raw))
