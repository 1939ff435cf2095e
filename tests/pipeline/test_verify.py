"""Bundles compared with PyTorch again: what is kept, what must be given again, and what fails."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from tiny_bundle import tiny_bundle

from vaedeploy.bundle import Bundle, check_bundle, create_bundle, edit_bundle
from vaedeploy.errors import BackendError, BundleError, InputError, WeightsError
from vaedeploy.pipeline.export import export_vae
from vaedeploy.pipeline.swap import swap_vae
from vaedeploy.pipeline.verify import verify_bundle
from vaedeploy.runtime import VAE
from vaedeploy.runtime.unverified import UnverifiedBundleWarning
from vaedeploy.testing.tiny import flat_reference, tiny_reference
from vaedeploy.values.reference import Reference

pytestmark = pytest.mark.usefixtures("verified_smaller")


@pytest.fixture
def bundle(tiny_vae_bundle: Bundle, tmp_path: Path) -> Bundle:
    """A copy that a test may change."""
    return Bundle.open(shutil.copytree(tiny_vae_bundle.path, tmp_path / "tiny"))


@pytest.fixture
def flat() -> Reference:
    return flat_reference()


def test_the_report_covers_every_part_and_shape(tiny_vae_bundle: Bundle) -> None:
    report = json.loads(tiny_vae_bundle.file("report/report.json").read_bytes())
    assert report["passed"] is True
    assert report["reference"] == "PyTorch in float64"
    rows = {(c["form"], c["part"], c["name"]) for c in report["cases"]}
    names = ("smallest", "square", "landscape", "portrait", "odd")
    assert rows == {
        *(("onnxruntime", part, name) for part in ("encoder", "decoder") for name in (*names, "large")),
        *(("onnxruntime", "round trip", name) for name in names),
        *((form, part, "odd") for form in ("portable", "rows") for part in ("encoder", "decoder", "round trip")),
    }
    assert tiny_vae_bundle.manifest.verification is not None
    assert tiny_vae_bundle.manifest.verification.cases == len(report["cases"])


def test_verification_can_be_made_again_from_what_was_kept(bundle: Bundle) -> None:
    before = bundle.file("golden.safetensors").read_bytes()
    report = verify_bundle(bundle)
    assert report.passed
    assert report.reference == "PyTorch in float64, computed earlier and kept in golden.safetensors"
    assert check_bundle(bundle.path).verified
    assert bundle.file("golden.safetensors").read_bytes() == before


def test_a_verification_that_is_not_noted_leaves_the_bundle_as_it_is(tiny_vae: Reference, bundle: Bundle) -> None:
    def state() -> dict[Path, tuple[int, bytes]]:
        return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in bundle.path.rglob("*") if p.is_file()}

    before, folder = state(), bundle.path.stat().st_mtime_ns
    assert verify_bundle(bundle, note=False).passed
    assert verify_bundle(bundle, reference=tiny_vae, note=False).reference == "PyTorch in float64"
    assert (state(), bundle.path.stat().st_mtime_ns) == (before, folder)
    with edit_bundle(bundle), warnings.catch_warnings(action="error"):
        assert verify_bundle(bundle, note=False).passed  # nobody may write it now


def test_a_backend_that_is_verified_is_not_noted_either(bundle: Bundle) -> None:
    before = (bundle.path / "bundle.json").read_bytes()
    assert verify_bundle(bundle, backend="onnxruntime-cpu", note=False).passed
    assert (bundle.path / "bundle.json").read_bytes() == before
    assert not (bundle.path / "report" / "onnxruntime-cpu.json").exists()


@pytest.mark.slow
def test_a_bundle_can_be_verified_later(flat: Reference, tmp_path: Path) -> None:
    bundle = export_vae(flat, out=tmp_path / "tiny", verify=False)
    assert bundle.manifest.verification is None
    assert "golden.safetensors" not in bundle.manifest.files
    with pytest.warns(UnverifiedBundleWarning):
        VAE(bundle.path)
    report = verify_bundle(bundle, reference=flat)
    assert (report.passed, report.reference) == (True, "PyTorch in float64")
    assert check_bundle(bundle.path).verified
    assert verify_bundle(bundle.path).passed


def test_own_modules_must_be_given_again(tiny_vae: Reference, bundle: Bundle, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    with pytest.raises(WeightsError, match=r"PyTorch modules of your own; pass them again: reference="):
        verify_bundle(bundle, photos=tmp_path)
    assert verify_bundle(bundle, reference=tiny_vae, photos=tmp_path).passed
    assert (load_file(bundle.file("golden.safetensors"))["smallest.photo"] == 0).all()


def test_another_vae_is_refused(bundle: Bundle) -> None:
    other = tiny_reference(seed=1)
    with pytest.raises(WeightsError) as error:
        verify_bundle(bundle, reference=other)
    assert str(error.value) == (
        f"bundle {bundle.path} was made from another VAE: its identity is {bundle.manifest.vae.identity}, that of the "
        f"given one is {other.identity}. Give the weights that it was made from, or export it again"
    )


@pytest.mark.parametrize("name", ["mine", "demo"])
def test_a_bundle_in_place_of_weights_is_told_so(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    other = tiny_bundle(tmp_path / name)
    with pytest.raises(WeightsError) as refused:
        verify_bundle("tiny", weights=name)
    remedy = {
        "mine": "Or give the weights that it was made from, which this shows: vaedeploy inspect mine",
        "demo": "In a folder without demo, --weights demo means the preset",
    }
    assert str(refused.value) == (
        f"{name} is a bundle, and not weights for PyTorch. To find out whether tiny holds the same VAE, run: vaedeploy "
        f"verify tiny --identity {other.manifest.vae.identity}. {remedy[name]}"
    )


@pytest.mark.slow
def test_a_swapped_vae_passes_unless_the_identity_is_pinned(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A swap replaces the outputs that are kept along with the graphs."""
    wanted = bundle.manifest.vae.identity
    assert verify_bundle(bundle, note=False, identity=wanted).passed
    latent = bundle.manifest.latent
    swapped, _ = swap_vae(bundle, tiny_reference(scale=latent.scale, shift=latent.shift, seed=1))
    assert verify_bundle(swapped, note=False).passed

    def work(*_: object) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr("vaedeploy.pipeline.verify.make_looks", work)
    with pytest.raises(BundleError) as refused:
        verify_bundle(swapped, identity=wanted)
    assert str(refused.value) == (
        f"bundle {swapped.path} holds a VAE other than the one that is wanted: its identity is "
        f"{swapped.manifest.vae.identity}, and not {wanted}. Take the bundle of that VAE, or the identity of this one"
    )
    with pytest.raises(InputError, match="give a whole one, of 64 hexadecimal digits"):
        verify_bundle(swapped, identity=wanted[:12])


