"""The latent contract: stated by a config, a preset or the caller, and never filled in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from checkpoints import CONTRACT, DEMO, config_of, extend_presets, folder, message_of, write_safetensors
from torch import Tensor

from vaedeploy.errors import ContractError
from vaedeploy.source import get_preset, load_reference, reload_reference
from vaedeploy.values.latent import LatentSpec

ONE_OR_EACH = "; it must be one number, or one for each channel"


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
        f"{path / 'config.json'} does not state the scale of the latents. Give it: --scale NUMBER (scale= in Python)"
    )
    file = path.parent / "other.safetensors"
    file.write_bytes((path / "diffusion_pytorch_model.safetensors").read_bytes())
    assert message_of(ContractError, path, file).startswith(f"{path / 'config.json'} does not state the scale of the ")
    assert load_reference(path, scale=0.18215).latent == LatentSpec(4, 2, 0.18215, 0.0)


def test_lone_file_needs_its_contract_stated(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    file = write_safetensors(tensors, tmp_path / "vae.safetensors")
    alike = ", ".join(
        f"{name} has {get_preset(name).latent.scale} with shift {get_preset(name).latent.shift}"
        for name in ("demo", "demo-mse")
    )
    assert message_of(ContractError, file) == (
        f"{file} does not state the scale of the latents. Give it: --scale NUMBER (scale= in Python). Of this "
        f"architecture: {alike}"
    )
    assert message_of(ContractError, file, scale=0.25) == (
        f"{file} does not state the shift of the latents, and VAEs of its architecture have one. "
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
        ({"scaling_factor": 10**400}, f"scaling_factor is 1{'0' * 199}...; it must be a number"),
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
    message = message_of(ContractError, path)
    assert message.startswith(
        f"{path / 'config.json'} states its latents' mean and deviation in a way that cannot hold: latents_mean and "
        "latents_std belong together, without a shift_factor and without zeros in latents_std. "
    )
    assert message.endswith(
        ". Say what holds, with both of --scale and --shift (scale= and shift= in Python): one number, or one for each "
        "channel, separated by commas"
    )
    for half in ({"scale": 0.5}, {"shift": 0.5}):
        assert message_of(ContractError, path, **half) == message
    assert load_reference(path, scale=0.5, shift=(1, 2, 3, 4)).latent == LatentSpec(4, 2, 0.5, (1.0, 2.0, 3.0, 4.0))


@pytest.mark.parametrize("fields", [("latents_mean",), ("latents_std",), ("latents_mean", "latents_std")])
def test_vectors_without_a_scale_are_not_dropped(own: Any, fields: tuple[str, ...]) -> None:
    path = own(**{key: [1, 2, 3, 4] for key in fields})
    for given in ({}, {"scale": 1.0}):
        assert message_of(ContractError, path, **given).startswith(
            f"{path / 'config.json'} has latents_mean or latents_std and no scaling_factor, so it does not say what "
            "scale they belong to. Say what holds, with both of --scale and --shift "
        )
    assert load_reference(path, scale=1, shift=(1, 2, 3, 4)).latent == LatentSpec(4, 2, 1.0, (1.0, 2.0, 3.0, 4.0))


def test_a_scale_of_zero_names_the_config(own: Any) -> None:
    path = own(scaling_factor=0)
    assert message_of(ContractError, path) == (
        f"{path / 'config.json'} cannot hold: latent scale is 0; dividing by it is impossible. Change it there"
    )


def test_config_with_everything_at_once_says_both_of_its_meanings(own: Any) -> None:
    path = own(scaling_factor=0.5, shift_factor=0.25, latents_mean=[0, 1, 2, 3], latents_std=[1, 2, 4, 8])
    assert (
        ". Its means and deviations say --scale 0.5,0.25,0.125,0.0625 --shift 0.0,1.0,2.0,3.0, and its factors say "
        "--scale 0.5 --shift 0.25. Say what holds"
    ) in message_of(ContractError, path)


def test_one_number_for_each_channel(own: Any) -> None:
    numbers: Any = {"scale": [0.5, 1.0, 2.0, 4.0], "shift": (0, 0, 0, 1)}
    assert load_reference(own(), **numbers).latent == LatentSpec(4, 2, (0.5, 1.0, 2.0, 4.0), (0.0, 0.0, 0.0, 1.0))
    assert (
        message_of(ContractError, own(), scale=(1, 2, 3)) == f"latent scale has 3 numbers for 4 channels{ONE_OR_EACH}"
    )
    assert message_of(ContractError, own(scaling_factor=1), scale=(1, 2, 3, 4)).startswith(
        f"the latent scale is stated already: {own(scaling_factor=1) / 'config.json'} says 1.0, and "
        "(1.0, 2.0, 3.0, 4.0) was given"
    )


@pytest.mark.parametrize("given", ["one", [1, "two", 3, 4], object()])
def test_given_contract_that_is_not_numbers(own: Any, given: Any) -> None:
    assert message_of(ContractError, own(), scale=given) == (
        f"latent scale is {given!r}; it must be one number, or one number per channel"
    )


def test_vector_of_the_wrong_length(own: Any) -> None:
    path = own(scaling_factor=1.0, latents_mean=[0, 0], latents_std=[1, 1])
    assert message_of(ContractError, path) == (
        f"{path / 'config.json'} cannot hold: latent scale has 2 numbers for 4 channels{ONE_OR_EACH}. Change it there"
    )


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
