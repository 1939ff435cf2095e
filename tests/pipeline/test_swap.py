"""Swapping the VAE of a bundle, with the two that the package carries."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from command_line import Ended
from engine_files import snapshot, write_profile
from family_cases import CASES

from vaedeploy.bundle import Bundle, check_bundle
from vaedeploy.bundle.manifest import NAME
from vaedeploy.cli.tables.results import drift_rows
from vaedeploy.errors import InputError, VerificationError, WeightsError
from vaedeploy.pipeline.build import build_engines
from vaedeploy.pipeline.export import export_vae
from vaedeploy.pipeline.swap import Drift, restore_vae, swap_vae
from vaedeploy.runtime import VAE
from vaedeploy.source import get_preset, load_reference
from vaedeploy.testing.tiny import flat_reference, tiny_reference
from vaedeploy.values.origin import Origin
from vaedeploy.verify.limits import LIMITS, Limit

pytestmark = pytest.mark.usefixtures("verified_smaller")

ENGINE = "engines/mine/decoder.tensorrt-rtx.engine"


@pytest.fixture
def bundle(demo_bundle: Bundle, tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(demo_bundle.path, tmp_path / "demo"))


@pytest.fixture(scope="module")
def exported_flat(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_vae(flat_reference(), out=tmp_path_factory.mktemp("exported") / "flat")


@pytest.fixture
def flat(exported_flat: Bundle, tmp_path: Path) -> Bundle:
    """A copy of it, to be changed."""
    return Bundle.open(shutil.copytree(exported_flat.path, tmp_path / "flat"))


@pytest.mark.slow
def test_there_and_back(
    vaedeploy: Callable[..., Ended], bundle: Bundle, demo_mse_bundle: Bundle, tmp_path: Path
) -> None:
    """demo -> demo-mse -> demo again on the command line, engines and all."""
    write_profile(tmp_path, shapes="{ a = { height = 64, width = 64 } }")
    before = build_engines(bundle, ["mine"], folder=tmp_path)
    first = snapshot(before)

    ended = vaedeploy("swap", bundle.path, "--vae", "demo-mse")
    assert ended.code == 0
    swapped = check_bundle(bundle.path)
    assert swapped.verified
    assert swapped.manifest.vae.identity == load_reference("demo-mse").identity
    assert swapped.manifest.engines[ENGINE].identity.shapes == before.manifest.engines[ENGINE].identity.shapes
    assert swapped.manifest.engines[ENGINE].identity.graph == swapped.manifest.contents["decoder"]
    assert swapped.manifest.engines[ENGINE].identity.graph != before.manifest.engines[ENGINE].identity.graph
    rows = dict(line.split(None, 1) for line in ended.out.splitlines())
    assert rows["VAE"] == "demo-mse (AutoencoderKL)"
    assert rows["latents"] == "unchanged"  # both have one encoder
    levels, psnr = map(float, re.findall(r"\d+\.\d+", rows["images"]))
    assert 0 < levels < 5
    assert 30 < psnr < 60
    shift = [float(number) for number in re.findall(r"[+-]\d+\.\d+", rows["brightness"])]
    assert len(shift) == 3
    assert all(abs(levels) < 2 for levels in shift)

    latent = np.random.default_rng(0).normal(size=(1, 16, 4, 4)).astype(np.float32)
    with VAE(swapped.path) as vae, pytest.warns(UserWarning, match="was never verified"):
        np.testing.assert_array_equal(vae.decode(latent), VAE(demo_mse_bundle.path).decode(latent))

    told = json.loads(vaedeploy("swap", bundle.path, "--restore", "--json").out)
    assert (told["path"], told["verified"], told["drift"], told["error"]) == (str(bundle.path), True, None, None)
    assert snapshot(bundle) == first
    check_bundle(bundle.path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "mine.toml"]


@pytest.mark.parametrize(("moved", "told"), [(0.0, "unchanged"), (0.0123, "differ by 1.23% (relative L2)")])
def test_latents_that_stay_are_told_as_unchanged(bundle: Bundle, moved: float, told: str) -> None:
    assert ("latents", told) in drift_rows(bundle, Drift(moved, None, 0.0, (0.0, 0.0, 0.0)))


@pytest.mark.slow
def test_of_several_swaps_the_first_vae_is_kept(flat: Bundle) -> None:
    first = snapshot(flat)
    for seed in (1, 2):
        flat, drift = swap_vae(flat, flat_reference(seed))
        assert drift.latent_rel_l2 > 0.5
        assert drift.mean_levels > 10
        assert flat.manifest.vae.identity == flat_reference(seed).identity
    assert not (flat.path / "previous" / "previous").exists()
    assert snapshot(restore_vae(flat.path)) == first


@pytest.mark.slow
def test_a_bundle_without_rewrites_stays_without(tmp_path: Path) -> None:
    plain = export_vae(flat_reference(), out=tmp_path / "flat", precision="fp16", rewrite=False)
    swapped, _ = swap_vae(plain, flat_reference(1))
    assert swapped.manifest.rewrites.keys() == plain.manifest.rewrites.keys()
    assert not swapped.manifest.rewritten
    assert swapped.manifest.vae.identity == flat_reference(1).identity


def test_a_private_bundle_stays_private(tmp_path: Path) -> None:
    first, second = (
        dataclasses.replace(flat_reference(seed), origin=Origin("file", f"/home/me/{seed}.ckpt", "0" * 64, None))
        for seed in (0, 1)
    )
    made = export_vae(first, out=tmp_path / "flat", private=True)
    swapped, _ = swap_vae(made, second)
    assert swapped.manifest.vae.origin.location == "1.ckpt"
    assert not any(b"/home/me" in (swapped.path / name).read_bytes() for name in (NAME, *swapped.manifest.files))


def test_another_latent_contract_is_refused(bundle: Bundle) -> None:
    before = snapshot(bundle)
    demo = load_reference("demo")
    with pytest.raises(InputError) as refused:
        swap_vae(bundle, dataclasses.replace(demo, latent=msgspec.structs.replace(demo.latent, scale=0.5)))
    assert str(refused.value) == (
        f"demo has another latent contract than bundle {bundle.path}: scale (bundle: "
        f"{bundle.manifest.latent.scale}, demo: 0.5). Diffusion models made for one of them give the other wrong "
        "latents. Export it to a bundle of its own"
    )
    assert snapshot(bundle) == before


def test_what_is_no_vae_is_refused(bundle: Bundle) -> None:
    with pytest.raises(WeightsError, match="the VAE is of type NoneType; give a preset's name, a path, or two modules"):
        swap_vae(bundle, None)  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match="a Reference already has weights and a latent contract; leave"):
        swap_vae(bundle, load_reference("demo-mse"), weights="random:0")
    with pytest.raises(WeightsError, match=r"^.* is a bundle, exported already; give what it was made from"):
        swap_vae(bundle, bundle.path)


def test_another_architecture_is_refused(bundle: Bundle) -> None:
    before = snapshot(bundle)
    with pytest.raises(InputError, match=r"is of architecture .*, and bundle .* holds an AutoencoderKL; a swap keeps"):
        swap_vae(bundle, tiny_reference())
    assert snapshot(bundle) == before


@pytest.mark.slow
def test_a_form_that_was_asked_for_is_kept(tmp_path: Path) -> None:
    made = export_vae(
        flat_reference(), out=tmp_path / "flat", precision="fp16", forms=["onnxruntime-cuda"], verify=False
    )
    with pytest.warns(UserWarning, match="was never verified"):  # of the old one, which is compared with the new one
        swapped, _ = swap_vae(made, flat_reference(1))
    assert swapped.manifest.graphs == made.manifest.graphs
    assert swapped.manifest.graphs["decoder"]["onnxruntime-cuda"] == "decoder.cuda.onnx"
    of_form = [
        {name: info for name, info in each.manifest.files.items() if name.startswith("decoder.cuda.onnx")}
        for each in (swapped, made)
    ]
    assert of_form[0].keys() == of_form[1].keys()
    assert of_form[0] != of_form[1], "the weights are those of the new VAE"


@pytest.mark.slow
def test_a_vae_that_fails_its_verification(flat: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits are made impossible, since no good VAE fails them."""
    impossible = (Limit("rel_l2", 1e-12, True, "for this test"),)
    monkeypatch.setitem(LIMITS, "fp32", impossible)
    before = snapshot(flat)
    with pytest.raises(VerificationError) as failed:
        swap_vae(flat, flat_reference(1))
    assert f"so bundle {flat.path} keeps the VAE that it has" in str(failed.value)
    assert snapshot(flat) == before
    assert [path.name for path in flat.path.parent.iterdir()] == ["flat"]


