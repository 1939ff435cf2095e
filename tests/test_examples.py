"""What is under examples/ runs, with a tiny bundle."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from command_line import parse
from PIL import Image
from places import ROOT
from safetensors.numpy import save
from tiny_bundle import tiny_bundle

from vaedeploy.bundle import Bundle
from vaedeploy.cli import cli
from vaedeploy.images.latents import read_latent
from vaedeploy.images.photos import load_photos
from vaedeploy.pipeline.codec import encode_files
from vaedeploy.runtime import VAE

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("tiny") / "tiny")


def python(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **variables})


# -------------------------------------------------------------------------------------------------------- service


def ask(url: str, body: bytes | None = None) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, body, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@pytest.fixture
def service(bundle: Bundle) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "examples/service.py", str(bundle.path), "--port", "0", "--size", "16", "24"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def test_the_service(service: tuple[subprocess.Popen[str], str], bundle: Bundle) -> None:
    process, url = service
    latent = np.random.default_rng(0).normal(size=(1, 2, 4, 6)).astype(np.float32)
    status, png = ask(f"{url}/decode", save({"latent": latent}))
    assert status == 200
    with VAE(bundle.path) as vae:
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), vae.decode(latent)[0])
    assert ask(f"{url}/decode", save({"latent": latent[:, :1]})) == (
        400, b"latent has 1 channel where this VAE has 2; it must be (B, 2, h, w) float\n",
    )  # fmt: skip
    assert ask(f"{url}/decode", b"nonsense")[0] == 400
    for _ in range(1000):
        if ask(f"{url}/ready") == (200, b"ready\n"):
            break
    else:
        pytest.fail("it was never ready")
    process.terminate()
    process.wait(60)
    assert process.returncode == 0, process.stderr.read() if process.stderr else ""


# -------------------------------------------------------------------------------------------------- other programs


def test_processes(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in "ab":
        pixels = np.random.default_rng(ord(name)).integers(0, 256, (16, 23, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{name}.png")
    done = python("examples/processes.py", bundle.path, tmp_path / "in", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "out" / f"{name}.safetensors") for name in "ab"]
    with VAE(bundle.path) as vae:
        expected = vae.encode(Image.open(tmp_path / "in" / "b.png"), pad=True)
    written = read_latent(tmp_path / "out" / "b.safetensors")
    np.testing.assert_array_equal(written.latent, expected)
    assert (written.size, written.vae_identity) == ((16, 23), bundle.manifest.vae.identity)


@pytest.mark.slow
def test_own_modules(tmp_path: Path) -> None:
    done = python("examples/own_modules.py", tmp_path / "mine")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no warning of latents that a diffusion model would not expect
    bundle = Bundle.open(tmp_path / "mine")
    assert done.stdout == f"{bundle.path}: verified, {bundle.manifest.vae.identity}\n"
    assert bundle.manifest.verification is not None
    assert bundle.manifest.verification.passed


def test_tests_of_a_bundle(bundle: Bundle) -> None:
    # The plugin is named, since vaedeploy may be here without being installed.
    plugin = ("-p", "no:vaedeploy", "-p", "vaedeploy.testing.plugin", "-p", "no:cacheprovider")
    command = ("-m", "pytest", "-q", *plugin, "examples/test_parity.py")
    done = python(*command, "--vae-bundle", bundle.path, OTHER_BUNDLE=str(bundle.path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


# -------------------------------------------------------------------------------------------------------- notebook


def cells(kind: str) -> list[str]:
    notebook = json.loads((EXAMPLES / "notebook.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


@pytest.mark.slow
@pytest.mark.usefixtures("verified_smaller")
def test_the_notebook(small_vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a smaller VAE of the same factor in the place of "demo", which other tests export."""
    monkeypatch.chdir(tmp_path)
    program = "\n".join(cells("code"))
    assert program.count('export_vae("demo",') == 1
    names: dict[str, Any] = {}
    exec(program.replace('export_vae("demo",', f"export_vae({str(small_vae)!r},"), names)
    assert names["report"].passed
    assert names["decoded"].shape == names["photo"].shape
    with VAE("demo") as vae:
        np.testing.assert_array_equal(read_latent(Path("photo.safetensors")).latent, vae.encode(names["photo"]))


# ---------------------------------------------------------------------------------------- in C++ and in the browser


