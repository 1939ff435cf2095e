"""Engines, built for real: what is in the bundle afterwards, what is reused, and what a failed build leaves."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from command_line import Ended
from engine_files import DECODER, ENCODER, RTX4090, SIZES, snapshot, write_profile
from onnx import helper
from tiny_bundle import tiny_bundle

from vaedeploy.bundle import Bundle, check_bundle
from vaedeploy.bundle.engines import check_engine, differences, engine_faults, gpu_fault
from vaedeploy.bundle.manifest import FileInfo
from vaedeploy.engines.build import build_engine
from vaedeploy.engines.profile import CAPABILITIES, get_profile
from vaedeploy.engines.protocol import BuildRequest
from vaedeploy.engines.worker import _Monitor
from vaedeploy.errors import BackendError, BuildError, BundleError, EngineError, InputError, OutputError, ProfileError
from vaedeploy.graph.graph import Inputs, load_graph
from vaedeploy.pipeline.build import build_engines
from vaedeploy.pipeline.export import export_vae
from vaedeploy.runtime import VAE
from vaedeploy.system.gpu import Gpu
from vaedeploy.system.lock import lock
from vaedeploy.values.kinds import PARTS
from vaedeploy.values.reference import Reference
from vaedeploy.values.shapes import ShapeSet


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a profile ``mine`` for the tiny bundle."""
    made = tmp_path_factory.mktemp("profiles")
    write_profile(made, precision='"fp32"', shapes=SIZES)
    return made


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Bundle:
    """The tiny bundle with its engines."""
    return build_engines(tiny_bundle(tmp_path_factory.mktemp("built") / "tiny"), ["mine"], folder=folder)


@pytest.fixture
def built(once: Bundle, tmp_path: Path) -> Bundle:
    """A copy of it, to be changed."""
    return Bundle.open(shutil.copytree(once.path, tmp_path / "tiny"))


# ---------------------------------------------------------------------------------------------- what a build leaves


def test_engines_lie_in_the_bundle_and_say_what_they_are(once: Bundle, folder: Path) -> None:
    bundle = check_bundle(once.path)
    assert set(bundle.manifest.engines) == {ENCODER, DECODER}
    info = bundle.manifest.engines[DECODER]
    assert (info.profile, info.part, info.verification) == ("mine", "decoder", None)
    assert list(info.activation_bytes) == ["small", "any"]
    assert 0 < info.activation_bytes["small"] <= info.activation_bytes["any"]
    assert info.weights_bytes > 0
    assert info.tensors == {
        "latent": "float32 (-1, 2, -1, -1)",
        "image": "float32 (-1, 3, -1, -1)",
        "image_u8": "uint8 (-1, -1, -1, 3)",
        "finite": "bool (-1,)",
    }
    assert info.layers["deconvolution float32"] == 1
    identity = info.identity
    assert (identity.backend, identity.compute_capability, identity.precision) == ("tensorrt-rtx", "8.9", "fp32")
    assert identity.backend_version.startswith("1.")
    assert identity.shapes == get_profile("mine", folder).shapes
    assert identity.graph == bundle.manifest.contents["decoder"]
    assert identity.mark in (bundle.path / DECODER).read_bytes()
    assert engine_faults(bundle, DECODER, version=identity.backend_version) == []
    check_engine(bundle, DECODER, version=identity.backend_version, gpu=RTX4090)


