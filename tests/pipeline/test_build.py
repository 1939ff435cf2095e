"""Engines, built for real: what is in the bundle afterwards, what is reused, and what a failed build leaves."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_files import DECODER, ENCODER, RTX4090, SIZES, snapshot, write_profile
from tiny_bundle import tiny_bundle

from vaedeploy.bundle import Bundle, check_bundle
from vaedeploy.bundle.engines import check_engine, differences, engine_faults
from vaedeploy.engines.profile import CAPABILITIES, get_profile
from vaedeploy.errors import BackendError, InputError, OutputError, ProfileError
from vaedeploy.pipeline.build import build_engines
from vaedeploy.pipeline.export import export_vae
from vaedeploy.runtime import VAE
from vaedeploy.system.lock import lock
from vaedeploy.values.reference import Reference
from vaedeploy.values.shapes import ShapeSet

pytestmark = pytest.mark.usefixtures("verified_smaller")

# ---------------------------------------------------------------------------------------------- what a build leaves


def test_engines_lie_in_the_bundle_and_say_what_they_are(engine_bundle: Bundle, profile_folder: Path) -> None:
    bundle = check_bundle(engine_bundle.path)
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
    assert identity.shapes == get_profile("mine", profile_folder).shapes
    assert identity.graph == bundle.manifest.contents["decoder"]
    assert identity.mark in (bundle.path / DECODER).read_bytes()
    assert engine_faults(bundle, DECODER, version=identity.backend_version) == []
    check_engine(bundle, DECODER, version=identity.backend_version, gpu=RTX4090)


@pytest.mark.slow
def test_engines_take_the_sizes_that_the_vae_can_make(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shapes = "{ odd = { height = 66, width = 64 }, any = { height = [30, 62, 65], width = 64 } }"
    write_profile(tmp_path, shapes=shapes, precision='"fp32"')
    built = build_engines(tiny_bundle(tmp_path / "tiny"), ["mine"], folder=tmp_path)
    assert built.manifest.engines[DECODER].identity.shapes == {"any": ShapeSet((32, 60, 64), 64)}
    assert list(built.manifest.engines[DECODER].activation_bytes) == ["any"]
    assert [record.getMessage() for record in caplog.records if "left out" in record.getMessage()] == [
        "profile mine: shapes odd hold no size that is a multiple of 4, as this VAE needs; they are left out"
    ]


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
    tmp_path: Path, profile_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tiny_bundle(tmp_path / "tiny")
    told: list[str] = []
    # What its rights say does not hold for root.
    monkeypatch.setattr("vaedeploy.pipeline.build.os.access", lambda path, mode: (path, mode) != (bundle.path, os.W_OK))
    with pytest.raises(OutputError, match="its folder is read-only here, so nothing was built"):
        build_engines(bundle, ["mine"], folder=profile_folder, progress=lambda what, *_: told.append(what))
    assert told == []


def test_the_bundle_runs_as_before(engine_bundle: Bundle, tmp_path: Path) -> None:
    plain = tiny_bundle(tmp_path / "plain")
    with VAE(engine_bundle.path) as vae, VAE(plain.path) as other:
        latent = np.full((1, 2, 2, 3), 0.5, np.float32)
        assert (vae.decode(latent) == other.decode(latent)).all()


def test_nothing_lies_beside_the_bundle(engine_bundle: Bundle) -> None:
    assert [path.name for path in engine_bundle.path.parent.iterdir()] == ["tiny"]


def test_an_engine_that_is_up_to_date_is_kept(built: Bundle, profile_folder: Path) -> None:
    before = snapshot(built)
    told: list[str] = []
    build_engines(built.path, ["mine"], folder=profile_folder, progress=lambda what, done, total: told.append(what))
    assert told == [f"{ENCODER} is up to date", f"{DECODER} is up to date"]
    assert snapshot(built) == before


def test_a_bundle_that_was_moved_is_up_to_date(built: Bundle, profile_folder: Path) -> None:
    moved = built.path.rename(built.path.with_name("elsewhere"))
    told: list[str] = []
    build_engines(moved, ["mine"], folder=profile_folder, progress=lambda what, done, total: told.append(what))
    assert told == [f"{ENCODER} is up to date", f"{DECODER} is up to date"]


def test_force_builds_again(built: Bundle, profile_folder: Path) -> None:
    told: list[str] = []
    build_engines(
        built.path, ["mine"], folder=profile_folder, force=True, progress=lambda what, done, total: told.append(what)
    )
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
def test_every_capability_of_tensorrt_rtx(tiny_vae_bundle: Bundle, tmp_path: Path) -> None:
    """In fp16."""
    bundle = Bundle.open(shutil.copytree(tiny_vae_bundle.path, tmp_path / "tiny"))
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


@pytest.mark.slow
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


def test_a_bundle_serves_without_its_engines_and_builds_them_again(
    built: Bundle, profile_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (built.path / ENCODER).unlink()
    data = bytearray((built.path / DECODER).read_bytes())
    data[-1] ^= 1
    (built.path / DECODER).write_bytes(data)
    with VAE(built.path) as vae:
        assert vae.decode(np.full((1, 2, 2, 3), 0.5, np.float32)).shape == (1, 8, 12, 3)
    assert engine_faults(Bundle.open(built.path), ENCODER) == ["it is missing"]
    build_engines(built.path, ["mine"], folder=profile_folder)
    assert f"{ENCODER} is missing; it is built again" in caplog.messages
    assert any(message.startswith(f"{DECODER} is altered: its sha256 is") for message in caplog.messages)
    check_bundle(built.path)


def test_two_builds_of_one_bundle_at_once(built: Bundle, profile_folder: Path) -> None:
    place = built.path.resolve()
    with lock(place.with_name(f".{place.name}.lock")) as held:
        assert held
        with pytest.raises(OutputError, match=r"another process is writing it now"):
            build_engines(built, ["mine"], folder=profile_folder)


def test_a_build_holds_the_bundle(built: Bundle, profile_folder: Path) -> None:
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

    build_engines(built, ["mine"], folder=profile_folder, force=True, progress=progress)
    assert len(failed) == 1
    assert "notes" not in check_bundle(built.path).manifest.files


def test_a_copy_of_hard_links_is_built(built: Bundle, tmp_path: Path) -> None:
    """As ``cp -al`` and many backups make them; the other copy stays as it is."""
    shutil.copytree(built.path, tmp_path / "copy", copy_function=os.link)
    write_profile(tmp_path, "mine", precision='"fp32"', shapes=SIZES)
    write_profile(tmp_path, "twin", precision='"fp32"', shapes=SIZES)
    before = snapshot(built)
    made = build_engines(tmp_path / "copy", ["twin", "mine"], folder=tmp_path)
    assert {info.profile for info in made.manifest.engines.values()} == {"twin", "mine"}
    check_bundle(made.path)
    assert snapshot(built) == before
