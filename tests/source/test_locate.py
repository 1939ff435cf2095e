"""Where a VAE is: presets, folders, lone files, and places without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from checkpoints import (
    CONTRACT,
    DEMO,
    DEMO_CONFIG,
    compvis,
    config_of,
    extend_presets,
    folder,
    full_checkpoint,
    message_of,
    write_ckpt,
    write_safetensors,
)
from torch import Tensor, nn

from vaedeploy.errors import UnknownPresetError, WeightsError
from vaedeploy.source import load_reference


@pytest.mark.parametrize("given", [None, nn.Identity()])
def test_what_is_no_name_and_no_path_is_refused(given: Any) -> None:
    with pytest.raises(WeightsError) as error:
        load_reference(given)
    assert str(error.value) == (
        f"the VAE is of type {type(given).__name__}; give a preset's name, a path, or two modules of your own as "
        "vaedeploy.Reference(encoder=..., decoder=..., latent=vaedeploy.LatentSpec(...))"
    )


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