@pytest.fixture
def padded(tmp_path: Path, demo_bundle: Bundle) -> tuple[Path, np.ndarray]:
    """A latent file of a picture that was padded, and what the runtime decodes it to."""
    picture, file = tmp_path / "photo.png", tmp_path / "photo.safetensors"
    Image.fromarray(load_photos()[0][100:250, 100:300]).save(picture)
    with VAE(demo_bundle.path, "onnxruntime-cpu") as vae:
        encode_files(vae, picture, file, sample=False, seed=None, pad=True).check()
        latent = read_latent(file)
        return file, vae.decode(latent.latent, size=latent.size)[0]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_cpp_decodes_as_the_runtime_does(padded: tuple[Path, np.ndarray], demo_bundle: Bundle, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino").__path__[0]
    (library,) = Path(openvino, "libs").glob("libopenvino.so.*")
    (latent, expected), decode, out = padded, tmp_path / "decode", tmp_path / "decoded.ppm"
    compiler = ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "examples/cpp/decode.cpp", "-o", decode]
    places = ["-isystem", f"{openvino}/include", library, f"-Wl,-rpath,{openvino}/libs"]
    subprocess.run([str(word) for word in (*compiler, *places)], check=True, cwd=ROOT)

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        command = [str(decode), str(demo_bundle.path / "decoder.onnx"), *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True)

    done = run(latent, out)
    assert (done.returncode, done.stdout, done.stderr) == (0, "200 x 150\n", "")
    assert np.abs(np.asarray(Image.open(out)).astype(int) - expected).max() <= 1
    for size in (5, 100, -1):
        (tmp_path / "cut").write_bytes(latent.read_bytes()[:size])
        assert run(tmp_path / "cut", out).returncode == 1


RUNTIME = EXAMPLES / "browser" / "node_modules" / "onnxruntime-web"
PIXELS = """(() => {
    const canvas = document.querySelector("canvas");
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return [canvas.height, canvas.width, [...data]];
})()"""


def told(browser: Browser, *passing: str) -> str:
    """What the page says, once that is none of these."""
    look = f"""(done) => {{
        const output = document.querySelector("output");
        const look = () => ({list(passing)}.includes(output.value) ? setTimeout(look, 20) : done(output.value));
        look();
    }}"""
    return browser.run(f"new Promise({look})")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def site(tmp_path: Path, demo_bundle: Bundle) -> Iterator[str]:
    """The address of the example with a bundle in it."""
    for path in (EXAMPLES / "browser").iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "bundle").symlink_to(demo_bundle.path)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/index.html"
        finally:
            server.shutdown()
            serving.join()


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: make test-web")
@pytest.mark.skipif(not RUNTIME.exists(), reason="onnxruntime-web is not installed: make test-web")
def test_the_browser_decodes_as_the_runtime_does(site: str, padded: tuple[Path, np.ndarray]) -> None:
    file, expected = padded
    with Browser() as browser:
        browser.open(site)
        assert told(browser, "", "…") == "ready", browser.messages
        browser.give_file("input", file)
        assert told(browser, "ready", "…").startswith("200 x 150 in "), browser.messages
        height, width, values = browser.run(PIXELS)
    drawn = np.array(values, np.uint8).reshape(height, width, 4)
    assert (drawn[..., 3] == 255).all()
    assert np.abs(drawn[..., :3].astype(int) - expected).max() <= 1


# ------------------------------------------------------------------------------------- files that are not run here


def commands(text: str) -> list[str]:
    return re.findall(r"^ *(?:- run:|#|\$)? *vaedeploy ([a-z].*)$", text, re.MULTILINE)


def test_commands_of_the_job_parse() -> None:
    found = commands((EXAMPLES / "github-actions.yml").read_text())
    assert [line.split()[0] for line in found] == ["pull", "verify"]
    for line in found:
        assert line.split()[0] in cli.commands
        parse(line)


def test_the_job_installs_what_verifies_half_precision() -> None:
    """See test_package.py for what it takes."""
    (extras,) = re.findall(r'- run: pip install "vaedeploy\[([\w,]+)\]"', (EXAMPLES / "github-actions.yml").read_text())
    assert {"cpu", "hub", "build"} <= set(extras.split(","))


def test_the_image_has_no_rights_and_copies_what_is_there() -> None:
    text = (EXAMPLES / "Dockerfile").read_text()
    last = text.rpartition("\nFROM ")[2]
    assert re.search(r"^USER [1-9]\d*$", last, re.MULTILINE)
    assert last.index("USER ") < last.index("ENTRYPOINT ")
    copied = [name for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE) for name in line.split()]
    assert len(copied) > 4
    assert [name for name in copied if not (ROOT / name).exists()] == []
