"""Which engines are to be built, for whom, and what is refused before any is."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest
from engine_files import DECODER, ENCODER, SIZES, claim_engine, snapshot, write_profile
from tiny_bundle import tiny_bundle

from vaedeploy.bundle import Bundle, check_bundle
from vaedeploy.bundle.engines import differences
from vaedeploy.bundle.manifest import Manifest
from vaedeploy.engines.plan import plan_rebuilds
from vaedeploy.errors import BackendError, BuildError, BundleError, ProfileError
from vaedeploy.graph.graph import Inputs, load_graph
from vaedeploy.pipeline.build import build_engines
from vaedeploy.system.gpu import Gpu
from vaedeploy.system.installs import install_command
from vaedeploy.values.kinds import PARTS
from vaedeploy.values.shapes import ShapeSet


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda info: info.update(profile="../../elsewhere"),
            "its profile is '../../elsewhere'; the name of one may contain",
        ),
        (lambda info: info["identity"].update(options={"tf32": "yes"}), "Expected `bool`, got `str` - at `$.tf32`"),
        (lambda info: info["identity"].update(options={"speed": 9}), "Object contains unknown field `speed`"),
        (lambda info: info["identity"].update(compute_capability="9.0"), "backend tensorrt-rtx does not build for"),
    ],
)
def test_what_a_stranger_s_engine_says_is_not_built(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], why: str
) -> None:
    bundle = tiny_bundle(tmp_path / "tiny")
    told = claim_engine(bundle)
    change(told["engines"][ENCODER])
    manifest = msgspec.convert(told, Manifest)
    with pytest.raises(BundleError) as refused:
        plan_rebuilds(Bundle(bundle.path, manifest))
    assert str(refused.value).startswith(f"{ENCODER} of bundle {bundle.path} cannot be built again: {why}")


def test_profiles_with_equal_identities_share_one_build(built: Bundle, profile_folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_profile(tmp_path, name, precision='"fp32"', shapes=SIZES, cuda_graphs="false")
    told: list[str] = []
    made = build_engines(built, ["one", "two"], folder=tmp_path, progress=lambda what, *_: told.append(what))
    assert told[:2] == [
        "engines/one/encoder.tensorrt-rtx.engine is the same as engines/mine/encoder.tensorrt-rtx.engine",
        "engines/one/decoder.tensorrt-rtx.engine is the same as engines/mine/decoder.tensorrt-rtx.engine",
    ]
    other = made.manifest.engines["engines/two/decoder.tensorrt-rtx.engine"]
    assert (other.profile, other.cuda_graphs, other.identity) == ("two", False, made.manifest.engines[DECODER].identity)
    check_bundle(made.path)
    told.clear()
    build_engines(made, ["one", "two"], folder=tmp_path, force=True, progress=lambda what, *_: told.append(what))
    assert {what for what in told if what.startswith("Building")} == {
        "Building one encoder with tensorrt-rtx",
        "Building one decoder with tensorrt-rtx",
    }


def test_what_only_the_runtime_reads_is_changed_without_a_build(built: Bundle, tmp_path: Path) -> None:
    write_profile(tmp_path, precision='"fp32"', shapes=SIZES, cuda_graphs="false")
    told: list[str] = []
    made = build_engines(built, ["mine"], folder=tmp_path, progress=lambda what, *_: told.append(what))
    assert told == [f"{ENCODER} is up to date", f"{DECODER} is up to date"]
    assert not made.manifest.engines[DECODER].cuda_graphs
    assert check_bundle(made.path).manifest == made.manifest


def test_an_identity_tells_every_difference(built: Bundle) -> None:
    one = built.manifest.engines[DECODER].identity
    other = msgspec.structs.replace(
        one,
        graph="0" * 64,
        rewritten="1" * 64,
        precision="fp16",
        backend_version="2",
        compute_capability="12.0",
        gpu="X",
    )
    assert differences(one, other) == [
        "the portable graph is another one",
        "the graph made from it by the rewrites is another one",
        "precision was fp32, now fp16",
        f"the backend's version was {one.backend_version}, now 2",
        "the compute capability was 8.9, now 12.0",
        "the GPU model was None, now X",
    ]
    assert differences(one, one) == []


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="tensorrt is installed")
def test_a_backend_that_is_not_installed(built: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaedeploy.engines.plan.find_gpu", lambda: Gpu("NVIDIA H100 80GB HBM3", "9.0", 79.6))
    before = snapshot(built)
    with pytest.raises(BackendError) as refused:
        build_engines(built, ["h100"])
    assert str(refused.value) == (
        "tensorrt cannot be used here: tensorrt cannot be imported (No module named 'tensorrt'). "
        f"Run: {install_command('tensorrt')}"
    )
    assert snapshot(built) == before


def test_a_backend_without_its_libraries(built: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a package whose shared library the loader does not find."""
    (tmp_path / "tensorrt_rtx.py").write_text("import ctypes; ctypes.CDLL('libtensorrt_rtx.so.none')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(BackendError) as refused:
        build_engines(built, ["rtx4090"])
    assert str(refused.value).startswith(
        "tensorrt-rtx cannot be used here: tensorrt_rtx cannot be imported (libtensorrt"
    )
    assert str(refused.value).endswith(f"Run: {install_command('rtx')}")


def test_a_backend_that_fails_in_its_own_way(built: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text("raise RuntimeError('no CUDA driver')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(BackendError, match=r"tensorrt_rtx cannot be imported \(no CUDA driver\). Run: .*pip install"):
        build_engines(built, ["rtx4090"])


def test_both_halves_are_built_for_the_sizes_of_the_profile(built: Bundle) -> None:
    """Sizes in a profile are pixels; a latent is smaller by the factor, 4 here."""
    shape = ShapeSet(batch=(1, 1, 2), height=(4, 8, 16), width=8)
    image, latent = (Inputs(load_graph(built.graph(part), part), 4).profile(shape) for part in PARTS)
    assert image == ([1, 3, 4, 8], [1, 3, 8, 8], [2, 3, 16, 8])
    assert latent == ([1, 2, 1, 2], [1, 2, 2, 2], [2, 2, 4, 2])


def test_a_place_that_is_taken_stops_no_other_build(built: Bundle, profile_folder: Path) -> None:
    (built.path / ENCODER).unlink()
    (built.path / ENCODER).mkdir()
    with pytest.raises(BuildError, match=r"1 of 2 engines could not be built; the other 1 is in"):
        build_engines(built, ["mine"], folder=profile_folder, force=True)


def test_a_backend_that_the_gpu_does_not_have(built: Bundle) -> None:
    with pytest.raises(
        ProfileError, match=r"^profile h100: backend tensorrt-rtx does not build for compute"
    ) as refused:
        build_engines(built, ["h100"], backend="tensorrt-rtx")
    assert str(refused.value).endswith(
        "here it must be tensorrt. Without engines, ONNX Runtime computes on that GPU. Run: vaedeploy export VAE "
        "--precision fp16 --form onnxruntime-cuda"
    )


def test_a_profile_off_the_factor(built: Bundle, tmp_path: Path) -> None:
    write_profile(tmp_path, precision='"fp32"', shapes="{ odd = { height = 10, width = 8 } }")
    with pytest.raises(ProfileError, match=r"^profile mine, shapes.odd: height 10 is not a multiple of 4, as this VAE"):
        build_engines(built, ["mine"], folder=tmp_path)


def test_fp16_without_calibration(built: Bundle, tmp_path: Path) -> None:
    write_profile(tmp_path, shapes=SIZES)
    with pytest.raises(BuildError) as refused:
        build_engines(built, ["mine"], folder=tmp_path)
    assert str(refused.value).startswith(
        f"2 of 2 engines could not be built:\n- profile mine is of fp16, and bundle {built.path} has no "
        "calibration.json, without which that might overflow. Export it again, verified: vaedeploy export sd15 "
        "--weights random:0"
    )
