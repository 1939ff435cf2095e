"""Where a VAE is: presets, folders, lone files, and places without one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from checkpoints import (
    CONTRACT,
    DEMO,
    DEMO_CONFIG,
    TINY,
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
from vaedeploy.source import find_source, known_name, load_reference, load_source, presets, reload_reference
from vaedeploy.source.folder import WEIGHTS, _candidates, find_weights
from vaedeploy.source.network import random_tensors
from vaedeploy.values.latent import LatentSpec


@pytest.mark.parametrize("given", [None, nn.Identity()])
def test_what_is_no_name_and_no_path_is_refused(given: Any) -> None:
    with pytest.raises(WeightsError) as error:
        load_reference(given)
    assert str(error.value) == (
        f"the VAE is of type {type(given).__name__}; give a preset's name, a path, or two modules of your own as "
        "vaedeploy.Reference(encoder=..., decoder=..., latent=vaedeploy.LatentSpec(...))"
    )


def test_a_vae_of_diffusers_is_to_be_saved() -> None:
    from diffusers import AutoencoderTiny

    vae = AutoencoderTiny()
    with pytest.raises(WeightsError) as error:
        load_reference(vae)
    assert str(error.value) == (
        "the VAE is an object, of type AutoencoderTiny; save it with .save_pretrained(FOLDER), and give that folder"
    )


@pytest.mark.parametrize("weights", [None, "random:7"])
def test_the_name_is_known_before_loading(weights: str | None) -> None:
    source = find_source("demo", weights)
    assert known_name(source) == load_source(source).name


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("", "diffusion_pytorch_model.safetensors"),
        ("vae", "diffusion_pytorch_model.safetensors"),
        ("movq", "diffusion_pytorch_model.safetensors"),
        ("", "diffusion_pytorch_model.fp16.safetensors"),
        ("", "diffusion_pytorch_model.bin"),
    ],
)
def test_folders(tmp_path: Path, tensors: dict[str, Tensor], expected: str, place: str, name: str) -> None:
    path = tmp_path / "my-vae"
    folder(path / place, config_of(DEMO.config, **DEMO_CONFIG), tensors, name)
    own, other = load_reference(path), load_reference("demo", path, **CONTRACT)
    assert own.identity == other.identity == expected
    assert known_name(find_source(path)) == own.name
    assert (own.name, own.origin.kind, own.origin.preset) == ("my-vae", "folder", None)
    assert (other.name, other.origin.kind, other.origin.preset) == ("my-vae", "folder", "demo")
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
        "no preset is named 'mse840', and there is no file or folder of that name; the nearest are: mse840k. "
        f"To see all {len(presets())}: vaedeploy presets"
    )


def test_vae_that_is_not_there(tmp_path: Path) -> None:
    takes = (
        ". A VAE is a preset's name, a hub repository (owner/name or owner/name@revision), a diffusers folder or a "
        "weights file"
    )
    for vae in (tmp_path / "none", str(tmp_path / "none.ckpt"), "models/none.ckpt", "a/b/c", "none.safetensors"):
        assert message_of(WeightsError, vae) == f"there is no file or folder {vae}{takes}"


def test_of_a_missing_weights_file_the_nearest_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.safetensors").touch()
    told = "there is no file or folder mien.safetensors; the nearest is mine.safetensors. "
    assert message_of(WeightsError, "mien.safetensors").startswith(f"{told}A VAE is a preset's name")
    assert message_of(WeightsError, "demo", "mien.safetensors").startswith(f"{told}--weights takes")


@pytest.mark.parametrize(
    "given", ["none.safetensors", "models/none.safetensors", "a/b/c", "none", "../none", "", "x" * 5000]
)
def test_weights_that_are_not_there(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    given = given or str(tmp_path / "none")
    fact = f"there is no file or folder {given}" if len(given) < 256 else f"{given} cannot be read: File name too long"
    assert message_of(WeightsError, "demo", given) == (
        f"{fact}. --weights takes a hub repository (owner/name or owner/name@revision), "
        "a diffusers folder, a .safetensors or .ckpt file, or random:SEED"
    )


def test_weights_for_the_config_of_a_folder(own: Any, tmp_path: Path) -> None:
    path = own(scaling_factor=0.5, shift_factor=0.25)
    other = random_tensors(TINY, seed=1)
    file = write_safetensors(other, tmp_path / "finetune.safetensors")
    reference = load_reference(path, file)
    assert (reference.name, reference.origin.kind, reference.origin.location) == ("finetune", "file", str(file))
    assert (reference.origin.preset, reference.origin.config) == (None, str(path))
    assert reference.latent == LatentSpec(4, 2, 0.5, 0.25)
    folder(tmp_path / "whole", config_of(TINY, scaling_factor=0.5, shift_factor=0.25), other)
    assert reference.identity == load_reference(tmp_path / "whole").identity
    assert reload_reference(reference.origin, reference.latent).identity == reference.identity
    moved = file.rename(tmp_path / "moved.safetensors")
    assert reload_reference(reference.origin, reference.latent, moved).identity == reference.identity
    (path / "config.json").unlink()
    assert message_of(WeightsError, path, moved) == (
        "--weights puts other weights into the architecture of a preset or of a folder with a config.json, and --vae "
        f"{path} is neither. Give the weights alone (--vae {moved}), or a preset with them; vaedeploy presets lists "
        "them"
    )


def test_weights_for_the_config_of_a_folder_that_are_not_there(own: Any) -> None:
    path = own(scaling_factor=1.0)
    for weights in ("random:0", "owner/name", "none.safetensors"):
        assert message_of(WeightsError, path, weights) == (
            f"there is no file or folder {weights}. With --vae {path}, --weights takes a diffusers folder, or a "
            ".safetensors or .ckpt file"
        )


def test_subfolder(own: Any, tmp_path: Path) -> None:
    inside = own(scaling_factor=0.5).rename(tmp_path / "second_vae")
    reference = load_reference(tmp_path, subfolder="second_vae")
    assert (reference.name, reference.origin.subfolder) == ("second_vae", "second_vae")
    assert reload_reference(reference.origin, reference.latent).identity == reference.identity
    assert message_of(WeightsError, tmp_path, subfolder="none") == (
        f"{tmp_path} has no folder none. Give one that it has: --subfolder NAME"
    )
    file = inside / "diffusion_pytorch_model.safetensors"
    assert message_of(WeightsError, file, subfolder="vae") == (
        f"--subfolder vae is for folders and hub repositories, and {file} is neither"
    )
    assert message_of(WeightsError, tmp_path, subfolder="../x").startswith("--subfolder is ../x; it must be a folder")


def test_revision_is_for_repositories(own: Any) -> None:
    path = own(scaling_factor=0.5)
    where = path / "diffusion_pytorch_model.safetensors"
    for arguments, what in (((path,), where), (("demo",), "preset demo"), (("demo", "random:0"), "random:0")):
        assert message_of(WeightsError, *arguments, revision="v1") == (
            f"--revision v1 is for hub repositories, and {what} is none. Leave it out"
        )
    assert message_of(WeightsError, "owner/name@v1", revision="v2") == (
        "the revision of owner/name is given twice: @v1 and --revision v2. Give one of them"
    )
    assert find_source("owner/name@v1") == find_source("owner/name", revision="v1")
    assert find_source("mse840k", "owner/name@v1") == find_source("mse840k", "owner/name", revision="v1")


def test_names(tmp_path: Path, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are not the preset's own are not called by its name."""
    file = write_safetensors(tensors, tmp_path / "finetune.safetensors")
    path = folder(tmp_path / "pipeline" / "vae", config_of(DEMO.config, **DEMO_CONFIG), tensors)
    names = [load_reference("demo", place).name for place in (file, path, path.parent, path / file_name())]
    assert names == ["finetune", "pipeline", "pipeline", "pipeline"]
    assert load_reference("demo", "random:3").name == "demo-random-3"
    known = msgspec.structs.replace(DEMO, also_sha256=(str(load_reference("demo", file).origin.sha256),))
    extend_presets(monkeypatch, known)
    assert load_reference("demo", file).name == "demo"


