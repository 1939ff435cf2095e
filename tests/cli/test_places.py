"""Places that cannot be written to: told before the work where that can be known, and never at the cost of a result."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image
from tiny_bundle import tiny_bundle

import vaedeploy as vd
from vaedeploy import errors
from vaedeploy.bundle import Bundle, edit_bundle
from vaedeploy.page import write
from vaedeploy.verify.limits import Limit

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("verified_smaller")]

IMPOSSIBLE = Limit("rel_l2", -1, True, "a test")


@pytest.fixture
def bundle(tiny_vae_bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_vae_bundle.path, tmp_path / "tiny"))


def never(*arguments: Any, **options: Any) -> Any:
    raise AssertionError("work began")


def full(path: Path, data: bytes) -> None:
    raise errors.OutputError(f"cannot write {path}: No space left on device")


def test_a_page_that_has_no_place_is_told_before_the_work(
    vaedeploy: Callable[..., Any], bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "page.png").write_text("")
    monkeypatch.setattr("vaedeploy.pipeline.verify.verify_graphs", never)
    ended = vaedeploy("verify", bundle, "--report", tmp_path / "page.png")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"Error: cannot write a report to {tmp_path / 'page.png'}: a file is where a")
    with pytest.raises(AssertionError, match="work began"):
        vaedeploy("verify", bundle, "--report", tmp_path / "page")


@pytest.mark.slow
def test_a_page_that_fails_after_the_work_leaves_the_result(
    vaedeploy: Callable[..., Any], bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "write_file", full)
    ended = vaedeploy("verify", bundle, "--report", tmp_path / "page")
    assert ended.code == 2
    assert "verified: " in ended.out
    assert f"Error: cannot write {tmp_path / 'page' / 'index.html'}: No space left" in ended.err
    ended = vaedeploy("verify", bundle, "--report", tmp_path / "page", "--json")
    assert json.loads(ended.out)["passed"]


def test_a_comparison_is_told_though_its_page_fails(
    vaedeploy: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate(("one", "two")):
        tiny_bundle(tmp_path / name, seed=seed)
    (tmp_path / "photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "photos" / "a.png")
    arguments = ("compare", tmp_path / "one", tmp_path / "two", "--images", tmp_path / "photos", "--report")
    ended = vaedeploy(*arguments, tmp_path / "page")
    assert (ended.code, f"The page: {tmp_path / 'page' / 'index.html'}\n" in ended.err) == (0, True)
    with monkeypatch.context() as patch:
        patch.setattr(write, "write_file", full)
        ended = vaedeploy(*arguments, tmp_path / "page")
    assert ended.code == 2
    assert "one into two: " in ended.out
    assert "No space left" in ended.err
    monkeypatch.setattr("vaedeploy.pipeline.compare.bundles.reconstruct", never)
    ended = vaedeploy(*arguments, tmp_path / "photos" / "a.png")
    assert (ended.code, ended.out) == (2, "")
    assert "Error: cannot write a report to " in ended.err


@pytest.mark.parametrize("wrong", [False, True])
def test_a_verdict_that_cannot_be_noted_is_told(
    vaedeploy: Callable[..., Any], bundle: Path, monkeypatch: pytest.MonkeyPatch, wrong: bool
) -> None:
    if wrong:
        monkeypatch.setattr("vaedeploy.verify.cases.LIMITS", {"fp32": (IMPOSSIBLE,)})
    before = (bundle / "bundle.json").read_bytes()
    with edit_bundle(Bundle.open(bundle)):
        ended = vaedeploy("verify", bundle)
    assert ended.code == (3 if wrong else 0)
    assert ended.out.splitlines()[-1].startswith("FAILED: " if wrong else "verified: ")
    assert f"Warning: the verdict is not noted in the bundle: cannot write bundle {bundle}: another" in ended.err
    assert (bundle / "bundle.json").read_bytes() == before


def test_a_caller_is_warned_of_a_verdict_that_is_not_noted(bundle: Path) -> None:
    with (
        edit_bundle(Bundle.open(bundle)),
        pytest.warns(vd.UnnotedVerdictWarning, match=r"^the verdict is not noted in the bundle: ") as caught,
    ):
        assert vd.verify_bundle(bundle).passed
    assert [warning.filename for warning in caught] == [__file__]  # where verify_bundle was called


@pytest.mark.parametrize("wrong", [False, True])
def test_a_verification_for_ci(
    vaedeploy: Callable[..., Any], bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: bool
) -> None:
    if wrong:
        monkeypatch.setattr("vaedeploy.verify.cases.LIMITS", {"fp32": (IMPOSSIBLE,)})
    before, file = (bundle / "bundle.json").read_bytes(), tmp_path / "verify.xml"
    ended = vaedeploy("verify", bundle, "--no-note", "--junit", file)
    assert ended.code == (3 if wrong else 0)
    assert (bundle / "bundle.json").read_bytes() == before
    (suite,) = ET.fromstring(file.read_bytes())
    assert suite.attrib["name"] == bundle.name
    assert (suite.attrib["failures"] != "0") is wrong


def test_a_verification_for_ci_pins_the_vae(
    vaedeploy: Callable[..., Any], bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, identity = tmp_path / "verify.xml", Bundle.open(bundle).manifest.vae.identity
    monkeypatch.setattr("vaedeploy.pipeline.verify.verify_graphs", never)
    ended = vaedeploy("verify", bundle, "--no-note", "--junit", file, "--identity", "0" * 64)
    assert (ended.code, ended.out, file.exists()) == (2, "", False)
    assert ended.err.startswith(
        f"Error: bundle {bundle} holds a VAE other than the one that is wanted: its identity is"
    )
    with pytest.raises(AssertionError, match="work began"):
        vaedeploy("verify", bundle, "--no-note", "--identity", identity)


def test_a_place_for_junit_is_looked_at_before_the_work(
    vaedeploy: Callable[..., Any], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vaedeploy.pipeline.verify.verify_graphs", never)
    ended = vaedeploy("verify", bundle, "--junit", bundle.parent / "no" / "verify.xml")
    assert (ended.code, ended.out) == (2, "")
    assert "Error: cannot write " in ended.err


def test_a_profile_needs_its_backend(bundle: Path) -> None:
    with pytest.raises(vd.InputError, match=r"^profile and precision say how a backend computes; give backend= too$"):
        vd.verify_bundle(bundle, profile="rtx4090")


def test_what_a_bisection_needs_is_missed_before_the_work(
    vaedeploy: Callable[..., Any], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "vaedeploy.verify.bisect", raising=False)
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    monkeypatch.setattr("vaedeploy.pipeline.verify.verify_graphs", never)
    ended = vaedeploy("verify", bundle, "--bisect")
    assert (ended.code, ended.out) == (1, "")
    assert 'install "vaedeploy[' in ended.err


@pytest.mark.slow
def test_what_is_found_before_a_bisection_fails_is_told(
    vaedeploy: Callable[..., Any], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise errors.BackendError("no room")

    monkeypatch.setattr("vaedeploy.verify.bisect.bisect_bundle", fail)
    ended = vaedeploy("verify", bundle, "--bisect")
    assert (ended.code, "verified: " in ended.out, "Error: no room\n" in ended.err) == (1, True, True)
    ended = vaedeploy("verify", bundle, "--bisect", "--json")
    assert (ended.code, json.loads(ended.out)["passed"]) == (1, True)
