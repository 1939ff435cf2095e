from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save, save_file
from torch import Tensor, nn

from vaedeploy.errors import ContractError, InputError, UnknownPresetError, WeightsError
from vaedeploy.source import Preset, get_preset, load_reference, presets, reload_reference
from vaedeploy.source import preset as preset_module
from vaedeploy.source.autoencoder_kl.config import Architecture
from vaedeploy.source.autoencoder_kl.modules import random_tensors, tensor_shapes
from vaedeploy.values.latent import LatentSpec
from vaedeploy.values.reference import Reference

DEMO = get_preset("demo")
CONTRACT: Any = {"scale": DEMO.latent.scale, "shift": DEMO.latent.shift}
"""Given with the demo architecture wherever a test is not about the contract: that of the preset, stated or not."""
DEMO_CONFIG: Any = {"scaling_factor": DEMO.latent.scale, "shift_factor": DEMO.latent.shift}
"""The same, as a config.json states it."""

TINY = Architecture(
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    block_out_channels=(8, 16),
    norm_num_groups=4,
    latent_channels=4,
)
MORE = "Give weights of this architecture, or the preset that they belong to: vaedeploy presets"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Hundreds of small tensors a test: waking torch's thread pool for each takes longer than all of the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return random_tensors(DEMO.config, seed=0)


