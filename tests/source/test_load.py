"""From a name or a path to a VAE in PyTorch: its identity, seeded weights, and the same VAE found again."""

from __future__ import annotations

import dataclasses
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from checkpoints import CONTRACT, DEMO, DEMO_CONFIG, TINY, compvis, config_of, folder, message_of, write_safetensors
from torch import Tensor, nn

from vaedeploy.errors import InputError, WeightsError
from vaedeploy.source import get_preset, load_reference, reload_reference
from vaedeploy.source.network import random_tensors
from vaedeploy.values.latent import LatentSpec
from vaedeploy.values.reference import Reference, eval_mode


def test_reference_is_frozen_float32_in_eval_mode() -> None:
    reference = load_reference("demo", "random:0")
    for module in (reference.encoder, reference.decoder):
        assert not module.training
        assert {p.dtype for p in module.parameters()} == {torch.float32}
        assert not any(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("name", ["demo", "demo-mse"])
def test_carried_presets_load(name: str, photo: Tensor) -> None:
    preset = get_preset(name)
    if preset.packaged_file is None or not preset.packaged_file.exists():
        pytest.skip(f"the weights of {name} are not in the package yet")
    reference = load_reference(name)
    assert (reference.origin.kind, reference.origin.location, reference.origin.preset) == ("package", name, name)
    assert (reference.name, reference.latent, reference.licence) == (name, preset.latent, preset.licence)
    with torch.no_grad():
        mean, _ = reference.encoder(photo)
        assert reference.decoder(mean).isfinite().all()


def test_identity_tells_weights_names_and_contracts_apart() -> None:
    def own(weight: float = 1.0, name: str = "a", **latent: Any) -> Reference:
        module = nn.Module()
        module.register_parameter(name, nn.Parameter(torch.full((2,), weight)))
        contract = {"channels": 4, "factor": 8, "scale": 1.0} | latent
        return Reference(module, nn.Identity(), LatentSpec(**contract))

    swapped = Reference(nn.Identity(), own().encoder, own().latent)
    several = [own(), own(2.0), own(name="b"), own(scale=0.5), own(shift=0.5), own(sampled=False), swapped]
    assert len({reference.identity for reference in several}) == len(several)
    assert own().identity == own().identity
    assert own().origin.kind == "modules"


@pytest.mark.parametrize("fails", [False, True])
def test_modules_are_in_the_mode_that_they_had_after_they_ran_in_eval_mode(fails: bool) -> None:
    module = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm2d(1).eval(), nn.Dropout()))
    before = [each.training for each in module.modules()]
    assert before == [True, True, True, False, True]
    with pytest.raises(KeyError) if fails else nullcontext(), eval_mode(module):
        assert not any(each.training for each in module.modules())
        if fails:
            raise KeyError
    assert [each.training for each in module.modules()] == before


def test_own_modules_must_be_modules() -> None:
    latent = LatentSpec(channels=4, factor=8, scale=1.0)
    reference = Reference(nn.Dropout(), nn.Sequential(nn.Dropout()), latent)
    with pytest.raises(InputError) as error:
        Reference(nn.Identity(), torch.relu, latent)
    assert str(error.value) == "the decoder is of type builtin_function_or_method; it must be a torch.nn.Module"
    assert repr(reference) == (
        "Reference('vae', modules, LatentSpec(channels=4, factor=8, scale=1.0, shift=0.0, sampled=True, "
        "image_channels=3))"
    )


@pytest.mark.parametrize("latent", [None, (32, 8), {"channels": 4}])
def test_a_latent_contract_must_be_one(latent: Any) -> None:
    with pytest.raises(InputError) as error:
        Reference(nn.Identity(), nn.Identity(), latent=latent)
    assert str(error.value) == (
        f"latent is {latent!r}; it must be a contract, such as vaedeploy.LatentSpec(channels=4, factor=8, "
        "scale=0.18215)"
    )


