"""LPIPS and DISTS in ``compare`` and ``look``: in the table, in JSON and on the page, or left out with a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from tiny_bundle import tiny_bundle

from vaedeploy.pipeline.compare import reconstruct
from vaedeploy.quality import load_perceptual
from vaedeploy.quality.perceptual import PerceptualMetrics

INSTALLED = all(find_spec(name) is not None for name in ("torch", "torchmetrics", "torchvision"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("perceptual")
    tiny_bundle(folder / "one")
    tiny_bundle(folder / "two", seed=1)
    (folder / "photos").mkdir()
    for name in ("coffee", "astronaut"):
        Image.fromarray(getattr(skimage.data, name)()[:64, :96]).save(folder / "photos" / f"{name}.png")
    return folder


def test_what_is_not_here_is_the_last_that_is_said(
    vaedeploy: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a warning. Packages may be missing, or, where they are installed, the weights."""
    monkeypatch.setenv("TORCH_HOME", str(folder / "none"))
    sentences = load_perceptual().left_out
    comparing = ("compare", folder / "one", folder / "two", "--images", folder / "photos", "-o", folder / "compared")
    looking = ("look", folder / "one", folder / "photos", "-o", folder / "looked")
    for arguments in (comparing, looking):
        ended = vaedeploy(*arguments)
        assert ended.out.splitlines()[-len(sentences) :] == list(sentences)
        assert "Warning" not in ended.err
        assert "LPIPS" not in ended.out.splitlines()[0]
        text = (arguments[-1] / "index.html").read_text()
        (footer,) = [line for line in text.splitlines() if line.startswith("<footer>")]
        assert footer.count("left out: ") == len(sentences)
        assert ">LPIPS<" not in text
    told = json.loads(vaedeploy(*comparing[:-2], "--json").out)
    assert told["left_out"] == list(sentences)
    assert "lpips" not in told["summaries"][0]
    assert "perceptual" not in told["reconstructions"][0]["quality"]
    assert not (folder / "none").exists()


def test_without_the_memory_for_them_the_rest_is_kept(
    vaedeploy: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(reference: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
        return torch.empty(1 << 50)  # 4 PiB, of which PyTorch says that it cannot allocate them

    monkeypatch.setattr(reconstruct, "load_perceptual", lambda: PerceptualMetrics(too_large, None, ()))
    sentence = "LPIPS and DISTS were left out: there is not enough memory. Give smaller photographs"
    ended = vaedeploy("compare", folder / "one", folder / "two", "--images", folder / "photos", "--json")
    assert ended.code == 0
    told = json.loads(ended.out)
    assert told["left_out"] == [sentence]
    assert len(told["reconstructions"]) == 4
    looking = ("look", folder / "one", folder / "photos", "-o", folder / "large")
    assert vaedeploy(*looking).out.splitlines()[-1] == sentence
    told = json.loads(vaedeploy(*looking, "--json").out)
    assert (told["left_out"], len(told["reconstructions"])) == ([sentence], 2)


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="torch, torchmetrics and torchvision are not all installed")
def test_they_stand_in_the_table_in_json_and_on_the_page(
    vaedeploy: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seen_weights import write_weights

    for network in ("alexnet", "vgg16"):
        write_weights(folder / "home", network)
    monkeypatch.setenv("TORCH_HOME", str(folder / "home"))
    comparing = ("compare", folder / "one", folder / "two", "--images", folder / "photos", "-o", folder / "page")
    told = json.loads(vaedeploy(*comparing, "--json").out)
    assert "left_out" not in told
    for summary in told["summaries"]:
        rows = [r["quality"]["perceptual"] for r in told["reconstructions"] if r["bundle"] == summary["bundle"]]
        for name in ("lpips", "dists"):
            assert all(row[name] > 0 for row in rows)
            assert summary[name] == pytest.approx(np.mean([row[name] for row in rows]))
    text = (folder / "page" / "index.html").read_text()
    assert "Medians over all photographs, and means of LPIPS and DISTS." in text
    one = told["summaries"][0]
    for name in ("lpips", "dists"):
        assert f'data-value="{one[name]}">{one[name]:.3f}</td>' in text
    assert text.count(">LPIPS</th>") == 2  # in all numbers of each picture
    assert "left out" not in text

    header, first, *_ = vaedeploy(*comparing).out.splitlines()
    assert "fine detail, %  LPIPS  DISTS  time to encode" in header
    assert f"{one['lpips']:.3f}  {one['dists']:.3f}" in first

    ended = vaedeploy("look", folder / "one", folder / "photos", "-o", folder / "seen")
    sentence = (
        f"LPIPS {one['lpips']:.3f} and DISTS {one['dists']:.3f}, on average over 2 pictures: 0 is equal, and lower is "
        "closer."
    )
    assert ended.out.splitlines()[-1] == sentence
    assert sentence in (folder / "seen" / "index.html").read_text()
