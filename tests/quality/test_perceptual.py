"""LPIPS and DISTS: their numbers are those of the packages, and what is not here is left out with a sentence.

The packages are in no extra, so CI has none of them. With them, the networks have seeded weights: those of ImageNet are
half a gigabyte.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from vaedeploy.images.opacity import on_white, with_opacity
from vaedeploy.images.photos import Photo
from vaedeploy.quality import Perceptual, PerceptualMetrics, load_perceptual

MISSING = [name for name in ("torch", "torchmetrics", "torchvision") if find_spec(name) is None]

installed = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
not_installed = pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed here")


# ------------------------------------------------------------------------------------------------- what is not here


@pytest.mark.skipif(not MISSING, reason="torch, torchmetrics and torchvision are installed here")
def test_packages_that_are_not_installed_are_named(photo: Photo) -> None:
    metrics = load_perceptual()
    (sentence,) = metrics.left_out
    which = "package" if len(MISSING) == 1 else "packages"
    assert sentence.startswith(f"LPIPS and DISTS were left out: the {which} {' and '.join(MISSING)} ")
    assert sentence.endswith(f"pip install {' '.join(MISSING)}")
    assert metrics.measure(photo, photo) is None


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that modules are imported from, with a torchmetrics that has nothing."""
    folder = tmp_path / "packages"
    (folder / "torchmetrics").mkdir(parents=True)
    (folder / "torchmetrics" / "__init__.py").touch()
    (folder / "torchvision").mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    importlib.invalidate_caches()
    yield folder
    for name in [n for n in sys.modules if n.partition(".")[0] in ("torchmetrics", "torchvision")]:
        del sys.modules[name]


@not_installed
def test_a_torchvision_of_another_pytorch_is_left_out(packages: Path) -> None:
    """As one for CUDA is beside PyTorch for CPUs."""
    fault = "operator torchvision::nms does not exist"
    (packages / "torchvision" / "__init__.py").write_text(f"raise RuntimeError({fault!r})")
    (sentence,) = load_perceptual().left_out
    assert sentence.startswith("LPIPS and DISTS were left out: torchvision ")
    assert f"({fault}). Install the torchvision that was built for it" in sentence


@not_installed
def test_a_file_that_is_missing_is_named_with_its_place(packages: Path, tmp_path: Path) -> None:
    (packages / "torchvision" / "__init__.py").touch()
    (packages / "torchvision" / "models.py").write_text(
        "from types import SimpleNamespace as Weights\n"
        "AlexNet_Weights = Weights(DEFAULT=Weights(url='https://example.org/models/a-1.pth'))\n"
        "VGG16_Weights = Weights(DEFAULT=Weights(url='https://example.org/models/v-2.pth'))\n"
    )
    place = tmp_path / "home" / "hub" / "checkpoints"
    assert load_perceptual().left_out == (
        "LPIPS was left out: AlexNet's weights are not on this machine. To have it measured, put "
        f"https://example.org/models/a-1.pth into {place}",
        "DISTS was left out: VGG16's weights are not on this machine. To have it measured, put "
        f"https://example.org/models/v-2.pth into {place}",
    )
    place.mkdir(parents=True)
    (place / "a-1.pth").touch()
    assert load_perceptual().left_out[0].startswith("LPIPS was left out: torchmetrics ")


@installed
def test_nothing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    metrics = load_perceptual()
    lpips, dists = metrics.left_out
    assert lpips.startswith("LPIPS was left out: AlexNet's weights are not on this machine. To have it measured, put ")
    assert lpips.endswith(f".pth into {tmp_path / 'hub' / 'checkpoints'}")
    assert dists.startswith("DISTS was left out: VGG16's weights are not on this machine.")
    assert (metrics.lpips, metrics.dists, list(tmp_path.iterdir())) == (None, None, [])