@pytest.mark.parametrize(
    ("profiles", "options", "told"),
    [
        ([], {}, "profiles is empty; name one GPU kind or more. To see all: vaedeploy profiles"),
        (["rtx4090"], {"backend": "foo"}, "there is no backend 'foo' that builds; there is: tensorrt, tensorrt-rtx"),
    ],
)
def test_what_cannot_be_built(tmp_path: Path, profiles: list[str], options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as refused:
        build_engines(tiny_bundle(tmp_path / "tiny"), profiles, **options)
    assert str(refused.value) == told


def test_a_bundle_that_is_read_only_is_refused_before_the_build(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tiny_bundle(tmp_path / "tiny")
    told: list[str] = []
    # What its rights say does not hold for root.
    monkeypatch.setattr("vaedeploy.pipeline.build.os.access", lambda path, mode: (path, mode) != (bundle.path, os.W_OK))
    with pytest.raises(OutputError, match="its folder is read-only here, so nothing was built"):
        build_engines(bundle, ["mine"], folder=folder, progress=lambda what, *_: told.append(what))
    assert told == []


def test_the_gpu_is_asked_for_before_its_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the GPU is another, installing TensorRT does not help."""
    monkeypatch.setattr("vaedeploy.engines.plan.find_gpu", lambda: None)
    with pytest.raises(BackendError) as refused:
        build_engines(tiny_bundle(tmp_path / "tiny"), ["h100"])
    assert str(refused.value) == (
        "tensorrt builds on the GPU that it builds for: profile h100 wants compute capability 9.0, and this machine "
        'has no GPU. Build there (pip install "vaedeploy[tensorrt]")'
    )


def test_the_bundle_runs_as_before(once: Bundle, tmp_path: Path) -> None:
    plain = tiny_bundle(tmp_path / "plain")
    with VAE(once.path) as vae, VAE(plain.path) as other:
        latent = np.full((1, 2, 2, 3), 0.5, np.float32)
        assert (vae.decode(latent) == other.decode(latent)).all()


def test_a_profile_whose_engines_cannot_run_here_is_told_of(
    once: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vaedeploy.runtime.backends.problem_of", lambda name, _: "no GPU" if "rt-rtx" in name else None)
    with VAE(once.path) as vae:
        backend = vae.backend
    assert caplog.messages == []  # where nobody asked for engines, none is what most machines have
    with VAE(once.path, profile="mine") as vae:
        assert repr(vae) == f"VAE({str(once.path)!r}, tiny, {backend})"
    assert caplog.messages == ["tensorrt-rtx does not answer here, so its engines of profile mine are not used: no GPU"]
    with pytest.raises(InputError, match="profiles are for engines; onnxruntime-cpu runs graphs"):
        VAE(once.path, "onnxruntime-cpu", profile="mine")


def test_nothing_lies_beside_the_bundle(once: Bundle) -> None:
    assert [path.name for path in once.path.parent.iterdir()] == ["tiny"]


def test_an_engine_that_is_up_to_date_is_kept(built: Bundle, folder: Path) -> None:
    before = snapshot(built)
    told: list[str] = []
    build_engines(built.path, ["mine"], folder=folder, progress=lambda what, done, total: told.append(what))
    assert told == [f"{ENCODER} is up to date", f"{DECODER} is up to date"]
    assert snapshot(built) == before


def test_a_bundle_that_was_moved_is_up_to_date(built: Bundle, folder: Path) -> None:
    moved = built.path.rename(built.path.with_name("elsewhere"))
    told: list[str] = []
    build_engines(moved, ["mine"], folder=folder, progress=lambda what, done, total: told.append(what))
    assert told == [f"{ENCODER} is up to date", f"{DECODER} is up to date"]


def test_force_builds_again(built: Bundle, folder: Path) -> None:
    told: list[str] = []
    build_engines(built.path, ["mine"], folder=folder, force=True, progress=lambda what, done, total: told.append(what))
    assert set(told) == {"Building mine encoder with tensorrt-rtx", "Building mine decoder with tensorrt-rtx"}


def test_reuse_is_by_identity_and_not_by_name(built: Bundle, tmp_path: Path) -> None:
    """A profile of the same name with other sizes builds anew, and the old engine is gone."""
    write_profile(tmp_path, precision='"fp32"', shapes="{ small = { height = 12, width = 8 } }")
    again = build_engines(built.path, ["mine"], folder=tmp_path)
    assert set(again.manifest.engines) == {ENCODER, DECODER}
    old, new = (bundle.manifest.engines[DECODER].identity for bundle in (built, again))
    assert differences(old, new) == ["the sizes were small 1x8x8, any 1-2x4-16x4-16, now small 1x12x8"]
    assert old.digest != new.digest
    check_bundle(again.path)


def test_uint8_images_in_bf16(tmp_path: Path) -> None:
    """The decoder's transposed convolution stays in float32: TensorRT has none in bfloat16."""
    made = tiny_bundle(tmp_path / "tiny", image_input="uint8")
    write_profile(tmp_path, precision='"bf16"', shapes=SIZES)
    bundle = build_engines(made, ["mine"], folder=tmp_path)
    assert bundle.manifest.engines[ENCODER].tensors["image_u8"] == "uint8 (-1, -1, -1, 3)"
    assert bundle.manifest.engines[ENCODER].layers["convolution bfloat16"] == 1
    assert bundle.manifest.engines[DECODER].layers["deconvolution float32"] == 1


@pytest.mark.slow
def test_every_capability_of_tensorrt_rtx(demo_bundle: Bundle, tmp_path: Path) -> None:
    """In fp16, for the VAE that the package carries."""
    bundle = Bundle.open(shutil.copytree(demo_bundle.path, tmp_path / "demo"))
    names = [f"cc{capability.replace('.', '')}" for capability in CAPABILITIES["tensorrt-rtx"]]
    for name, capability in zip(names, CAPABILITIES["tensorrt-rtx"], strict=True):
        write_profile(tmp_path, name, compute_capability=f'"{capability}"')
    made = build_engines(bundle, names, folder=tmp_path)
    found = {(info.identity.compute_capability, info.part) for info in made.manifest.engines.values()}
    assert found == {(c, part) for c in CAPABILITIES["tensorrt-rtx"] for part in ("encoder", "decoder")}
    assert all(info.layers["convolution float16"] > 0 for info in made.manifest.engines.values())
    check_bundle(made.path)


@pytest.mark.slow
def test_full_size(full_size_bundle: Bundle) -> None:
    sizes = {name: full_size_bundle.manifest.files[name].bytes for name in full_size_bundle.manifest.engines}
    assert set(sizes) == {f"engines/rtx4090/{part}.tensorrt-rtx.engine" for part in ("encoder", "decoder")}
    for name, info in full_size_bundle.manifest.engines.items():
        assert sizes[name] > info.weights_bytes > 60_000_000
        check_engine(full_size_bundle, name, gpu=RTX4090)
    assert (
        full_size_bundle.manifest.engines["engines/rtx4090/decoder.tensorrt-rtx.engine"].layers["deconvolution float16"]
        == 3
    )  # the folded upsamplers


def test_export_and_build_in_one_go(tiny_vae: Reference, tmp_path: Path) -> None:
    write_profile(tmp_path, "half", shapes="{ a = { height = 64, width = 64 } }")
    bundle = export_vae(tiny_vae, out=tmp_path / "tiny", verify=False, profiles=["half"], profile_folder=tmp_path)
    assert {info.part for info in bundle.manifest.engines.values()} == {"encoder", "decoder"}
    assert "calibration.json" in bundle.manifest.files  # which fp16 engines need, though the export did not


def test_export_checks_the_sizes_as_soon_as_it_knows_the_factor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_profile(tmp_path, "odd", shapes="{ odd = { height = 60, width = 64 } }")
    monkeypatch.setattr("vaedeploy.pipeline.export.write_portable", lambda *_: pytest.fail("it began the long work"))
    with pytest.raises(ProfileError, match=r"^profile odd, shapes.odd: height 60 is not a multiple of 8"):
        export_vae("demo", out=tmp_path / "demo", verify=False, profiles=["odd"], profile_folder=tmp_path)
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(
    ("profiles", "error"),
    [(["rtx4091"], ProfileError), (["h100"], BackendError)],
)
def test_export_checks_the_profiles_first(tmp_path: Path, profiles: list[str], error: type[Exception]) -> None:
    with pytest.raises(error):
        export_vae("demo", out=tmp_path / "demo", profiles=profiles)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ what is told of it


def test_another_gpu_version_or_graph(built: Bundle, folder: Path) -> None:
    def refusal(**here: object) -> str:
        with pytest.raises(EngineError) as refused:
            check_engine(built, DECODER, **here)
        return str(refused.value)

    again = f"Build it again: vaedeploy build {built.path} --profile mine --backend tensorrt-rtx"
    version = built.manifest.engines[DECODER].identity.backend_version
    assert refusal(gpu=Gpu("NVIDIA T4", "7.5", 15.0)) == (
        f"{built.path / DECODER} cannot be used: it was built for compute capability 8.9, and NVIDIA T4 has 7.5. "
        f"Build for this GPU, with a profile of its own: vaedeploy build {built.path} --profile NAME"
    )
    assert refusal(version="9.9") == (
        f"{built.path / DECODER} cannot be used: it was built by tensorrt-rtx {version}, and 9.9 is installed. {again}"
    )
    manifest = json.loads((built.path / "bundle.json").read_bytes())
    manifest["contents"]["decoder"] = "0" * 64
    (built.path / "bundle.json").write_text(json.dumps(manifest))
    built = Bundle.open(built.path)
    assert "it was built from another graph than the decoder that is in the bundle" in refusal()


def test_an_engine_bound_to_one_gpu_model(built: Bundle) -> None:
    """As those of tensorrt are."""
    info = built.manifest.engines[DECODER]
    identity = msgspec.structs.replace(info.identity, gpu="NVIDIA L4")
    (built.path / DECODER).write_bytes((built.path / DECODER).read_bytes().replace(info.identity.mark, identity.mark))
    engines = {**built.manifest.engines, DECODER: msgspec.structs.replace(info, identity=identity)}
    bundle = Bundle(built.path, msgspec.structs.replace(built.manifest, engines=engines))
    assert gpu_fault(identity, RTX4090) == "it was built for NVIDIA L4, and this is NVIDIA GeForce RTX 4090"
    with pytest.raises(EngineError, match="it was built for NVIDIA L4"):
        check_engine(bundle, DECODER, gpu=Gpu("NVIDIA L40S", "8.9", 45.0), verify_hash=False)


def test_an_engine_in_anothers_place(built: Bundle, folder: Path) -> None:
    """Even where the manifest's sha256 was changed to suit it: the plan says what it is."""
    (built.path / DECODER).write_bytes((built.path / ENCODER).read_bytes())
    data = (built.path / DECODER).read_bytes()
    told = {DECODER: FileInfo(hashlib.sha256(data).hexdigest(), len(data))}
    manifest = msgspec.structs.replace(built.manifest, files=built.manifest.files | told)
    faults = engine_faults(Bundle(built.path, manifest), DECODER)
    assert faults == ["its bytes do not carry the identity that the manifest gives it"]


def test_a_flipped_byte(built: Bundle) -> None:
    data = bytearray((built.path / DECODER).read_bytes())
    data[-1] ^= 1
    (built.path / DECODER).write_bytes(data)
    advice = f"vaedeploy build {built.path} --profile mine --backend tensorrt-rtx$"
    with pytest.raises(BundleError, match=f"is damaged: {DECODER} is altered: its sha256 is .*again: {advice}"):
        check_bundle(built.path)
    with pytest.raises(EngineError, match=f"cannot be used: it is altered: its sha256 is .*again: {advice}"):
        check_engine(Bundle.open(built.path), DECODER)


def test_a_bundle_serves_without_its_engines_and_builds_them_again(
    built: Bundle, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (built.path / ENCODER).unlink()
    data = bytearray((built.path / DECODER).read_bytes())
    data[-1] ^= 1
    (built.path / DECODER).write_bytes(data)
    with VAE(built.path) as vae:
        assert vae.decode(np.full((1, 2, 2, 3), 0.5, np.float32)).shape == (1, 8, 12, 3)
    assert engine_faults(Bundle.open(built.path), ENCODER) == ["it is missing"]
    build_engines(built.path, ["mine"], folder=folder)
    assert f"{ENCODER} is missing; it is built again" in caplog.messages
    assert any(message.startswith(f"{DECODER} is altered: its sha256 is") for message in caplog.messages)
    check_bundle(built.path)


def test_profiles_with_equal_identities_share_one_build(built: Bundle, folder: Path, tmp_path: Path) -> None:
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
        'Run: pip install "vaedeploy[tensorrt]"'
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
    assert str(refused.value).endswith('Run: pip install "vaedeploy[rtx]"')


def test_a_backend_that_fails_in_its_own_way(built: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text("raise RuntimeError('no CUDA driver')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(BackendError, match=r"tensorrt_rtx cannot be imported \(no CUDA driver\). Run: pip install"):
        build_engines(built, ["rtx4090"])


def test_both_halves_are_built_for_the_sizes_of_the_profile(built: Bundle) -> None:
    """Sizes in a profile are pixels; a latent is smaller by the factor, 4 here."""
    shape = ShapeSet(batch=(1, 1, 2), height=(4, 8, 16), width=8)
    image, latent = (Inputs(load_graph(built.graph(part), part), 4).profile(shape) for part in PARTS)
    assert image == ([1, 3, 4, 8], [1, 3, 8, 8], [2, 3, 16, 8])
    assert latent == ([1, 2, 1, 2], [1, 2, 2, 2], [2, 2, 4, 2])


def test_a_place_that_is_taken_stops_no_other_build(built: Bundle, folder: Path) -> None:
    (built.path / ENCODER).unlink()
    (built.path / ENCODER).mkdir()
    with pytest.raises(BuildError, match=r"1 of 2 engines could not be built; the other 1 are in"):
        build_engines(built, ["mine"], folder=folder, force=True)


def test_a_backend_that_the_gpu_does_not_have(built: Bundle) -> None:
    with pytest.raises(ProfileError, match=r"^profile h100: backend tensorrt-rtx does not build for compute"):
        build_engines(built, ["h100"], backend="tensorrt-rtx")


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
        "calibration.json, without which that might overflow. Export it again, verified: vaedeploy export --vae sd15 "
        "--weights random:0"
    )


def test_what_cannot_fit_is_refused_before_it_is_built(built: Bundle, tmp_path: Path) -> None:
    before = snapshot(built)
    write_profile(
        tmp_path,
        precision='"fp32"',
        memory_gib="0.5",
        shapes="{ any = { batch = [1, 1, 1000000], height = 1024, width = 2048 } }",
    )
    with pytest.raises(BuildError) as refused:
        build_engines(built, ["mine"], folder=tmp_path)
    assert "the decoder does not fit profile mine: at 1000000x1024x2048 (shapes.any) it needs about " in str(
        refused.value
    )
    assert "and A GPU has 0.5 GiB. Lower the maximum there to batch " in str(refused.value)
    assert str(refused.value).endswith(", or precision fp16")
    assert snapshot(built)[DECODER] == before[DECODER]


def corrupt(bundle: Bundle, operator: str) -> Bundle:
    """Put an operator that TensorRT does not have into the decoder, where PyTorch's exporter says it comes from."""
    path = bundle.graph("decoder")
    model = onnx.load(path, load_external_data=False)
    first = model.graph.node[0]
    first.output[0] = "before"
    foreign = helper.make_node(operator, ["before"], ["image"], name="node_odd")
    scopes = foreign.metadata_props.add()
    scopes.key, scopes.value = "pkg.torch.onnx.name_scopes", "['', 'decoder', 'decoder.up.0.odd', 'odd']"
    model.graph.node.insert(1, foreign)
    onnx.save(model, path)
    manifest = json.loads((bundle.path / "bundle.json").read_bytes())
    data = path.read_bytes()
    manifest["files"]["decoder.onnx"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    manifest["contents"] = {}
    (bundle.path / "bundle.json").write_text(json.dumps(manifest))
    return Bundle.open(bundle.path)


def test_a_graph_that_the_parser_refuses(tmp_path: Path, folder: Path) -> None:
    """One failure does not lose the others: the encoder's engine is there."""
    bundle = corrupt(tiny_bundle(tmp_path / "tiny"), "Bernoulli")
    with pytest.raises(BuildError) as refused:
        build_engines(bundle, ["mine"], folder=folder)
    said = str(refused.value)
    assert said.startswith(
        f"1 of 2 engines could not be built; the other 1 are in {bundle.path}:\n"
        "- Building mine decoder with tensorrt-rtx failed: the parser refuses Bernoulli, node node_odd, which is "
        "decoder.up.0.odd in PyTorch. TensorRT's last messages:\n"
    )
    assert "UNSUPPORTED_NODE" in said
    assert set(check_bundle(bundle.path).manifest.engines) == {ENCODER}


PROGRAM = """
import sys
from vaedeploy.pipeline.build import build_engines
bundle, folder = sys.argv[1:]
build_engines(bundle, ["mine"], folder=folder, force=True, progress=lambda *step: print(*step, flush=True))
"""


# --------------------------------------------------------------------------------- what TensorRT is told, and tells


def test_the_capability_reaches_the_builder(tmp_path: Path) -> None:
    """One graph, one name of the network, two capabilities: not one plan."""
    graph = tiny_bundle(tmp_path / "tiny").graph("decoder")
    plans = []
    for capability in ("7.5", "8.9"):
        request = BuildRequest(
            backend="tensorrt-rtx",
            graph=str(graph),
            out=str(tmp_path / capability),
            compute_capability=capability,
            network_name="the same",
            input="latent",
            profiles=[([1, 2, 2, 2],) * 3],
            options={"tf32": False},
        )
        told: list[float] = []
        plans.append(build_engine(request, "", lambda _, done, total, told=told: told.append(done)).path.read_bytes())
        assert told == sorted(told)
        assert len(told) > 3, "TensorRT's progress is not passed on"
    assert plans[0] != plans[1]


CONFIGURED = """
import os, sys
os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"
import tensorrt_rtx
from polygraphy.backend.trt import create_network
from vaedeploy.engines.protocol import BuildRequest
from vaedeploy.engines.worker import _config
builder, network = create_network()
for tf32 in (True, False):
    request = BuildRequest(backend="tensorrt-rtx", compute_capability="8.9", options={"tf32": tf32})
    config = _config(request, [], None)(builder, network)
    print(config.get_flag(tensorrt_rtx.BuilderFlag.TF32), config.get_compute_capability(0))
"""


def test_tf32_is_as_the_profile_says() -> None:
    ended = subprocess.run([sys.executable, "-c", CONFIGURED], capture_output=True, text=True, check=True)
    told = [line for line in ended.stdout.splitlines() if "ComputeCapability" in line]
    assert told == ["True ComputeCapability.SM89", "False ComputeCapability.SM89"]


def test_nested_phases_make_one_share() -> None:
    """As TensorRT tells them: phases inside phases, each with its own steps."""
    told: list[float] = []
    monitor = _Monitor(lambda event: told.append(event.share))  # type: ignore[arg-type,union-attr]
    monitor.start("all", None, 4)
    monitor.advance("all", 0)
    monitor.start("inner", "all", 2)
    monitor.advance("inner", 0)
    monitor.advance("inner", 1)
    monitor.start("late", "all", 2)
    monitor.advance("late", 0)
    monitor.advance("all", 3)
    assert told == [0.25, 0.375, 0.5, 1.0]


STAND_IN = """
from tensorrt_rtx import *
__version__ = "11.4.0"
"""


@pytest.fixture
def tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package ``tensorrt``, which has TensorRT-RTX's builder inside, and a GPU for it."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "tensorrt.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("vaedeploy.engines.plan.find_gpu", lambda: RTX4090)
    return tmp_path


@pytest.mark.skipif(sys.platform != "linux", reason="the cache's place is Linux's")
def test_tensorrt_itself_as_far_as_it_can_be_tried(tensorrt: Path, once: Bundle) -> None:
    """Its path through the code: an engine bound to the GPU model, with a timing cache. Its builder is not its own."""
    bundle = Bundle.open(shutil.copytree(once.path, tensorrt / "tiny"))
    write_profile(tensorrt, precision='"fp32"', shapes=SIZES)
    made = build_engines(bundle, ["mine"], backend="tensorrt", folder=tensorrt)
    name = "engines/mine/decoder.tensorrt.engine"
    identity = made.manifest.engines[name].identity
    assert (identity.backend, identity.gpu) == ("tensorrt", RTX4090.name)
    assert identity.options == {"tf32": False, "hardware_compatibility": "none"}
    cache = tensorrt / "cache" / "vaedeploy" / "timing" / f"{identity.backend_version}-NVIDIA-GeForce-RTX-4090.cache"
    assert cache.is_file()
    told: list[str] = []
    build_engines(
        made, ["mine"], backend="tensorrt", folder=tensorrt, progress=lambda what, *_: told.append(what)
    )  # it finds the cache there, and the engines
    assert told == [f"engines/mine/{part}.tensorrt.engine is up to date" for part in PARTS]
    assert {info.identity.backend for info in made.manifest.engines.values()} == {"tensorrt", "tensorrt-rtx"}
    check_bundle(made.path)


def test_a_cache_that_cannot_be_made_stops_no_build(
    tensorrt: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tensorrt / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tensorrt / "file"))
    write_profile(tensorrt, precision='"fp32"', shapes="{ small = { height = 8, width = 8 } }")
    build_engines(tiny_bundle(tensorrt / "tiny"), ["mine"], backend="tensorrt", folder=tensorrt)
    assert any("there is no place for TensorRT's timing cache" in message for message in caplog.messages)


def test_tensorrt_builds_on_its_gpu_alone(tensorrt: Path, built: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaedeploy.engines.plan.find_gpu", lambda: Gpu("NVIDIA T4", "7.5", 15.0))
    with pytest.raises(BackendError) as refused:
        build_engines(built, ["rtx4090"], backend="tensorrt")
    assert str(refused.value).endswith(
        "profile rtx4090 wants compute capability 8.9, and this machine has NVIDIA T4 (7.5). Build there "
        '(pip install "vaedeploy[tensorrt]"), or here with --backend tensorrt-rtx'
    )
    with pytest.raises(BackendError, match=r"wants compute capability 9.0, .* NVIDIA T4 .*there \(pip install .*\)$"):
        build_engines(built, ["h100"])


@contextmanager
def in_background(bundle: Bundle, folder: Path, before: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process that builds, and that does not outlive the test."""
    command = [sys.executable, "-c", before + PROGRAM, str(bundle.path), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def worker_of(process: subprocess.Popen[str]) -> int:
    """The process that builds for ``process``, as soon as it is there."""
    assert process.stdout is not None
    process.stdout.readline()  # "Building mine encoder ..."
    while not (children := Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()):
        time.sleep(0.001)
    return int(children[0])


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc for the process that builds")
def test_a_build_that_is_killed(built: Bundle, folder: Path) -> None:
    """By the system, for its memory: an error with advice, and the engines that were there stay."""
    before = snapshot(built)
    with in_background(built, folder) as process:
        os.kill(worker_of(process), signal.SIGKILL)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "1 of 2 engines could not be built; the other 1 are in" in said
    assert "the build's process was killed by SIGKILL, as the system does when memory runs out: lower the" in said
    assert snapshot(built)[ENCODER] == before[ENCODER]
    check_bundle(built.path)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc for the process that builds")
def test_a_worker_does_not_outlive_who_asked_for_the_engine(built: Bundle, folder: Path) -> None:
    with in_background(built, folder) as process:
        worker = worker_of(process)
        process.kill()
        process.wait()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{worker}/cmdline").exists() and Path(f"/proc/{worker}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "the worker goes on building for nobody"
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_in_a_build(built: Bundle, folder: Path) -> None:
    before = snapshot(built)
    with in_background(built, folder) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in said
    assert snapshot(built) == before
    assert [path.name for path in built.path.parent.iterdir()] == ["tiny"]


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files as a full disk would")
def test_a_limit_on_files(built: Bundle, folder: Path) -> None:
    before = snapshot(built)
    limit = "import resource, signal\nresource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    with in_background(built, folder, limit + "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n") as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "2 of 2 engines could not be built:" in said
    assert "Building mine encoder with tensorrt-rtx failed: a file there may not become that large (" in said
    assert snapshot(built) == before


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_out_of_memory(built: Bundle, folder: Path) -> None:
    """The limit is on the process that builds: enough for TensorRT to load, too little to build."""
    import resource

    before = snapshot(built)
    with in_background(built, folder) as process:
        resource.prlimit(worker_of(process), resource.RLIMIT_AS, (420_000_000, 420_000_000))
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "mine encoder with tensorrt-rtx failed: TensorRT made no engine; memory ran out: lower the largest" in said
    assert "std::bad_alloc" in said
    assert snapshot(built)[ENCODER] == before[ENCODER]
    check_bundle(built.path)


def test_two_builds_of_one_bundle_at_once(built: Bundle, folder: Path) -> None:
    place = built.path.resolve()
    with lock(place.with_name(f".{place.name}.lock")) as held:
        assert held
        with pytest.raises(OutputError, match=r"another process is writing it now"):
            build_engines(built, ["mine"], folder=folder)


def test_a_build_holds_the_bundle(built: Bundle, folder: Path) -> None:
    first = threading.Event()
    failed: list[Exception] = []

    def other() -> None:
        first.wait()
        try:
            built.update(files={"notes": b"x"})
        except OutputError as error:
            failed.append(error)

    thread = threading.Thread(target=other)
    thread.start()

    def progress(what: str, done: float, total: float) -> None:
        if what.startswith("Building") and not first.is_set():
            first.set()
            thread.join()

    build_engines(built, ["mine"], folder=folder, force=True, progress=progress)
    assert len(failed) == 1
    assert "notes" not in check_bundle(built.path).manifest.files


# ---------------------------------------------------------------------------------------------------- command line


def test_build_on_the_command_line(vaedeploy: Callable[..., Ended], built: Bundle, folder: Path) -> None:
    ended = vaedeploy("build", built.path, "--profile", "mine", "--profiles", folder)
    assert (ended.code, ended.err.splitlines()) == (0, [f"{ENCODER} is up to date", f"{DECODER} is up to date"])
    header, *rows = ended.out.splitlines()
    assert header.split() == ["profile", "part", "backend", "capability", "precision", "size", "memory", "state"]
    assert [row.split()[:2] for row in rows] == [["mine", "decoder"], ["mine", "encoder"]]
    assert all(row.endswith("unverified") for row in rows)


def test_a_failed_build_on_the_command_line(vaedeploy: Callable[..., Ended], tmp_path: Path, folder: Path) -> None:
    bundle = corrupt(tiny_bundle(tmp_path / "tiny"), "Bernoulli")
    ended = vaedeploy("build", bundle.path, "--profile", "mine", "--profiles", folder)
    assert (ended.code, ended.out) == (1, "")
    assert "Error: 1 of 2 engines could not be built" in ended.err


def test_inspect_shows_engines_and_what_speaks_against_them(vaedeploy: Callable[..., Ended], built: Bundle) -> None:
    assert "tensors: " not in vaedeploy("inspect", built.path).out
    shown = vaedeploy("inspect", built.path, "--check", "--layers").out
    assert f"{DECODER}  " in shown
    assert "unverified (it has not been run on its GPU)" in shown
    assert "tensors: latent float32 (-1, 2, -1, -1), " in shown
    assert "STALE" not in shown
    manifest = json.loads((built.path / "bundle.json").read_bytes())
    manifest["engines"][DECODER]["identity"]["backend_version"] = "1.0"
    (built.path / "bundle.json").write_text(json.dumps(manifest))
    shown = vaedeploy("inspect", built.path).out
    assert "STALE: it was built by tensorrt-rtx 1.0, and 1." in shown
    assert f"Build it again: vaedeploy build {built.path} --profile mine --backend tensorrt-rtx" in shown
    document = json.loads(vaedeploy("inspect", built.path, "--json").out)
    assert document["engines"][ENCODER]["part"] == "encoder"
    assert document["engine_states"][ENCODER] == {"state": "unverified", "problems": []}
    told = document["engine_states"][DECODER]["problems"]
    assert told[0].startswith("STALE: it was built by tensorrt-rtx 1.0, and 1.")
    assert document["problems"] == [f"{DECODER}: {problem}" for problem in told]


def test_profiles_on_the_command_line(
    vaedeploy: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "rtx5090" in vaedeploy("profiles").out
    assert {p["name"] for p in json.loads(vaedeploy("profiles", "--json").out)} >= {"t4", "gb10"}
    ended = vaedeploy("profiles", "--init", "own", "--profiles", tmp_path)
    assert (ended.code, ended.out) == (0, f"{tmp_path / 'own.toml'}\n")
    assert "own " in vaedeploy("profiles", "--profiles", tmp_path).out
    assert vaedeploy("profiles", "--init", "own", "--profiles", tmp_path).code == 2