def test_random_weights_are_seeded_and_leave_torchs_own_state_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, same, other = (load_reference("demo", f"random:{seed}") for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.identity == same.identity != other.identity
    assert (first.origin.kind, first.origin.location, first.origin.sha256) == ("random", "random:0", None)
    assert first.licence is None


def test_random_weights_leave_no_default_behind(photo: Tensor) -> None:
    reference = load_reference("demo", "random:0")
    for module in (*reference.encoder.modules(), *reference.decoder.modules()):
        if isinstance(module, nn.GroupNorm):
            assert module.weight.std() > 0.01
        if isinstance(module, nn.GroupNorm | nn.Conv2d | nn.Linear):
            assert module.bias is not None
            assert (module.bias != 0).all()
    with torch.no_grad():
        mean, std = reference.encoder(photo)
        image = reference.decoder(mean)
    for out in (mean, std, image):
        assert out.isfinite().all()
        assert 0.05 < out.std() < 5
        assert out.std((2, 3)).min() > 0.01, "an output plane is constant"


@pytest.mark.parametrize("seed", ["", "-1", "1.5", "one", "9223372036854775808"])
def test_bad_seed(seed: str) -> None:
    assert message_of(WeightsError, "demo", f"random:{seed}") == (
        f"--weights random:{seed}: the seed must be a whole number from 0 to 2^63 - 1, as in random:0"
    )


def test_a_seed_of_thousands_of_digits() -> None:
    message = message_of(WeightsError, "demo", f"random:{'9' * 5000}")
    assert message.endswith("999...: the seed must be a whole number from 0 to 2^63 - 1, as in random:0")


@pytest.mark.parametrize("form", ["preset", "folder", "file", "random"])
def test_reload_finds_the_same_vae_again(tmp_path: Path, tensors: dict[str, Tensor], form: str) -> None:
    file = write_safetensors(tensors, tmp_path / "vae.safetensors")
    own = folder(tmp_path / "own", config_of(DEMO.config, **DEMO_CONFIG), tensors)
    arguments: dict[str, tuple[str | Path, ...]] = {
        "preset": ("demo", file),
        "folder": (own,),
        "file": (file,),
        "random": ("demo", "random:7"),
    }
    first = load_reference(*arguments[form], **CONTRACT)
    # Whatever the weights state: the bundle's own contract is the one that it was made with.
    latent = LatentSpec(16, 8, 0.5, 0.125)
    again = reload_reference(first.origin, latent)
    assert again.identity == dataclasses.replace(first, latent=latent).identity
    assert (again.origin, again.latent) == (first.origin, latent)


def test_reload_with_a_presets_own_weights(
    tmp_path: Path, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    demo, mse = load_reference("demo"), load_reference("demo-mse")
    assert reload_reference(mse.origin, mse.latent, "demo").identity == demo.identity
    own = write_safetensors(tensors, tmp_path / "own.safetensors")
    folder(tmp_path / "demo", config_of(DEMO.config, **DEMO_CONFIG), tensors)  # a folder of its name is meant, if any
    assert reload_reference(mse.origin, mse.latent, "demo").identity == load_reference("demo", own).identity


def test_reload_refuses_weights_that_have_changed(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    file = write_safetensors(tensors, tmp_path / "vae.safetensors")
    first = load_reference("demo", file)
    write_safetensors(random_tensors(DEMO.config, seed=1), file)
    with pytest.raises(WeightsError, match=r"have changed: sha256 was .*Export the VAE again"):
        reload_reference(first.origin, first.latent)
    with pytest.raises(WeightsError, match=re.escape("pass them again: reference=")):
        reload_reference(Reference(nn.Identity(), nn.Identity(), first.latent).origin, first.latent)
    with pytest.raises(WeightsError) as error:
        reload_reference(Reference(nn.Identity(), nn.Identity(), first.latent).origin, first.latent, "random:0")
    assert str(error.value) == (
        "this VAE was made of PyTorch modules of your own, which no weights (random:0) can stand for; pass them again: "
        "reference= of vaedeploy.verify_bundle, in Python"
    )


def test_compvis_file_with_attention_in_its_blocks(tmp_path: Path, photo: Tensor) -> None:
    """As kl-f16 has it, in small: the same numbers come out under both names."""
    architecture = msgspec.structs.replace(
        TINY,
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    )
    weights = random_tensors(architecture, 0)
    config = config_of(architecture, scaling_factor=0.5)
    plain = load_reference(folder(tmp_path / "plain", config, weights))
    theirs = {name: tensor.contiguous() for name, tensor in compvis(weights, blocks=2).items()}
    assert "decoder.up.1.attn.0.q.weight" in theirs
    assert load_reference(folder(tmp_path / "theirs", config, theirs)).identity == plain.identity


def test_progress_starts_at_nothing_and_ends_at_all(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    steps: list[tuple[str, float, float]] = []
    file = write_safetensors(tensors, tmp_path / "vae.safetensors")
    load_reference("demo", file, progress=lambda *step: steps.append(step))
    total = float(len(tensors))
    assert steps[0] == ("Loading weights", 0.0, total)
    assert steps[-1] == ("Loading weights", total, total)