@installed
def test_one_metric_is_measured_without_the_other(
    home: Path, photo: Photo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AlexNet's file is here, and VGG16's is cut off."""
    from seen_weights import weights_file

    for network in ("alexnet", "vgg16"):
        file = weights_file(tmp_path, network)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(weights_file(home, network).read_bytes()[: None if network == "alexnet" else 1000])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    metrics = load_perceptual()
    (sentence,) = metrics.left_out
    assert sentence.startswith(f"DISTS was left out: {weights_file(tmp_path, 'vgg16')} cannot be loaded (")
    found = metrics.measure(photo, blurred(photo, 1))
    assert found is not None
    assert found.lpips is not None
    assert found.dists is None


# ------------------------------------------------------------------------------------------------- what is measured


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TORCH_HOME with seeded weights of both networks."""
    from seen_weights import write_weights

    home = tmp_path_factory.mktemp("home")
    for network in ("alexnet", "vgg16"):
        write_weights(home, network)
    return home


@pytest.fixture(scope="module")
def metrics(home: Path) -> PerceptualMetrics:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TORCH_HOME", str(home))
        metrics = load_perceptual()
    assert metrics.left_out == ()
    return metrics


def blurred(photo: Photo, sigma: float) -> Photo:
    return np.round(gaussian_filter(photo.astype(np.float64), (sigma, sigma, 0))).astype(np.uint8)


def measured(metrics: PerceptualMetrics, reference: Photo, candidate: Photo) -> Perceptual:
    found = metrics.measure(reference, candidate)
    assert found is not None
    return found


@installed
def test_equal_pictures_have_no_distance_and_more_blur_has_more(metrics: PerceptualMetrics, photo: Photo) -> None:
    found = [measured(metrics, photo, blurred(photo, sigma) if sigma else photo) for sigma in (0, 0.5, 1, 2, 4)]
    for values in ([f.lpips for f in found], [f.dists for f in found]):
        assert values[0] == pytest.approx(0, abs=1e-6)  # DISTS is 1 less a sum of float32 numbers
        assert values == sorted(set(values))


@installed
def test_numbers_are_those_of_torchmetrics(
    metrics: PerceptualMetrics, home: Path, photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the caller computes in float64, and in front of white where pictures have opacity."""
    import torch
    from torchmetrics.functional.image import (
        deep_image_structure_and_texture_similarity,
        learned_perceptual_image_patch_similarity,
    )

    monkeypatch.setenv("TORCH_HOME", str(home))
    opacity = np.tile(np.linspace(0, 255, photo.shape[1]).astype(np.uint8), (photo.shape[0], 1))
    pair = with_opacity(photo, opacity), with_opacity(blurred(photo, 2), opacity)
    images = [torch.from_numpy(on_white(p)).permute(2, 0, 1)[None].float() / 255 for p in pair]
    with torch.no_grad():
        lpips = learned_perceptual_image_patch_similarity(*images, net_type="alex", normalize=True).item()
        dists = deep_image_structure_and_texture_similarity(*images).item()
    found = measured(metrics, *pair)
    # A convolution may add in another order where images lie otherwise in memory; DISTS is 1 less a float32.
    assert found.lpips == pytest.approx(lpips, rel=1e-5)
    assert found.dists == pytest.approx(dists, abs=1e-6)
    torch.set_default_dtype(torch.float64)
    try:
        assert measured(metrics, *pair) == found
    finally:
        torch.set_default_dtype(torch.float32)


@installed
@pytest.mark.filterwarnings("ignore:The parameter 'pretrained' is deprecated", "ignore:Arguments other than a weight")
def test_numbers_are_those_of_the_authors_packages(
    metrics: PerceptualMetrics, home: Path, photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchmetrics keeps a division from 0 in another way, which is less than a thousandth of LPIPS."""
    import torch

    lpips = pytest.importorskip("lpips", reason="the authors' packages are lpips and DISTS_pytorch")
    dists = pytest.importorskip("DISTS_pytorch", reason="the authors' packages are lpips and DISTS_pytorch")
    monkeypatch.setenv("TORCH_HOME", str(home))
    candidate = blurred(photo, 1)
    images = [torch.from_numpy(p).permute(2, 0, 1)[None].float() / 255 for p in (photo, candidate)]
    with torch.no_grad():
        expected = lpips.LPIPS(net="alex", verbose=False)(*images, normalize=True).item()
    found = measured(metrics, photo, candidate)
    assert found.lpips == pytest.approx(expected, rel=1e-3)
    assert found.dists == pytest.approx(dists.DISTS()(*images).item(), abs=1e-6)