def test_a_wrong_decoder_fails_and_is_marked(bundle: Bundle, tmp_path: Path) -> None:
    """Other weights under a manifest that is whole: hashes cannot tell, verification does."""
    with create_bundle(tmp_path / "mixed") as draft:
        shutil.copytree(bundle.path, draft.path, dirs_exist_ok=True)
        (draft.path / "bundle.json").unlink()
        weights = draft.path / "decoder.onnx.data"
        (np.fromfile(weights, np.float32) * np.float32(1.01)).tofile(weights)
        mixed = draft.finish(bundle.manifest)
    assert mixed.verified
    report = verify_bundle(mixed)
    assert not report.passed
    assert {c.part for c in report.cases if not c.passed} == {"decoder", "round trip"}
    assert check_bundle(mixed.path).verified is False


def test_what_to_compare_with_is_said_once(bundle: Bundle, tiny_vae: Reference) -> None:
    with pytest.raises(InputError) as refused:
        verify_bundle(bundle, reference=tiny_vae, weights="/nowhere")
    assert str(refused.value) == "reference and weights both say what to compare with; give one of them"


@pytest.mark.skipif(torch.cuda.is_available(), reason="PyTorch can compute on this GPU")
def test_pytorch_for_cpus_is_no_reference_on_the_gpu(
    bundle: Bundle, tiny_vae: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vaedeploy.pipeline.verify.find_candidates", lambda *_, **__: [])
    with pytest.raises(BackendError) as refused:
        verify_bundle(bundle, backend="tensorrt-rtx", reference=tiny_vae)
    assert str(refused.value).startswith(f"PyTorch {torch.__version__} has 0 CUDA devices here, and a backend is ")
