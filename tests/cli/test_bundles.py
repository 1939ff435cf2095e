"""Bundles on the command line: inspected, exported and verified."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from tiny_bundle import tiny_bundle

from vaedeploy.bundle import Bundle, edit_bundle
from vaedeploy.bundle.golden import NAME as GOLDEN
from vaedeploy.bundle.golden import decode_golden, encode_golden
from vaedeploy.images.latents import LatentFile, write_latent

pytestmark = pytest.mark.usefixtures("verified_smaller")

PROGRESS = re.compile(r"( \.\.\.|: done in [\d.]+ s)$")


# -------------------------------------------------------------------------------------------------------- inspect


def test_inspect_shows_the_manifest(vaedeploy, bundle):
    ended = vaedeploy("inspect", bundle)
    assert (ended.code, ended.err) == (0, "")
    assert "VAE          tiny (Tiny)\n" in ended.out
    assert "latent       2 channels at 1/4 of the size, scale 1.0, shift 0.0\n" in ended.out
    assert "file         decoder.onnx  " in ended.out
    assert "check" not in ended.out


def test_inspect_as_json_is_the_manifest_and_what_speaks_against_it(vaedeploy, bundle, tmp_path):
    manifest = json.loads((bundle / "bundle.json").read_text())
    added = {"path": str(bundle), "verified": True, "problems": [], "engine_states": {}, "backends": [], "memory": {}}
    added["checked"] = False
    assert json.loads(vaedeploy("inspect", bundle, "--json").out) == manifest | added
    assert json.loads(vaedeploy("inspect", bundle, "--json", "--check").out) == manifest | added | {"checked": True}
    made = tiny_bundle(tmp_path / "b", verification=None).path
    told = json.loads(vaedeploy("inspect", made, "--json").out)["problems"]
    assert told == [f"verified: no. Run: vaedeploy verify {made}"]


def test_inspect_shows_what_other_backends_passed(vaedeploy, fused_bundle, tmp_path):
    own = shutil.copytree(fused_bundle.path, tmp_path / "b")
    lacks = f"no: the form onnxruntime-cuda takes a GPU. Run there: vaedeploy verify {own} --backend onnxruntime-cuda"
    assert lacks in " ".join(vaedeploy("inspect", own).out.split())
    gpu = {"name": "NVIDIA H200", "compute_capability": "9.0", "memory_gib": 140.4}
    for name, passed, machine, precision in (
        ("onnxruntime-cuda", True, {"cpu": "a CPU", "gpu": gpu, "cuda": "13.0"}, "fp16"),
        ("openvino.bf16.a-cpu", False, {"cpu": "a CPU", "gpu": None, "cuda": None}, "bf16"),
    ):
        report = {"passed": passed, "backend": name.split(".")[0], "precision": precision, "reference": "PyTorch"}
        content = json.dumps(report | {"machine": machine, "date": "2026-11-27T12:00:00Z"}).encode()
        with edit_bundle(Bundle.open(own)) as edit:
            edit.put(files={f"report/{name}.json": content})
    shown = " ".join(vaedeploy("inspect", own).out.split())
    assert "yes: onnxruntime-cuda in fp16 on NVIDIA H200, 2026-11-27, against PyTorch " in shown
    assert "FAILED: openvino in bf16 on a CPU, 2026-11-27, against PyTorch " in shown
    assert "takes a GPU" not in shown
    told = json.loads(vaedeploy("inspect", own, "--json").out)["backends"]
    assert [(one["backend"], one["passed"]) for one in told] == [("onnxruntime-cuda", True), ("openvino", False)]


def test_inspect_says_what_large_images_take(vaedeploy, tiny_vae_bundle):
    told = json.loads(vaedeploy("inspect", tiny_vae_bundle.path, "--json").out)["memory"]["decoder"]
    assert list(told) == ["1024x1024", "2048x2048", "4096x4096"]
    assert all(need["least"] < need["untiled"] for need in told.values())
    assert told["4096x4096"]["untiled"] > 6 * told["1024x1024"]["untiled"]
    shown = vaedeploy("inspect", tiny_vae_bundle.path).out
    assert re.search(r"^decoder takes +1024x1024: [\d.]+ [MG]B, by rows at least [\d.]+ [MG]B$", shown, re.MULTILINE)


def test_inspect_pins_an_identity(vaedeploy, bundle):
    identity = Bundle.open(bundle).manifest.vae.identity
    assert vaedeploy("inspect", bundle, "--identity", identity).code == 0
    ended = vaedeploy("inspect", bundle, "--identity", "0" * 64)
    assert (ended.code, ended.out) == (2, "")
    assert "holds a VAE other than the one that is wanted" in ended.err


def test_inspect_check(vaedeploy, tmp_path):
    made = tiny_bundle(tmp_path / "b").path
    assert vaedeploy("inspect", made, "--check").out.endswith("check        every file is as the manifest says\n")
    graph = made / "encoder.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    assert vaedeploy("inspect", made).code == 0
    ended = vaedeploy("inspect", made, "--check")
    assert (ended.code, ended.out) == (2, "")
    assert f"Error: bundle {made} is damaged: encoder.onnx is altered" in ended.err


def test_a_missing_bundle(vaedeploy, tmp_path):
    ended = vaedeploy("inspect", tmp_path / "none")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"Error: there is no bundle at {tmp_path / 'none'}.")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["compare", "a", "b.png", "--images", "p"],
            "Pictures for --images go into one folder. Run: vaedeploy compare BUNDLE BUNDLE... --images DIR|FILE",
        ),
        (["inspect", "b.png"], "Run: vaedeploy inspect BUNDLE"),
        (["look", "b.png"], "Run: vaedeploy look BUNDLE IMAGE... -o DIR"),
        (["look", "b.png", "a", "-o", "page"], "Run: vaedeploy look BUNDLE IMAGE... -o DIR"),
        (["encode", "b.png", "a", "-o", "c.safetensors"], "Run: vaedeploy encode BUNDLE IMAGE -o LATENT"),
        (["decode", "b.safetensors", "a", "-o", "c.png"], "Run: vaedeploy decode BUNDLE LATENT -o IMAGE"),
        (["serve", "a", "b.png"], "Run: vaedeploy serve [NAME=]BUNDLE..."),
        (["serve", "name=b.png"], "Run: vaedeploy serve [NAME=]BUNDLE..."),
    ],
)
def test_a_picture_or_a_latent_file_in_a_bundle_s_place(vaedeploy, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    Path("b.png").touch()
    write_latent("b.safetensors", LatentFile(np.zeros((1, 2, 4, 4), np.float32)))
    Path("a").mkdir()
    ended = vaedeploy(*arguments)
    assert (ended.code, ended.out) == (2, "")
    what = "b.safetensors is a latent file" if "b.safetensors" in arguments else "b.png is a picture"
    assert ended.err == f"Error: {what}, and stands where a bundle is wanted, which is a folder. {told}\n"


def test_weights_in_a_bundle_s_place_are_no_latent_file(vaedeploy, tmp_path):
    weights = tmp_path / "a.safetensors"
    save_file({"weight": np.zeros(1, np.float32)}, weights)
    told = f"Error: {weights} is a file; a bundle is a folder with a bundle.json in it."
    assert vaedeploy("inspect", weights).err.startswith(told)


@pytest.mark.parametrize("arguments", [["inspect", "demo"], ["compare", "demo", "mse840k", "--images", "."]])
def test_a_preset_that_nobody_exported_yet(vaedeploy, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("photo.png")
    ended = vaedeploy(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "Error: there is no bundle at demo. demo is a preset; export it first: vaedeploy export demo\n"


# ----------------------------------------------------------------------------------------------- export and verify


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_export_verify_and_fail(vaedeploy, small_vae, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = vaedeploy("export", small_vae, "--scale", "0.5")
    assert (ended.code, ended.out) == (0, "small\n"), ended.err
    assert "Exporting to ONNX ..." in ended.err
    assert "Error" not in ended.err
    *lines, page, look = ended.err.splitlines()
    assert page == "To see its images beside PyTorch's, run: vaedeploy verify small --report report"
    assert look == "To see what it makes of your pictures, run: vaedeploy look small IMAGE... -o look"
    cases = Bundle.open("small").manifest.verification.cases
    verdict = rf"verified: {cases} cases against PyTorch in float64; at worst: relative error [\d.e-]+, largest .*"
    assert re.fullmatch(verdict, lines.pop())
    assert all(PROGRESS.search(line) for line in lines)
    starts = [line for line in lines if line.endswith(" ...")]
    assert len(set(starts)) == len(starts)  # each step has a name of its own
    assert Bundle.open("small").verified
    assert Bundle.open("small").manifest.contract_given

    again = vaedeploy("export", small_vae, "--no-verify")
    assert (again.code, again.out) == (2, "")
    assert (
        "Error: small exists already. Replace it with --force (force=True in Python), or choose another place with"
        in again.err
    )

    lines = vaedeploy("verify", "small").out.splitlines()
    parts, forms = ("encoder", "decoder", "round trip"), ("portable", "onnxruntime", "rows")
    begin = {f"passed  {part}, {form}: " for part in parts for form in forms}
    assert begin == {re.match(r"passed  .*?: ", line)[0] for line in lines[:-4]}
    assert lines[-4] == ""
    assert lines[-3].startswith("Limits of fp32: relative error at most 2e-05, largest difference at most 1 of 255")
    assert lines[-2] == "visible: no difference from the reference's images"
    assert lines[-1].startswith(f"verified: {cases} cases on onnxruntime-cpu against PyTorch in float64")

    lines = vaedeploy("verify", "small", "-v").out.splitlines()
    assert "decoder, portable" in lines
    assert sum(line.endswith(" passed") for line in lines) == cases

    opened = Bundle.open("small")
    identity = opened.manifest.vae.identity
    goldens = decode_golden(opened.file(GOLDEN).read_bytes(), identity)
    for golden in goldens:
        golden.image[...] += 0.1
    opened.update(files={GOLDEN: encode_golden(goldens, identity)})
    failed = vaedeploy("verify", "small")
    assert failed.code == 3
    assert failed.out.splitlines()[-1].startswith("FAILED: ")
    assert re.search(r"^passed  encoder, portable: ", failed.out, re.MULTILINE)
    assert re.search(
        r"^FAILED  decoder, portable: relative error is .*; it must be at most 2e-05 \(image, ", failed.out, re.M
    )
    assert "encoder, portable" not in failed.out.splitlines()  # the cases of what passed are left out
    rows = failed.out.partition("\ndecoder, portable\n")[2].partition("\n\n")[0].splitlines()
    assert [row.split()[-1] for row in rows] == ["verdict", *["FAILED"] * (len(rows) - 1)]
    assert rows[1].split()[0] == "image"
    assert not Bundle.open("small").verified

    report = json.loads(vaedeploy("verify", "small", "--json").out)
    assert report["passed"] is False
    assert {case["passed"] for case in report["cases"] if case["part"] == "encoder"} == {True}

    # With the weights at hand the golden cases are made anew.
    assert vaedeploy("verify", "small", "--weights", small_vae).code == 0
    assert Bundle.open("small").verified


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent in another way there")
def test_ctrl_c_during_export_leaves_nothing(small_vae, tmp_path):
    command = [
        sys.executable,
        "-m",
        "vaedeploy",
        "-v",
        "export",
        str(small_vae),
        "--out",
        str(tmp_path / "out"),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        lines = []
        for line in running.stderr:
            lines.append(line)
            if line == "Exporting to ONNX ...\n":
                running.send_signal(signal.SIGINT)
    assert running.returncode == 130, "".join(lines)
    assert lines[-1] == "Interrupted; nothing half-written was left behind\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_exporters_noise_is_for_verbose_only(vaedeploy, small_vae, tmp_path):
    """Above there is none. With --json, stdout is one document for all that."""
    out = tmp_path / "noisy"
    noisy = vaedeploy("-v", "export", small_vae, "--no-verify", "--out", out, "--json")
    told = json.loads(noisy.out)
    assert (told["path"], told["verified"], told.pop("error"), told.pop("seconds") > 0) == (str(out), False, None, True)
    assert told | {"memory": ANY} == json.loads(vaedeploy("inspect", out, "--json").out)
    again = vaedeploy("export", small_vae, "--out", out, "--json")
    assert (again.code, again.out) == (2, "")
    assert noisy.code == 0
    assert "Info: " in noisy.err
    assert noisy.err.endswith(
        f"unverified: nothing was compared with PyTorch\nTo verify it, run: vaedeploy verify {out}\n"
    )
    assert not all(PROGRESS.search(line) for line in noisy.err.splitlines())