@pytest.fixture(scope="module")
def expected(tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The identity that every form of the same weights must have."""
    file = tmp_path_factory.mktemp("expected") / "vae.safetensors"
    save_file(tensors, file)
    return load_reference("demo", file, **CONTRACT).identity


@pytest.fixture
def photo() -> Tensor:
    return torch.rand((2, 3, 40, 64), generator=torch.Generator().manual_seed(1)) * 2 - 1


def folder(path: Path, config: dict[str, Any] | None, weights: dict[str, Tensor], name: str = "") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    save_file(weights, path / (name or "diffusion_pytorch_model.safetensors"))
    return path


def config_of(architecture: Architecture, **changes: Any) -> dict[str, Any]:
    fields = msgspec.to_builtins(architecture)
    return {"_class_name": "AutoencoderKL", "_diffusers_version": "0.4.2", **fields, **changes}


def message_of(kind: type[InputError], vae: str | Path, weights: str | Path | None = None, **contract: Any) -> str:
    with pytest.raises(kind) as caught:
        load_reference(vae, weights, **contract)
    assert type(caught.value) is kind
    assert caught.value.exit_code == 2
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ the modules


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


def test_own_modules_are_put_into_eval_mode_and_must_be_modules() -> None:
    latent = LatentSpec(channels=4, factor=8, scale=1.0)
    reference = Reference(nn.Dropout(), nn.Sequential(nn.Dropout()), latent)
    assert not any(m.training for m in (*reference.encoder.modules(), *reference.decoder.modules()))
    with pytest.raises(InputError) as error:
        Reference(nn.Identity(), torch.relu, latent)
    assert str(error.value) == "the decoder is of type builtin_function_or_method; it must be a torch.nn.Module"
    assert repr(reference) == (
        "Reference('vae', modules, LatentSpec(channels=4, factor=8, scale=1.0, shift=0.0, sampled=True))"
    )


@pytest.mark.parametrize("latent", [None, (32, 8), {"channels": 4}])
def test_a_latent_contract_must_be_one(latent: Any) -> None:
    with pytest.raises(InputError) as error:
        Reference(nn.Identity(), nn.Identity(), latent=latent)
    assert str(error.value) == (
        f"latent is {latent!r}; it must be a contract, such as vaedeploy.LatentSpec(channels=4, factor=8, "
        "scale=0.18215)"
    )


@pytest.mark.parametrize("given", [None, nn.Identity()])
def test_what_is_no_name_and_no_path_is_refused(given: Any) -> None:
    with pytest.raises(WeightsError) as error:
        load_reference(given)
    assert str(error.value) == (
        f"the VAE is of type {type(given).__name__}; give a preset's name, a path, or two modules of your own as "
        "vaedeploy.Reference(encoder=..., decoder=..., latent=vaedeploy.LatentSpec(...))"
    )


# ------------------------------------------------------------------------------------------------ random:SEED


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


# ------------------------------------------------------------------------------------------- forms of weights


def compvis(tensors: dict[str, Tensor], blocks: int = 4) -> dict[str, Tensor]:
    """The same weights under the names, and in the shapes, of CompVis' latent-diffusion."""
    rules: list[tuple[str, Any]] = [
        (r"encoder\.down_blocks\.(\d)\.resnets\.(\d)", r"encoder.down.\1.block.\2"),
        (r"encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample"),
        (r"decoder\.up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"decoder.up.{blocks - 1 - int(m[1])}.block.{m[2]}"),
        (r"decoder\.up_blocks\.(\d)\.upsamplers\.0", lambda m: f"decoder.up.{blocks - 1 - int(m[1])}.upsample"),
        (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
        (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
        ("conv_norm_out", "norm_out"),
        ("conv_shortcut", "nin_shortcut"),
    ]
    renamed = {}
    for name, tensor in tensors.items():
        is_matrix = ".attentions." in name and tensor.ndim == 2
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor[:, :, None, None] if is_matrix else tensor
    assert len(renamed) == len(tensors)
    return renamed


def old_attention(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights as diffusers named them before version 0.14, and sd-vae-ft-mse still does."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    pattern = re.compile(r"(attentions\.0\.)(to_q|to_k|to_v|to_out\.0)\.")
    return {pattern.sub(lambda m: f"{m[1]}{old[m[2]]}.", name): tensor for name, tensor in tensors.items()}


def full_checkpoint(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    inside = {f"first_stage_model.{name}": tensor for name, tensor in tensors.items()}
    others = {"model.diffusion_model.out.2.weight": torch.ones(4, 4), "cond_stage_model.ids": torch.arange(77)}
    return {**others, **inside, "encoder.conv_in.weight": torch.full((1,), torch.nan)}


def training_leftovers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, "loss.discriminator.main.0.weight": torch.ones(3), "model_ema.decay": torch.ones(1)}


def write_safetensors(tensors: dict[str, Tensor], path: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def write_ckpt(tensors: dict[str, Tensor], path: Path) -> Path:
    torch.save({"state_dict": OrderedDict(tensors), "global_step": 840000, "callbacks": {}}, path)
    return path


def write_flat_ckpt(tensors: dict[str, Tensor], path: Path) -> Path:
    torch.save(tensors, path)
    return path


def write_legacy_ckpt(tensors: dict[str, Tensor], path: Path) -> Path:
    torch.save({"state_dict": tensors}, path, _use_new_zipfile_serialization=False)
    return path


NAMINGS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "diffusers": dict,
    "old-diffusers": old_attention,
    "compvis": compvis,
    "compvis-training": lambda tensors: training_leftovers(compvis(tensors)),
    "compvis-full": lambda tensors: full_checkpoint(training_leftovers(compvis(tensors))),
    "diffusers-full": full_checkpoint,
}
WRITERS: dict[str, tuple[Callable[[dict[str, Tensor], Path], Path], str]] = {
    "safetensors": (write_safetensors, "vae.safetensors"),
    "ckpt": (write_ckpt, "vae.ckpt"),
    "flat-ckpt": (write_flat_ckpt, "vae.pt"),
    "legacy-ckpt": (write_legacy_ckpt, "vae.ckpt"),
    "safetensors-named-ckpt": (write_safetensors, "vae.ckpt"),
    "ckpt-named-safetensors": (write_ckpt, "vae.safetensors"),
}


@pytest.mark.parametrize(
    ("naming", "form"),
    [
        *((naming, form) for naming in NAMINGS for form in ("safetensors", "ckpt")),
        *(("compvis", form) for form in WRITERS if form not in ("safetensors", "ckpt")),
    ],
)
def test_every_form_of_the_same_weights_loads_bit_identical(
    tmp_path: Path, tensors: dict[str, Tensor], expected: str, naming: str, form: str
) -> None:
    write, name = WRITERS[form]
    file = write(NAMINGS[naming](tensors), tmp_path / name)
    reference = load_reference("demo", file, **CONTRACT)
    assert reference.identity == expected
    assert reference.origin.kind == "file"
    assert reference.origin.location == str(file.resolve())


def test_loaded_weights_are_those_in_the_file(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    reference = load_reference("demo", write_ckpt(compvis(tensors), tmp_path / "vae.ckpt"), **CONTRACT)
    loaded = {**reference.encoder.state_dict(), **reference.decoder.state_dict()}
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_weights_outlive_their_file(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    for write, name in (WRITERS["safetensors"], WRITERS["ckpt"]):
        file = write(tensors, tmp_path / name)
        reference = load_reference("demo", file, **CONTRACT)
        with file.open("r+b") as opened:
            opened.write(b"\xff" * file.stat().st_size)
        assert torch.equal(reference.decoder.state_dict()["decoder.conv_in.weight"], tensors["decoder.conv_in.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path: Path, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    file = write_safetensors({name: tensor.to(dtype) for name, tensor in tensors.items()}, tmp_path / "vae.safetensors")
    loaded = load_reference("demo", file, **CONTRACT).decoder.state_dict()
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}
    assert all(torch.equal(tensor, tensors[name].to(dtype).float()) for name, tensor in loaded.items())


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("", "diffusion_pytorch_model.safetensors"),
        ("vae", "diffusion_pytorch_model.safetensors"),
        ("", "diffusion_pytorch_model.fp16.safetensors"),
        ("", "diffusion_pytorch_model.bin"),
    ],
)
def test_folders(tmp_path: Path, tensors: dict[str, Tensor], expected: str, place: str, name: str) -> None:
    path = tmp_path / "my-vae"
    folder(path / place, config_of(DEMO.config, **DEMO_CONFIG), tensors, name)
    own, other = load_reference(path), load_reference("demo", path, **CONTRACT)
    assert own.identity == other.identity == expected
    assert (own.name, own.origin.kind, own.origin.preset) == ("my-vae", "folder", None)
    assert (other.name, other.origin.kind, other.origin.preset) == ("demo", "folder", "demo")
    assert own.origin.location == other.origin.location == str(path.resolve())
    assert load_reference(path / place).name == "my-vae"


def test_lone_file_is_known_by_its_tensors(tmp_path: Path, tensors: dict[str, Tensor], expected: str) -> None:
    file = write_ckpt(full_checkpoint(compvis(tensors)), tmp_path / "mixture.ckpt")
    reference = load_reference(file, **CONTRACT)
    assert reference.identity == expected
    assert (reference.name, reference.architecture) == ("mixture", "AutoencoderKL")
    assert reference.latent == DEMO.latent


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


def test_progress_starts_at_nothing_and_ends_at_all(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    steps: list[tuple[str, float, float]] = []
    file = write_safetensors(tensors, tmp_path / "vae.safetensors")
    load_reference("demo", file, progress=lambda *step: steps.append(step))
    total = float(len(tensors))
    assert steps[0] == ("Loading weights", 0.0, total)
    assert steps[-1] == ("Loading weights", total, total)


# ----------------------------------------------------------------------------------------- the latent contract


@pytest.fixture
def own(tmp_path: Path) -> Any:
    """Writes a small VAE of its own, with these changes to its config.json."""
    weights = random_tensors(TINY, seed=0)

    def write(**changes: Any) -> Path:
        return folder(tmp_path / "own", config_of(TINY, **changes), weights)

    return write


def test_contract_of_a_config(own: Any) -> None:
    assert load_reference(own(scaling_factor=0.5)).latent == LatentSpec(4, 2, 0.5, 0.0)
    assert load_reference(own(scaling_factor=0.5, shift_factor=None)).latent == LatentSpec(4, 2, 0.5, 0.0)
    assert load_reference(own(scaling_factor=2, shift_factor=0.25)).latent == LatentSpec(4, 2, 2.0, 0.25)


def test_contract_of_a_mean_and_deviation_a_channel(own: Any) -> None:
    path = own(scaling_factor=0.5, latents_mean=[1.0, 2.0, 3.0, 4.0], latents_std=[1.0, 2.0, 4.0, 0.5])
    reference = load_reference(path)
    assert reference.latent == LatentSpec(4, 2, (0.5, 0.25, 0.125, 1.0), (1.0, 2.0, 3.0, 4.0))
    assert reload_reference(reference.origin, reference.latent).identity == reference.identity


def test_given_contract_is_that_which_is_stated(own: Any) -> None:
    path = own(scaling_factor=0.5, shift_factor=0.25)
    assert load_reference(path, scale=0.5, shift=0.25).latent == LatentSpec(4, 2, 0.5, 0.25)
    assert message_of(ContractError, path, scale=3.0) == (
        f"the latent scale is stated already: {path / 'config.json'} says 0.5, and 3.0 was given (--scale, or scale= "
        "in Python). Leave --scale out. Where a config.json is wrong, change it there; where a preset's is not that "
        "of your weights, give them alone: --vae PATH --scale 3.0"
    )
    assert message_of(ContractError, path, shift=0.0).startswith(
        f"the latent shift is stated already: {path / 'config.json'} says 0.25, and 0.0 was given"
    )


def test_given_contract_does_not_override_a_presets() -> None:
    sd3 = get_preset("sd3").latent
    assert message_of(ContractError, "sd3", "random:0", scale=1.0).startswith(
        f"the latent scale is stated already: preset sd3 says {sd3.scale}, and 1.0 was given"
    )
    assert message_of(ContractError, "demo", shift=0.0).startswith("the latent shift is stated already: preset demo")


def test_given_shift_where_a_config_states_the_scale_alone(own: Any) -> None:
    assert load_reference(own(scaling_factor=0.5), shift=0.25).latent == LatentSpec(4, 2, 0.5, 0.25)


def test_missing_scale_is_never_filled_in(own: Any) -> None:
    path = own()
    assert "scaling_factor" not in json.loads((path / "config.json").read_text())
    assert message_of(ContractError, path) == (
        f"{path / 'diffusion_pytorch_model.safetensors'} does not state the scale of its latents. "
        "Give it: --scale NUMBER (scale= in Python)"
    )
    assert load_reference(path, scale=0.18215).latent == LatentSpec(4, 2, 0.18215, 0.0)


def test_lone_file_needs_its_contract_stated(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    file = write_safetensors(tensors, tmp_path / "vae.safetensors")
    alike = ", ".join(
        f"{name} has {get_preset(name).latent.scale} with shift {get_preset(name).latent.shift}"
        for name in ("demo", "demo-mse")
    )
    assert message_of(ContractError, file) == (
        f"{file} does not state the scale of its latents. Give it: --scale NUMBER (scale= in Python). Of this "
        f"architecture: {alike}"
    )
    assert message_of(ContractError, file, scale=0.25) == (
        f"{file} does not state the shift of its latents, and VAEs of its architecture have one. "
        f"Give it: --shift NUMBER (shift= in Python; 0 for none). Of this architecture: {alike}"
    )


def test_known_file_states_its_contract(
    tmp_path: Path, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_safetensors(tensors, tmp_path / "vae.safetensors")
    sha256 = str(load_reference(file, **CONTRACT).origin.sha256)
    latent = LatentSpec(16, 8, 0.5, 0.75)
    known = msgspec.structs.replace(DEMO, name="known", latent=latent, also_sha256=(sha256,), licence="MIT")
    extend_presets(monkeypatch, known)
    lone = load_reference(file)
    assert (lone.latent, lone.licence, lone.name) == (latent, "MIT", "vae")
    assert message_of(ContractError, "demo", file) == (
        f"the latent scale is stated in two ways: preset demo says {DEMO.latent.scale}, "
        f"{file} (by its sha256 the file of preset known) says 0.5. Say which holds: --scale NUMBER (scale= in Python)"
    )


def extend_presets(monkeypatch: pytest.MonkeyPatch, *more: Preset) -> None:
    extended = presets() | {preset.name: preset for preset in more}
    monkeypatch.setattr(preset_module, "_presets", lambda: extended)


@pytest.mark.parametrize(
    ("changes", "what", "stated"),
    [
        ({"scaling_factor": 0.7}, "scale", 0.7),
        ({"shift_factor": 0.3}, "shift", 0.3),
        ({"scaling_factor": DEMO.latent.scale, "shift_factor": None}, "shift", 0.0),
    ],
)
def test_config_and_preset_disagree(
    tmp_path: Path, tensors: dict[str, Tensor], changes: dict[str, Any], what: str, stated: float
) -> None:
    path = folder(tmp_path / "own", config_of(DEMO.config, **changes), tensors)
    assert message_of(ContractError, "demo", path) == (
        f"the latent {what} is stated in two ways: preset demo says {getattr(DEMO.latent, what)}, "
        f"{path / 'config.json'} says {stated}. Say which holds: --{what} NUMBER ({what}= in Python)"
    )
    preset = getattr(DEMO.latent, what)
    for held in (preset, stated):
        assert getattr(load_reference("demo", path, **dict[str, Any]({what: held})).latent, what) == held
    assert message_of(ContractError, "demo", path, **dict[str, Any]({what: 0.875})).startswith(
        f"the latent {what} is stated already: preset demo says {preset}, {path / 'config.json'} says {stated}, and "
        f"0.875 was given (--{what}, or {what}= in Python). Give one of those."
    )


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"scaling_factor": "0.18215"}, "scaling_factor is '0.18215'; it must be a number"),
        ({"scaling_factor": 1, "shift_factor": True}, "shift_factor is True; it must be a number"),
        ({"scaling_factor": 1, "latents_mean": "0"}, "latents_mean is '0'; it must be a list of numbers"),
    ],
)
def test_contract_of_the_wrong_type(own: Any, changes: dict[str, Any], problem: str) -> None:
    path = own(**changes)
    assert message_of(ContractError, path) == f"{path / 'config.json'}: {problem}"


@pytest.mark.parametrize(
    "changes",
    [
        {"latents_mean": [0, 0, 0, 0]},
        {"latents_std": [1, 1, 1, 1]},
        {"latents_mean": [0, 0, 0, 0], "latents_std": [1, 0, 1, 1]},
        {"latents_mean": [0, 0, 0, 0], "latents_std": [1, 1, 1, 1], "shift_factor": 0.5},
    ],
)
def test_contract_of_vectors_that_cannot_hold(own: Any, changes: dict[str, Any]) -> None:
    path = own(scaling_factor=1.0, **changes)
    assert message_of(ContractError, path) == (
        f"{path / 'config.json'} states its latents' mean and deviation in a way that cannot hold: latents_mean and "
        "latents_std belong together, without a shift_factor and without zeros in latents_std"
    )


def test_vector_of_the_wrong_length(own: Any) -> None:
    path = own(scaling_factor=1.0, latents_mean=[0, 0], latents_std=[1, 1])
    assert message_of(ContractError, path) == "latent scale has 2 numbers for 4 channels"


@pytest.mark.parametrize(
    ("contract", "message"),
    [
        ({"scale": 0.0}, "latent scale is 0; dividing by it is impossible"),
        ({"scale": float("inf")}, "latent scale is inf; it must be finite"),
        ({"shift": float("nan")}, "latent shift is nan; it must be finite"),
    ],
)
def test_given_contract_must_be_possible(own: Any, contract: dict[str, float], message: str) -> None:
    assert message_of(ContractError, own(), **{"scale": 1.0, **contract}) == message


# -------------------------------------------------------------------------------------------------- bad input


def test_unknown_preset() -> None:
    assert message_of(UnknownPresetError, "mse840") == (
        "no preset is named 'mse840'; the nearest are: mse840k. To see all 10: vaedeploy presets"
    )


def test_vae_that_is_not_there(tmp_path: Path) -> None:
    takes = (
        ". --vae takes a preset's name, a diffusers folder or a weights file; "
        "a hub repository goes with a preset: --vae PRESET --weights owner/name"
    )
    for vae in (tmp_path / "none", str(tmp_path / "none.ckpt"), "stabilityai/sd-vae-ft-mse", "none.safetensors"):
        assert message_of(WeightsError, vae) == f"there is no file or folder {vae}{takes}"


@pytest.mark.parametrize("given", ["none.safetensors", "models/none.safetensors", "a/b/c", "none", "../none", ""])
def test_weights_that_are_not_there(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = given or str(tmp_path / "none")
    assert message_of(WeightsError, "demo", given) == (
        f"there is no file or folder {given}. --weights takes a hub repository (owner/name), a diffusers folder, "
        "a .safetensors or .ckpt file, or random:SEED"
    )


def test_weights_for_a_vae_of_its_own(own: Any) -> None:
    path = own(scaling_factor=1.0)
    assert message_of(WeightsError, path, "random:0") == (
        f"--weights puts other weights into a preset's architecture, and --vae {path} is not a preset. "
        "Give the weights alone (--vae random:0), or a preset with them; vaedeploy presets lists them"
    )


def test_packaged_weights_that_are_missing_or_changed(
    tmp_path: Path, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_safetensors(tensors, tmp_path / "vae.safetensors")
    missing = msgspec.structs.replace(DEMO, name="missing", file=str(tmp_path / "none.safetensors"))
    changed = msgspec.structs.replace(DEMO, name="changed", file=str(file), sha256="0" * 64)
    extend_presets(monkeypatch, missing, changed)
    assert message_of(WeightsError, "missing") == (
        f"this installation carries no weights for preset missing ({tmp_path / 'none.safetensors'} is missing). "
        "Install vaedeploy again, or give other weights: --weights PATH"
    )
    sha256 = load_reference(file, **CONTRACT).origin.sha256
    assert message_of(WeightsError, "changed") == (
        f"preset changed has sha256 {sha256}, but preset changed is known by {'0' * 64}: the file was changed or "
        f"damaged. Delete {file.resolve()} and run the command again; or, if you trust it, copy it and give the copy: "
        "--weights PATH"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty. Download or copy it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
            "is a Git LFS pointer, not the weights. Fetch them with `git lfs pull`",
        ),
        (
            b"<!doctype html><html>",
            "is neither safetensors nor a PyTorch checkpoint: it starts with b'<!doctyp'. "
            "Give a .safetensors or .ckpt file, a diffusers folder or a hub repository",
        ),
        (
            b"\x40\x00\x00\x00\x00\x00\x00\x00{" + b" " * 20,
            "is truncated: it has 29 bytes of at least 72. Download or copy it again",
        ),
    ],
    ids=["empty", "lfs", "html", "header"],
)
def test_files_that_are_not_weights(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "vae.safetensors"
    file.write_bytes(content)
    assert message_of(WeightsError, "demo", file) == f"{file} {message}"


def test_truncated_safetensors(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    file = tmp_path / "vae.safetensors"
    whole = save(tensors)
    file.write_bytes(whole[: len(whole) // 2])
    message = f"{file} is truncated: it has {len(whole) // 2} bytes of at least {len(whole)}. Download or copy it again"
    assert message_of(WeightsError, "demo", file) == message
    assert message_of(WeightsError, file) == message


def test_damaged_safetensors(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    file = tmp_path / "vae.safetensors"
    for content in (
        save(tensors) + b"more",
        save(tensors).replace(b'"dtype"', b'"dtyqe"', 1),
        b"\x02" + b"\0" * 7 + b"{[",
    ):
        file.write_bytes(content)
        message = message_of(WeightsError, "demo", file)
        assert message.startswith(f"{file} is a damaged safetensors file: ")
        assert message.endswith(". Download or copy it again")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_damaged_checkpoint(tmp_path: Path, tensors: dict[str, Tensor], legacy: bool) -> None:
    file = (write_legacy_ckpt if legacy else write_ckpt)(tensors, tmp_path / "vae.ckpt")
    file.write_bytes(file.read_bytes()[:-1000])
    assert message_of(WeightsError, "demo", file).startswith(f"{file} is not a PyTorch checkpoint, or is damaged: ")


class RunsCode:
    """Makes a directory when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("name", ["vae.ckpt", "vae.safetensors"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pickle_with_code_is_refused_and_not_run(tmp_path: Path, name: str, zipped: bool) -> None:
    marker, file = tmp_path / "marker", tmp_path / name
    pickle.loads(pickle.dumps(RunsCode(marker)))
    marker.rmdir()  # so it would be there, had the code been run
    content = {"state_dict": {"a": torch.zeros(2)}, "more": RunsCode(marker)}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    assert message_of(WeightsError, "demo", file) == (
        f"{file} is a pickle that holds more than plain tensors (it wants {os.mkdir.__module__ or os.name}.mkdir). "
        "It is not opened, since that could run its author's code. "
        "Convert it to safetensors where you trust it, and give that file"
    )
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_bare_pickle_with_code_is_not_run(tmp_path: Path, protocol: int) -> None:
    marker, file = tmp_path / "marker", tmp_path / "vae.ckpt"
    file.write_bytes(pickle.dumps({"more": RunsCode(marker)}, protocol=protocol))
    assert message_of(WeightsError, "demo", file).startswith(f"{file} is ")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not tensors by their names (a state_dict)"),
        ({"a": 1, "b": torch.zeros(1), "c": "x"}, "holds 2 tensors not tensors: a, c. Give a plain state_dict"),
    ],
)
def test_checkpoints_of_other_things(tmp_path: Path, content: Any, message: str) -> None:
    file = tmp_path / "vae.ckpt"
    torch.save(content, file)
    assert message_of(WeightsError, "demo", file) == f"{file} {message}"


def changed(architecture: Architecture, **changes: Any) -> dict[str, Tensor]:
    return random_tensors(msgspec.structs.replace(architecture, **changes), seed=0)


FITS_NOT = "does not fit preset demo (architecture demo):"


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
        f"{file} {FITS_NOT} {len(names)} tensors missing ({', '.join(names[:10])} and {len(names) - 10} more). {MORE}"
    )


def test_lone_file_of_no_known_architecture(tmp_path: Path) -> None:
    file = write_safetensors(
        compvis(changed(DEMO.config, use_quant_conv=False, use_post_quant_conv=False)), tmp_path / "vae.safetensors"
    )
    assert message_of(WeightsError, file) == (
        f"{file} fits none of the known architectures (sd, sd-16-channels, demo). The nearest is demo: "
        "4 tensors missing (quant_conv.weight, quant_conv.bias, post_quant_conv.weight, post_quant_conv.bias). "
        "A VAE of another shape loads from a diffusers folder with its config.json"
    )


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


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite(tmp_path: Path, tensors: dict[str, Tensor], value: float) -> None:
    wrong = compvis({name: tensor.clone() for name, tensor in tensors.items()})
    wrong["decoder.mid.attn_1.q.weight"][3, 5] = value
    wrong["encoder.conv_in.bias"][-1] = value
    file = write_ckpt(wrong, tmp_path / "vae.ckpt")
    assert message_of(WeightsError, "demo", file) == (
        f"{file} holds 2 tensors with NaN or infinity: encoder.conv_in.bias, decoder.mid.attn_1.q.weight. "
        "Such a VAE gives black images; get the weights again, or in a higher precision"
    )


def test_quantised_weights(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    wrong = tensors | {"quant_conv.weight": tensors["quant_conv.weight"].to(torch.int8)}
    file = write_safetensors(wrong, tmp_path / "vae.safetensors")
    assert message_of(WeightsError, "demo", file) == (
        f"{file} holds 1 tensor not floating point: quant_conv.weight torch.int8. "
        "Give weights in float32, float16 or bfloat16; quantised ones cannot be loaded"
    )


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"_class_name": "AutoencoderTiny"},
            "is the config of AutoencoderTiny; the class that can be loaded is AutoencoderKL",
        ),
        (
            {"_class_name": None},
            "is the config of no class that it names; the class that can be loaded is AutoencoderKL",
        ),
        ({"in_channels": 1}, "has 1 channels in and 3 out; both must be 3 (RGB)"),
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
        f"{path / 'config.json'} is not the config of a diffusers AutoencoderKL: Input data was truncated"
    )


@pytest.mark.parametrize(
    "changes",
    [{"norm_num_groups": 5}, {"block_out_channels": [8]}, {"down_block_types": ["NoSuchBlock"] * 2}, {"act_fn": "no"}],
)
def test_config_that_diffusers_cannot_build(own: Any, changes: dict[str, Any]) -> None:
    message = message_of(WeightsError, own(scaling_factor=1.0, **changes))
    assert message.startswith("diffusers cannot build an AutoencoderKL of this config: ")


def test_folder_of_another_architecture_than_the_preset(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    # Neither difference shows in any tensor's shape.
    path = folder(tmp_path / "own", config_of(DEMO.config, norm_num_groups=8, act_fn="relu", sample_size=64), tensors)
    assert message_of(WeightsError, "demo", path) == (
        f"{path / 'diffusion_pytorch_model.safetensors'} is of another architecture than preset demo (architecture "
        "demo): its config.json has act_fn relu, not silu; norm_num_groups 8, not 4. "
        "Give the preset that it belongs to (vaedeploy presets), or the folder itself: --vae PATH"
    )


def test_folders_without_what_they_need(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    empty, bare = tmp_path / "empty", folder(tmp_path / "bare", None, tensors)
    empty.mkdir()
    for arguments in ((empty,), ("demo", empty)):
        assert message_of(WeightsError, *arguments) == (
            f"{empty} holds no diffusion_pytorch_model.safetensors or diffusion_pytorch_model.bin. "
            "Give a diffusers folder, or the weights file itself"
        )
    assert message_of(WeightsError, bare) == (
        f"{bare} has no config.json to say which VAE it is. Give the weights file itself (--vae "
        f"{bare / 'diffusion_pytorch_model.safetensors'}), or a preset with the folder (--vae PRESET --weights {bare})"
    )
    assert load_reference("demo", bare).latent == DEMO.latent