def test_nothing_to_restore(bundle: Bundle) -> None:
    with pytest.raises(InputError, match=r"holds the VAE that it was made with: there is nothing to restore$"):
        restore_vae(bundle)


@pytest.mark.parametrize("arguments", [[], ["demo-mse", "--restore"]])
def test_one_of_two_options(vaedeploy: Callable[..., Ended], bundle: Bundle, arguments: list[str]) -> None:
    ended = vaedeploy("swap", bundle.path, *arguments)
    assert ended.code == 2
    assert "Give either VAE, which says what to put in, or --restore." in ended.err


def test_the_two_presets_have_one_contract() -> None:
    assert get_preset("demo").latent == get_preset("demo-mse").latent


def test_where_a_vae_is_belongs_to_a_vae(vaedeploy: Callable[..., Ended], tmp_path: Path) -> None:
    where = "the repository or folder"
    for option, what in (
        ("--weights", "the folder with the config.json, or a preset"),
        ("--revision", where),
        ("--subfolder", where),
    ):
        ended = vaedeploy("swap", tmp_path / "demo", option, "x y")
        assert ended.code == 2
        line = f"vaedeploy swap {tmp_path / 'demo'} VAE {option} 'x y'"
        assert f"{option} needs VAE, which says what to put in, here {what}: {line}\n" in ended.err


def test_place_of_a_vae_is_given_as_for_export(vaedeploy: Callable[..., Ended], bundle: Bundle, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    CASES["AutoencoderTiny"].folder(repository / "second")
    for option, value, told in (
        ("--subfolder", "none", f"{repository} has no folder none. Give one that it has: --subfolder NAME"),
        ("--subfolder", "second", f"second is of architecture AutoencoderTiny, and bundle {bundle.path} holds an Auto"),
        ("--revision", "v1", "--revision v1 is for hub repositories, and "),
    ):
        vae = repository / "second" if option == "--revision" else repository
        ended = vaedeploy("swap", bundle.path, "--vae", vae, option, value)
        assert (ended.code, ended.out) == (2, "")
        assert told in ended.err
