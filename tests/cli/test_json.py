"""``--json`` of commands that make bundles and convert files: stdout is one document, whatever else is told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from builds import corrupt
from command_line import Ended
from engine_files import DECODER, ENCODER
from PIL import Image
from tiny_bundle import tiny_bundle

from vaedeploy.bundle import Bundle

Command = Callable[..., Ended]


def document(ended: Ended) -> dict[str, object]:
    told = json.loads(ended.out)
    assert isinstance(told, dict)
    return told


def inspected(vaedeploy: Command, bundle: Path) -> dict[str, object]:
    told = document(vaedeploy("inspect", bundle, "--json"))
    del told["memory"]
    return told


def photo(path: Path, side: int = 16) -> Path:
    Image.fromarray(np.full((side, side, 3), 9, np.uint8)).save(path)
    return path


def test_encode_and_decode(vaedeploy: Command, bundle: Path, tmp_path: Path) -> None:
    picture, latent = photo(tmp_path / "a.png"), tmp_path / "a.safetensors"
    ended = vaedeploy("encode", bundle, picture, "-o", latent, "--json")
    assert ended.code == 0
    assert ended.err.startswith("Encoding ")
    told = document(ended)
    (file,) = told.pop("files")
    assert told == {
        "bundle": str(bundle), "vae": "tiny", "identity": "1" * 64, "backend": "onnxruntime-cpu", "failures": [],
    }  # fmt: skip
    assert file.pop("seconds") > 0
    data = latent.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    assert file == {"source": str(picture), "written": str(latent), "sha256": sha256, "bytes": len(data)}
    (file,) = document(vaedeploy("decode", bundle, latent, "-o", tmp_path / "b.png", "--json"))["files"]
    assert (file["source"], file["written"]) == (str(latent), str(tmp_path / "b.png"))


def test_a_folder_in_which_a_file_fails(vaedeploy: Command, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    photo(tmp_path / "in" / "good.png")
    photo(tmp_path / "in" / "odd.png", 17)
    ended = vaedeploy("encode", bundle, tmp_path / "in", "-o", tmp_path / "out", "--json")
    told = document(ended)
    assert ended.code == 2
    assert [file["written"] for file in told["files"]] == [str(tmp_path / "out" / "good.safetensors")]
    (failure,) = told["failures"]
    assert failure.startswith(f"{tmp_path / 'in' / 'odd.png'}: image is 17x17")
    assert f"Error: 1 of 2 files failed; the others are written:\n  {failure}\n" in ended.err


def test_one_file_that_fails_gives_no_document(vaedeploy: Command, bundle: Path, tmp_path: Path) -> None:
    ended = vaedeploy("encode", bundle, tmp_path / "none.png", "-o", tmp_path / "a.safetensors", "--json")
    assert (ended.code, ended.out) == (2, "")


def test_build(vaedeploy: Command, built: Bundle, profile_folder: Path) -> None:
    ended = vaedeploy("build", built.path, "--profile", "mine", "--profiles", profile_folder, "--json")
    told = document(ended)
    assert ended.code == 0
    assert told.pop("seconds") > 0
    assert told.pop("error") is None
    assert told == inspected(vaedeploy, built.path)
    assert told["engines"].keys() == {ENCODER, DECODER}
    assert told["path"] == str(built.path)


def test_a_build_that_fails_tells_what_could_be_built(vaedeploy: Command, tmp_path: Path, profile_folder: Path) -> None:
    bundle = corrupt(tiny_bundle(tmp_path / "tiny"), "Bernoulli").path
    ended = vaedeploy("build", bundle, "--profile", "mine", "--profiles", profile_folder, "--json")
    told = document(ended)
    assert ended.code == 1
    assert f"Error: {told['error']}\n" in ended.err
    assert told["error"].startswith(f"1 of 2 engines could not be built; the other 1 is in {bundle}:\n")
    assert len(told["engines"]) == 1