def file_name() -> str:
    return "diffusion_pytorch_model.safetensors"


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


SHARDS = (
    "diffusion_pytorch_model{}-00001-of-00002.safetensors",
    "diffusion_pytorch_model{}-00002-of-00002.safetensors",
)


def in_shards(path: Path, tensors: dict[str, Tensor], variant: str = "") -> Path:
    """A folder as diffusers writes it where the weights are larger than one file may be."""
    names = [name.format(variant) for name in SHARDS]
    halves = [dict(list(tensors.items())[start::2]) for start in range(2)]
    for name, half in zip(names, halves, strict=True):
        folder(path, config_of(DEMO.config, **DEMO_CONFIG), half, name)
    index = {"weight_map": {tensor: name for name, half in zip(names, halves, strict=True) for tensor in half}}
    (path / f"diffusion_pytorch_model.safetensors.index{variant}.json").write_text(json.dumps(index))
    return path


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_weights_in_parts(tmp_path: Path, tensors: dict[str, Tensor], expected: str, variant: str) -> None:
    path = in_shards(tmp_path / "own", tensors, variant)
    reference = load_reference(path)
    parts = [hashlib.sha256((path / name.format(variant)).read_bytes()).hexdigest() for name in SHARDS]
    assert reference.identity == expected
    assert reference.origin.sha256 == hashlib.sha256("".join(f"{part}\n" for part in parts).encode()).hexdigest()
    assert reload_reference(reference.origin, reference.latent).identity == expected
    (path / SHARDS[1].format(variant)).unlink()
    index = f"diffusion_pytorch_model.safetensors.index{variant}.json"
    assert message_of(WeightsError, path) == (
        f"{path / SHARDS[1].format(variant)}, a part of the weights that {index} lists, is not there. "
        "Download the repository again"
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            '{"weight_map": {"a": "../../etc/passwd"}}',
            "names '../../etc/passwd' as a part of the weights, which is",
        ),
        ('{"weight_map": {"a": "/etc/passwd"}}', "names '/etc/passwd' as a part of the weights, which is not a file"),
        ('{"weight_map": {}}', "lists no parts of weights"),
        ('{"weight_map": 1}', "does not list the parts of weights: Expected `object`, got `int`"),
        ('{"weight_map": {}, "x": ' + "[" * 100_000, "does not list the parts of weights: "),
    ],
    ids=["outside", "absolute", "none", "number", "deep"],
)
def test_lists_of_parts_that_cannot_be_used(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "own"
    path.mkdir()
    index = path / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(content)
    assert message_of(WeightsError, path).startswith(f"{index} {problem}")


@pytest.mark.parametrize("variant", ["non_ema", "bf16", "fp16"])
def test_variants(tmp_path: Path, tensors: dict[str, Tensor], expected: str, variant: str) -> None:
    config = config_of(DEMO.config, **DEMO_CONFIG)
    path = folder(tmp_path / "own", config, tensors, f"diffusion_pytorch_model.{variant}.safetensors")
    assert load_reference(path).identity == expected


def test_of_several_variants_the_most_precise_is_taken(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = tmp_path / "own"
    # Each is better than those before it.
    names = ["bf16.bin", "bf16.safetensors", "fp16.safetensors", "non_ema.bin", "non_ema.safetensors", "safetensors"]
    for name in names:
        folder(path, config_of(DEMO.config, **DEMO_CONFIG), tensors, f"diffusion_pytorch_model.{name}")
        assert find_weights(path).where.name == f"diffusion_pytorch_model.{name}"
        if name == "non_ema.safetensors":
            other = path / "diffusion_pytorch_model.ema.safetensors"
            other.touch()
            assert message_of(WeightsError, path) == (
                f"{path} holds several variants of the weights: {other.name}, "
                "diffusion_pytorch_model.non_ema.safetensors, diffusion_pytorch_model.non_ema.bin. "
                "Give the file of the one that you mean"
            )
            other.unlink()


def test_repositories_are_looked_through_by_the_same_rule(tmp_path: Path) -> None:
    assert [found.path.name for found in _candidates(tmp_path, sorted(WEIGHTS))] == list(WEIGHTS)


def test_link_that_leads_nowhere(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = folder(tmp_path / "own", config_of(DEMO.config, **DEMO_CONFIG), tensors)
    file = path / "diffusion_pytorch_model.safetensors"
    file.unlink()
    file.symlink_to(tmp_path / "blobs" / "abc")
    folder(path, None, tensors, "diffusion_pytorch_model.fp16.safetensors")
    assert message_of(WeightsError, path) == (
        f"{file} is a link to {tmp_path / 'blobs' / 'abc'}, which is not there. Download the repository again"
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
