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
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from conftest import Ended
from onnx import helper
from test_profile import written
from tiny_bundle import tiny_bundle

from vaedeploy.atomic import lock
from vaedeploy.bundle import Bundle, check_bundle
from vaedeploy.engines import Inputs, build_engines
from vaedeploy.errors import BackendError, BuildError, BundleError, EngineError, OutputError, ProfileError
from vaedeploy.gpu import Gpu
from vaedeploy.graph import load_graph
from vaedeploy.identity import check_engine, differences, engine_faults
from vaedeploy.manifest import PARTS
from vaedeploy.pipeline import export_vae
from vaedeploy.profile import CAPABILITIES, get_profile
from vaedeploy.runtime import VAE
from vaedeploy.shapes import ShapeSet

ENCODER = "engines/mine/encoder.tensorrt-rtx.engine"
DECODER = "engines/mine/decoder.tensorrt-rtx.engine"
SIZES = "{ small = { height = 8, width = 8 }, any = { batch = [1, 1, 2], height = [4, 8, 16], width = [4, 8, 16] } }"
RTX4090 = Gpu("NVIDIA GeForce RTX 4090", "8.9", 24.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a profile ``mine`` for the tiny bundle."""
    made = tmp_path_factory.mktemp("profiles")
    written(made, precision='"fp32"', shapes=SIZES)
    return made


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Bundle:
    """The tiny bundle with its engines."""
    return build_engines(tiny_bundle(tmp_path_factory.mktemp("built") / "tiny"), ["mine"], folder=folder)


@pytest.fixture
def built(once: Bundle, tmp_path: Path) -> Bundle:
    """A copy of it, to be changed."""
    return Bundle.open(shutil.copytree(once.path, tmp_path / "tiny"))


def snapshot(bundle: Bundle) -> dict[str, bytes]:
    return {str(p.relative_to(bundle.path)): p.read_bytes() for p in bundle.path.rglob("*") if p.is_file()}


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
    assert engine_faults(bundle, DECODER, version=identity.backend_version, gpu=RTX4090) == []


def test_the_bundle_runs_as_before(once: Bundle, tmp_path: Path) -> None:
    plain = tiny_bundle(tmp_path / "plain")
    with VAE(once.path) as vae, VAE(plain.path) as other:
        latent = np.full((1, 2, 2, 3), 0.5, np.float32)
        assert (vae.decode(latent) == other.decode(latent)).all()


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
    written(tmp_path, precision='"fp32"', shapes="{ small = { height = 12, width = 8 } }")
    again = build_engines(built.path, ["mine"], folder=tmp_path)
    assert set(again.manifest.engines) == {ENCODER, DECODER}
    old, new = (bundle.manifest.engines[DECODER].identity for bundle in (built, again))
    assert differences(old, new) == ["the profile's shapes is another one"]
    assert old.digest != new.digest
    check_bundle(again.path)


def test_uint8_images_in_bf16(tmp_path: Path) -> None:
    """The decoder's transposed convolution stays in float32: TensorRT has none in bfloat16."""
    made = tiny_bundle(tmp_path / "tiny", image_input="uint8")
    written(tmp_path, precision='"bf16"', shapes=SIZES)
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
        written(tmp_path, name, compute_capability=f'"{capability}"')
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
        assert engine_faults(full_size_bundle, name, gpu=RTX4090) == []
    assert (
        full_size_bundle.manifest.engines["engines/rtx4090/decoder.tensorrt-rtx.engine"].layers["deconvolution float16"]
        == 3
    )  # the folded upsamplers


@pytest.mark.slow
def test_export_and_build_in_one_go(tmp_path: Path, folder: Path) -> None:
    written(tmp_path, "half", shapes="{ a = { height = 64, width = 64 } }")
    bundle = export_vae("demo", out=tmp_path / "demo", verify=False, profiles=["half"], profile_folder=tmp_path)
    assert {info.part for info in bundle.manifest.engines.values()} == {"encoder", "decoder"}
    assert "calibration.json" in bundle.manifest.files  # which fp16 engines need, though the export did not


@pytest.mark.parametrize(
    ("profiles", "error"),
    [(["rtx4091"], ProfileError), (["h100"], BackendError)],
)
def test_export_checks_the_profiles_first(tmp_path: Path, profiles: list[str], error: type[Exception]) -> None:
    with pytest.raises(error):
        export_vae("demo", out=tmp_path / "demo", profiles=profiles)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ what is told of it


def test_another_gpu_version_or_graph(built: Bundle) -> None:
    def refusal(**here: object) -> str:
        with pytest.raises(EngineError) as refused:
            check_engine(built, DECODER, **here)
        return str(refused.value)

    again = f"Build it again: vaedeploy build {built.path} --profile mine --backend tensorrt-rtx"
    version = built.manifest.engines[DECODER].identity.backend_version
    assert refusal(gpu=Gpu("NVIDIA T4", "7.5", 15.0)) == (
        f"{built.path / DECODER} cannot be used: it was built for compute capability 8.9, and NVIDIA T4 has 7.5. "
        f"{again}"
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
    engines = {**built.manifest.engines, DECODER: msgspec.structs.replace(info, identity=identity)}
    bundle = Bundle(built.path, msgspec.structs.replace(built.manifest, engines=engines))
    assert "it was built for NVIDIA L4, and this is NVIDIA GeForce RTX 4090" in engine_faults(
        bundle, DECODER, gpu=RTX4090
    )


def test_an_engine_in_anothers_place(built: Bundle, folder: Path) -> None:
    """Even where the manifest's sha256 was changed to suit it: the plan says what it is."""
    (built.path / DECODER).write_bytes((built.path / ENCODER).read_bytes())
    assert engine_faults(built, DECODER) == ["its bytes do not carry the identity that the manifest gives it"]


def test_a_flipped_byte(built: Bundle) -> None:
    data = bytearray((built.path / DECODER).read_bytes())
    data[-1] ^= 1
    (built.path / DECODER).write_bytes(data)
    with pytest.raises(BundleError, match=f"is damaged: {DECODER} is altered: its sha256 is "):
        Bundle.open(built.path)


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
        "precision was fp32 and is fp16",
        f"the backend's version was {one.backend_version} and is 2",
        "compute capability was 8.9 and is 12.0",
        "the GPU model was None and is X",
    ]
    assert differences(one, one) == []


# ------------------------------------------------------------------------------------------------------- bad input


def test_a_backend_that_is_not_installed(built: Bundle) -> None:
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
    written(tmp_path, precision='"fp32"', shapes="{ odd = { height = 10, width = 8 } }")
    with pytest.raises(ProfileError, match=r"^profile mine, shapes.odd: height 10 is not a multiple of 4, as this VAE"):
        build_engines(built, ["mine"], folder=tmp_path)


def test_fp16_without_calibration(built: Bundle, tmp_path: Path) -> None:
    written(tmp_path, shapes=SIZES)
    with pytest.raises(BuildError) as refused:
        build_engines(built, ["mine"], folder=tmp_path)
    assert str(refused.value).startswith(
        f"2 of 2 engines could not be built:\n- bundle {built.path} has no calibration.json, without which fp16 might "
        "overflow. Export it again, verified: vaedeploy export --vae sd15 --weights random:0"
    )


def test_what_cannot_fit_is_refused_before_it_is_built(built: Bundle, tmp_path: Path) -> None:
    before = snapshot(built)
    written(
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
from vaedeploy.engines import build_engines
bundle, folder = sys.argv[1:]
build_engines(bundle, ["mine"], folder=folder, force=True, progress=lambda *step: print(*step, flush=True))
"""


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
def test_a_full_disk(built: Bundle, folder: Path) -> None:
    before = snapshot(built)
    limit = "import resource, signal\nresource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    with in_background(built, folder, limit + "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n") as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "2 of 2 engines could not be built:" in said
    assert "Building mine encoder with tensorrt-rtx failed: no room is left on the disk" in said
    assert snapshot(built) == before


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_out_of_memory(built: Bundle, folder: Path) -> None:
    """The limit is on the process that builds: enough for TensorRT to load, too little to build."""
    import resource

    before = snapshot(built)
    with in_background(built, folder) as process:
        resource.prlimit(worker_of(process), resource.RLIMIT_AS, (350_000_000, 350_000_000))
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
    assert header.split() == ["profile", "part", "backend", "capability", "precision", "size", "memory"]
    assert [row.split()[:2] for row in rows] == [["mine", "decoder"], ["mine", "encoder"]]
    assert all(row.endswith("unverified") for row in rows)


def test_a_failed_build_on_the_command_line(vaedeploy: Callable[..., Ended], tmp_path: Path, folder: Path) -> None:
    bundle = corrupt(tiny_bundle(tmp_path / "tiny"), "Bernoulli")
    ended = vaedeploy("build", bundle.path, "--profile", "mine", "--profiles", folder)
    assert (ended.code, ended.out) == (1, "")
    assert "Error: 1 of 2 engines could not be built" in ended.err


def test_inspect_shows_engines_and_what_speaks_against_them(vaedeploy: Callable[..., Ended], built: Bundle) -> None:
    shown = vaedeploy("inspect", built.path, "--check").out
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
    assert json.loads(vaedeploy("inspect", built.path, "--json").out)["engines"][ENCODER]["part"] == "encoder"


def test_profiles_on_the_command_line(
    vaedeploy: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "rtx5090" in vaedeploy("profiles").out
    assert {p["name"] for p in json.loads(vaedeploy("profiles", "--json").out)} >= {"t4", "gb10"}
    monkeypatch.setenv("PATH", str(tmp_path))
    ended = vaedeploy("profiles", "--init", "own", "--profiles", tmp_path)
    assert (ended.code, ended.out) == (0, f"{tmp_path / 'own.toml'}\n")
    assert "own " in vaedeploy("profiles", "--profiles", tmp_path).out
    assert vaedeploy("profiles", "--init", "own", "--profiles", tmp_path).code == 2
