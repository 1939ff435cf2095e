"""Engines in a bundle: what is refused because of where and from what it was built."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest
from bit_flips import flip
from bundle_folders import edit
from engine_files import DECODER, ENCODER, RTX4090

from vaedeploy.bundle import Bundle, check_bundle
from vaedeploy.bundle.engines import check_engine, engine_faults, gpu_fault, read_engine
from vaedeploy.bundle.manifest import FileInfo
from vaedeploy.errors import BundleError, EngineError
from vaedeploy.system.files import HOLDS
from vaedeploy.system.gpu import Gpu

# ------------------------------------------------------------------------------------------------ what is told of it


def test_another_gpu_version_or_graph(built: Bundle, profile_folder: Path) -> None:
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
    edit(built, lambda told: told["contents"].update(decoder="0" * 64))
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


def test_an_engine_in_anothers_place(built: Bundle, profile_folder: Path) -> None:
    """Even where the manifest's sha256 was changed to suit it: the plan says what it is."""
    (built.path / DECODER).write_bytes((built.path / ENCODER).read_bytes())
    data = (built.path / DECODER).read_bytes()
    told = {DECODER: FileInfo(hashlib.sha256(data).hexdigest(), len(data))}
    manifest = msgspec.structs.replace(built.manifest, files=built.manifest.files | told)
    faults = engine_faults(Bundle(built.path, manifest), DECODER)
    assert faults == ["it does not contain the identity that the manifest states"]


def test_a_flipped_byte(built: Bundle) -> None:
    data = bytearray((built.path / DECODER).read_bytes())
    data[-1] ^= 1
    (built.path / DECODER).write_bytes(data)
    advice = f"vaedeploy build {built.path} --profile mine --backend tensorrt-rtx$"
    with pytest.raises(BundleError, match=f"is damaged: {DECODER} is altered: its sha256 is .*again: {advice}"):
        check_bundle(built.path)
    with pytest.raises(EngineError, match=f"cannot be used: it is altered: its sha256 is .*again: {advice}"):
        check_engine(Bundle.open(built.path), DECODER)


@pytest.mark.skipif(not HOLDS, reason="files cannot be held open here")
def test_engine_of_an_open_bundle_stays_what_it_was(built: Bundle) -> None:
    before = (built.path / DECODER).read_bytes()
    opened = Bundle.hold(built.path)
    (built.path / DECODER).unlink()
    (built.path / DECODER).write_bytes(bytes(len(before)))
    assert engine_faults(opened, DECODER) == []
    assert read_engine(opened, DECODER) == before
    again = Bundle.hold(built.path)
    with pytest.raises(EngineError, match=f"{DECODER} cannot be used: it is altered: its sha256 is .*Build it again: "):
        read_engine(again, DECODER)
    with pytest.raises(EngineError, match=f"{DECODER} cannot be used: it does not contain the identity that the"):
        read_engine(again, DECODER, verify_hash=False)


def test_engine_that_is_changed_in_place_is_not_read(built: Bundle) -> None:
    opened = Bundle.hold(built.path)
    flip(built.path / DECODER, 8)
    with pytest.raises(EngineError, match=f"{DECODER} cannot be used: it is altered: its sha256 is "):
        read_engine(opened, DECODER)
