"""Swapping the VAE of a bundle, with the two that the package carries."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Ended
from test_engines import snapshot
from test_profile import written
from tiny_modules import tiny_reference

from vaedeploy.bundle import Bundle, check_bundle
from vaedeploy.engines import build_engines
from vaedeploy.errors import InputError, VerificationError
from vaedeploy.pipeline import export_vae
from vaedeploy.preset import get_preset
from vaedeploy.runtime import VAE
from vaedeploy.source import load_reference
from vaedeploy.swap import restore_vae, swap_vae

ENGINE = "engines/mine/decoder.tensorrt-rtx.engine"


@pytest.fixture
def bundle(demo_bundle: Bundle, tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(demo_bundle.path, tmp_path / "demo"))


@pytest.mark.slow
def test_there_and_back(bundle: Bundle, tmp_path: Path) -> None:
    """demo -> demo-mse -> the seeded one -> demo again, engines and all."""
    written(tmp_path, shapes="{ a = { height = 64, width = 64 } }")
    before = build_engines(bundle, ["mine"], folder=tmp_path)
    first = snapshot(before)

    swapped, drift = swap_vae(before, "demo-mse")
    check_bundle(swapped.path)
    assert swapped.verified
    assert swapped.manifest.vae.identity == load_reference("demo-mse").identity
    assert swapped.manifest.engines[ENGINE].identity.shapes == before.manifest.engines[ENGINE].identity.shapes
    assert swapped.manifest.engines[ENGINE].identity.graph == swapped.manifest.contents["decoder"]
    assert swapped.manifest.engines[ENGINE].identity.graph != before.manifest.engines[ENGINE].identity.graph
    assert drift.latent_rel_l2 == 0  # both have one encoder
    assert 0 < drift.mean_levels < 5
    assert drift.psnr is not None
    assert 30 < drift.psnr < 60
    assert all(abs(shift) < 2 for shift in drift.shift)

    again, far = swap_vae(swapped, "demo", weights="random:0")
    assert far.latent_rel_l2 > 0.5
    assert far.mean_levels > 10
    assert [path.name for path in (again.path / "previous").iterdir() if path.name == "previous"] == []

    restored = restore_vae(again)
    assert snapshot(restored) == first
    check_bundle(restored.path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "mine.toml"]


@pytest.mark.slow
def test_the_picture_is_the_new_vaes(bundle: Bundle, tmp_path: Path) -> None:
    latent = np.random.default_rng(0).normal(size=(1, 16, 4, 4)).astype(np.float32)
    fresh = export_vae("demo-mse", out=tmp_path / "fresh", verify=False)
    swapped, _ = swap_vae(bundle.path, "demo-mse")
    with VAE(swapped.path) as vae, pytest.warns(UserWarning, match="was never verified"), VAE(fresh.path) as expected:
        np.testing.assert_array_equal(vae.decode(latent), expected.decode(latent))


def test_another_latent_contract_is_refused(bundle: Bundle) -> None:
    before = snapshot(bundle)
    with pytest.raises(InputError) as refused:
        swap_vae(bundle, load_reference("demo", scale=0.5))
    assert str(refused.value) == (
        f"demo has another latent contract than bundle {bundle.path}: scale {bundle.manifest.latent.scale} there, "
        "0.5 here. Diffusion models made for the one give the other wrong latents. Export it to a bundle of its own"
    )
    assert snapshot(bundle) == before


def test_another_architecture_is_refused(bundle: Bundle) -> None:
    before = snapshot(bundle)
    with pytest.raises(InputError, match=r"is of architecture .*, and bundle .* holds an AutoencoderKL; a swap keeps"):
        swap_vae(bundle, tiny_reference())
    assert snapshot(bundle) == before


@pytest.mark.slow
def test_a_vae_that_fails_its_verification(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits are made impossible, since no good VAE fails them."""
    from vaedeploy import verify

    impossible = (verify.Limit("rel_l2", 1e-12, True, "for this test"),)
    monkeypatch.setitem(verify.LIMITS, "fp32", impossible)
    before = snapshot(bundle)
    with pytest.raises(VerificationError) as failed:
        swap_vae(bundle, "demo-mse")
    assert f"so bundle {bundle.path} keeps the VAE that it has" in str(failed.value)
    assert snapshot(bundle) == before
    assert [path.name for path in bundle.path.parent.iterdir()] == ["demo"]


def test_nothing_to_restore(bundle: Bundle) -> None:
    with pytest.raises(InputError, match=r"holds the VAE that it was made with: there is nothing to restore$"):
        restore_vae(bundle)


@pytest.mark.slow
def test_on_the_command_line(vaedeploy: Callable[..., Ended], bundle: Bundle) -> None:
    before = snapshot(bundle)
    ended = vaedeploy("swap", bundle.path, "--vae", "demo-mse")
    rows = dict(line.split(None, 1) for line in ended.out.splitlines())
    assert ended.code == 0
    assert rows["VAE"] == "demo-mse (AutoencoderKL)"
    assert rows["latents"] == "0.00% of their size away"
    assert rows["pictures"].startswith("0.")
    ended = vaedeploy("swap", bundle.path, "--restore")
    assert (ended.code, ended.out) == (0, f"{bundle.path}\n")
    assert snapshot(bundle) == before


@pytest.mark.parametrize("arguments", [[], ["--vae", "demo-mse", "--restore"]])
def test_one_of_two_options(vaedeploy: Callable[..., Ended], bundle: Bundle, arguments: list[str]) -> None:
    ended = vaedeploy("swap", bundle.path, *arguments)
    assert ended.code == 2
    assert "Give either --vae or --restore." in ended.err


def test_the_two_presets_have_one_contract() -> None:
    assert get_preset("demo").latent == get_preset("demo-mse").latent
