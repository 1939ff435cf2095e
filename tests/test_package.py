"""The package as users get it: its public names, its README, and what each way to install it brings."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from engine_files import write_profile
from PIL import Image
from places import ROOT

import vaedeploy as vd
from vaedeploy import errors
from vaedeploy.images.files import read_image
from vaedeploy.images.latents import read_latent
from vaedeploy.pipeline import doctor
from vaedeploy.system.installs import OLDEST

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CARRIED = [p.packaged_file for p in vd.presets().values() if p.packaged_file]
ONLY_FOR_EXPORT = ["diffusers", "huggingface_hub", "onnx", "onnx_ir", "onnxscript", "pytest", "skimage", "torch"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


# ----------------------------------------------------------------------------------------------------- public names


@pytest.mark.parametrize("name", [name for name in vd.__all__ if name != "__version__"])
def test_every_public_name_is_there(name):
    value = getattr(vd, name)
    assert value.__name__ == name
    assert value.__module__.startswith("vaedeploy.")
    assert value.__doc__


def test_help_begins_with_every_public_name():
    assert vd.__doc__.startswith("Turns the VAE of an image diffusion model from PyTorch weights into something that")
    listed = vd.__doc__.partition("These are all:\n")[2]
    assert sorted(re.findall(r"\w+(?=[,.])", listed)) == [name for name in vd.__all__ if name != "__version__"]


def test_every_error_and_warning_is_public():
    """Whatever a user can meet can be caught by its name."""
    found = set()
    for module in pkgutil.walk_packages(vd.__path__, "vaedeploy."):
        if module.name != "vaedeploy.__main__":
            members = vars(importlib.import_module(module.name)).items()
            found |= {n for n, v in members if isinstance(v, type) and issubclass(v, (vd.VaedeployError, Warning))}
    assert len(found) > 20
    assert found - {"UserWarning"} <= set(vd.__all__)


def test_the_tree_of_errors_is_drawn_as_it_is():
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    tree = re.findall(r"^    ([│├└─ ]*)(\w+Error) {2,}", errors.__doc__, re.MULTILINE)
    above: list[str] = []
    drawn = {}
    for branch, name in tree:
        depth = len(branch) // 4
        above[depth:] = [name]
        drawn[name] = above[depth - 1] if depth else "Exception"
    assert drawn == {value.__name__: value.__base__.__name__ for value in classes}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'vaedeploy' has no attribute 'exprot_vae'"):
        vd.exprot_vae  # noqa: B018


TYPED_CALLS = """
from typing import Any, assert_type
import numpy as np, torch, vaedeploy as vd
from numpy.typing import NDArray
from PIL.Image import Image
from torch.utils.dlpack import from_dlpack
from vaedeploy.runtime import Moments, SupportsDLPack

Photo = NDArray[np.uint8]
Latent = NDArray[np.float32]

def calls(vae: vd.VAE, photo: Photo, image: Image, latent: Latent, tensor: torch.Tensor) -> None:
    assert_type(vae.encode(photo), NDArray[np.float32])
    assert_type(vae.encode(image, sample=True, seed=1), NDArray[np.float32])
    assert_type(vae.encode(tensor), SupportsDLPack)
    assert_type(vae.encode_moments(photo), Moments[NDArray[np.float32]])
    assert_type(vae.encode_moments(image).std, NDArray[np.float32])
    assert_type(vae.encode_moments(tensor).std, SupportsDLPack)
    assert_type(vae.decode(latent), NDArray[np.uint8])
    assert_type(vae.decode(latent, output="float"), NDArray[np.float32])
    assert_type(vae.decode(latent, output="float", out=latent), NDArray[np.float32])
    assert_type(vae.decode(tensor), SupportsDLPack)
    assert_type(from_dlpack(vae.decode(tensor, out=tensor)), torch.Tensor)
"""


@pytest.mark.slow
def test_type_checkers_know_the_public_names_and_no_others(tmp_path):
    script, typed_calls = tmp_path / "script.py", tmp_path / "typed_calls.py"
    typed_calls.write_text(TYPED_CALLS)
    typed = "\n".join(f"reveal_type(vd.{name})" for name in vd.__all__)
    script.write_text(f"import vaedeploy as vd\n{typed}\nvd.nonsense\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", "cache", script.name, typed_calls.name]
    told = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path).stdout.splitlines()
    assert [line.partition("error: ")[2] for line in told if "error: " in line] == [
        'Module has no attribute "nonsense"  [attr-defined]'
    ]
    notes = [line for line in told if "Revealed type" in line]
    assert len(notes) == len(vd.__all__)
    assert not [line for line in notes if 'is "Any"' in line or 'is "object"' in line or "builtins.object" in line]


def test_import_costs_nothing():
    script = "import sys, vaedeploy; print({'numpy', 'msgspec', 'click', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_pytest_finds_the_plugin():
    ((name, module),) = PROJECT["entry-points"]["pytest11"].items()
    assert name == "vaedeploy"
    assert callable(importlib.import_module(module).pytest_addoption)


def test_what_is_too_old_is_what_pyproject_does_not_install():
    asked = {text for extra in ("cpu", "openvino") for text in PROJECT["optional-dependencies"][extra]}
    assert asked == {f"{name}>={'.'.join(map(str, oldest))}" for name, oldest in OLDEST.items()}


def test_doctor_knows_the_extras_of_pyproject():
    def names(requirements: list[str]) -> list[str]:
        found = []
        for requirement in requirements:
            inner = re.fullmatch(r"vaedeploy\[(\w+)\]", requirement)  # an extra that holds another one
            found += (
                names(PROJECT["optional-dependencies"][inner[1]]) if inner else [re.match(r"[\w-]+", requirement)[0]]
            )
        return sorted(found)

    assert sorted(doctor.BASE) == names(PROJECT["dependencies"])
    for extra, packages in doctor.EXTRAS.items():
        assert sorted(packages) == names(PROJECT["optional-dependencies"][extra])


# ----------------------------------------------------------------------------------------------------------- README


@pytest.mark.slow
@pytest.mark.usefixtures("verified_smaller")
def test_the_readmes_python_runs(small_vae, tmp_path, monkeypatch):
    """With a smaller VAE of the same factor in the place of "demo", which other tests export."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    program = blocks("python")[0]
    assert program.count('export_vae("demo",') == 1
    exec(program.replace('export_vae("demo",', f"export_vae({str(small_vae)!r},"), names)
    assert names["report"].passed
    assert names["latent"].shape[2:] == (32, 40)
    assert names["image"].shape == (1, 256, 320, 3)


# --------------------------------------------------------------------------------- wheel, sdist, clean environment


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """A folder with the sdist, and the wheel that is built from it."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def wheel(dist):
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def clean(tmp_path_factory, wheel):
    """Run a command in an environment that has the wheel with [cpu] and nothing else, from an empty folder."""
    return environment(tmp_path_factory.mktemp("clean") / "env", f"{wheel}[cpu]")


def environment(env, *what, constraints=ROOT / "constraints.txt"):
    """Run a command in an environment in which pip installed these."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(env)], check=True)
    programs = env / ("Scripts" if sys.platform == "win32" else "bin")
    pip = [sys.executable, "-m", "pip", "--python", str(programs / "python"), "install", "--quiet", "--no-compile"]
    subprocess.run([*pip, "--constraint", str(constraints), *what], check=True)
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(programs / program), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=env.parent, env=plain)

    return run


@pytest.fixture(scope="module")
def bundle(demo_bundle):
    """A verified bundle of the demo VAE, made here, where PyTorch is."""
    return demo_bundle.path


@pytest.mark.slow
def test_the_wheel_carries_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        carried = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = {p.relative_to(ROOT).as_posix() for p in (ROOT / "vaedeploy").rglob("*") if p.is_file()}
    files |= {f"vaedeploy/engines/profiles/{p.name}" for p in (ROOT / "profiles").iterdir()}
    assert carried == {name for name in files if "__pycache__" not in name}
    assert {"vaedeploy/__init__.pyi", "vaedeploy/source/presets.toml", "vaedeploy/py.typed"} <= carried


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist", "editable"])
def test_every_way_to_install_has_the_profiles(tmp_path, dist, wheel, kind):
    (sdist,) = dist.glob("*.tar.gz")
    what = {"wheel": [wheel], "sdist": [sdist], "editable": ["--editable", ROOT]}[kind]
    env = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(env)], check=True)
    python = env / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", *what]
    subprocess.run([*map(str, pip)], check=True)
    # What it depends on is read from this environment, whose own vaedeploy is not on that path.
    script = "import vaedeploy.engines.profile as p; print(p.shipped_folder(), *p.profiles())"
    variables = {**os.environ, "PYTHONPATH": str(Path(np.__file__).parents[1])}
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=variables)
    assert done.returncode == 0, done.stderr
    folder, *names = done.stdout.split()
    assert names == sorted(path.stem for path in (ROOT / "profiles").glob("*.toml"))
    assert Path(folder).is_relative_to(ROOT if kind == "editable" else env), folder
    assert not list(env.rglob("profiles")) or kind != "editable"  # read where they lie, and not copied


WHERE = "import vaedeploy; print(vaedeploy.__file__)"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_the_command_that_messages_print_installs_the_extra(tmp_path, wheel, kind):
    """An index may have another vaedeploy or none: the one that is there stays, and gets its extra."""
    run = environment(tmp_path / "env", *([str(wheel)] if kind == "wheel" else ["--editable", str(ROOT)]))

    def serving():
        extras = json.loads(run("vaedeploy", "doctor", "--json").stdout)["extras"]
        return next(extra for extra in extras if extra["name"] == "serve")

    before, told = run("python", "-c", WHERE).stdout, serving()
    assert told["missing"] == ["uvicorn"]
    with_pip = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    subprocess.run(told["install"], shell=True, check=True, cwd=tmp_path, env=with_pip)
    assert serving()["missing"] == []
    assert run("python", "-c", WHERE).stdout == before


@pytest.mark.slow
def test_the_wheel_carries_the_demo_weights(wheel):
    with zipfile.ZipFile(wheel) as archive:
        for file in CARRIED:
            assert archive.read(file.relative_to(ROOT).as_posix()) == file.read_bytes()


@pytest.mark.slow
def test_the_readme_leads_somewhere_from_a_package_index(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        told = archive.read(name).decode()
    headers, _, readme = told.partition("\n\n")
    assert "Description-Content-Type: text/markdown" in headers
    links = re.findall(r'\]\(([^)]+)\)|(?:src|href)="([^"]+)"', readme)
    places = [one or other for one, other in links]
    home = PROJECT["urls"]["Homepage"]
    ours = [place.removeprefix(f"{home}/") for place in places if re.match(f"{re.escape(home)}/(raw|blob)/", place)]
    assert len(ours) > 10
    assert [place for place in places if not re.match(r"https?://|#", place)] == []
    for place in ours:
        kind, version, path = place.partition("#")[0].split("/", 2)
        assert kind == ("raw" if path.endswith((".png", ".webp", ".svg")) else "blob")
        assert version == f"v{vd.__version__}"
        assert (ROOT / path).exists(), place


@pytest.mark.slow
def test_the_sdist_carries_what_testing_it_needs(dist):
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        carried = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"Makefile", "README.md", "LICENSE", "constraints.txt", "pyproject.toml"}
    needed |= {"vaedeploy/source/presets.toml", "profiles/rtx4090.toml"}
    assert needed | {"tests/test_package.py", "tools/write_cli_docs.py", "docs/cli.md"} <= carried
    assert not [name for name in carried if name.startswith((".venv", "build", ".git/"))]


@pytest.mark.slow
def test_the_clean_environment_is_clean(clean):
    script = f"from importlib.util import find_spec; print([m for m in {ONLY_FOR_EXPORT} if find_spec(m)])"
    assert clean("python", "-c", script).stdout == "[]\n"


@pytest.mark.slow
def test_commands_in_the_clean_environment(clean, bundle):
    assert clean("vaedeploy", "--help").stdout.startswith("Usage: vaedeploy ")
    assert json.loads(clean("vaedeploy", "presets", "--json").stdout)[0]["name"] == "mse840k"
    assert clean("vaedeploy", "inspect", bundle, "--check").returncode == 0
    diagnosis = json.loads(clean("vaedeploy", "doctor", "--json").stdout)
    assert diagnosis["vaedeploy"] == vd.__version__
    problems = {backend["name"]: backend["problem"] for backend in diagnosis["backends"]}
    assert list(problems) == ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cpu", "openvino"]
    assert problems["onnxruntime-cpu"] is None
    missing = {extra["name"]: len(extra["missing"]) for extra in diagnosis["extras"]}
    assert missing == {
        "cpu": 0,
        "openvino": 1,
        "cuda": 3,
        "export": 9,
        "hub": 1,
        "data": 1,
        "ray": 1,
        "build": 4,
        "serve": 1,
        "rtx": 7,
        "tensorrt": 7,
    }
    assert "rtx4090" in clean("vaedeploy", "profiles").stdout


def command(run, extra):
    """What messages in that environment say to run for an extra."""
    script = f"from vaedeploy.system.installs import install_command; print(install_command({extra!r}))"
    return run("python", "-c", script).stdout.strip()


@pytest.mark.slow
def test_serve_in_the_clean_environment_says_what_to_install(clean, bundle):
    ended = clean("vaedeploy", "serve", bundle)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        f"Error: serve needs uvicorn, of the extra [serve], which is not installed. Run: {command(clean, 'serve')}\n"
    )


@pytest.mark.slow
def test_export_in_the_clean_environment_says_what_to_install(clean):
    ended = clean("vaedeploy", "export", "demo")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.fullmatch(
        r"Error: export needs [\w-]+, of the extra \[export\], which is not installed. Run: "
        + re.escape(command(clean, "export"))
        + r". Without a GPU, install PyTorch.s build for CPUs first: .*\n",
        ended.stderr,
    )


@pytest.mark.slow
def test_a_build_in_the_clean_environment_says_what_to_install(clean, bundle):
    ended = clean("vaedeploy", "build", bundle, "--profile", "rtx4090")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"of the extra [rtx], which is not installed. Run: {command(clean, 'rtx')} (or [tensorrt]" in ended.stderr


@pytest.mark.slow
def test_verify_of_half_precision_in_the_clean_environment_says_what_to_install(clean, tiny_fp16_bundle):
    ended = clean("vaedeploy", "verify", tiny_fp16_bundle.path, "--no-note")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.endswith(f"which needs onnx_ir (No module named 'onnx_ir'): {command(clean, 'build')}\n")


@pytest.mark.slow
def test_bench_in_the_clean_environment_says_what_to_install(clean, bundle):
    ended = clean("vaedeploy", "bench", bundle)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"of the extra [build], which is not installed. Run: {command(clean, 'build')}\n" in ended.stderr


@pytest.mark.slow
def test_optimize_bench_and_verify_of_half_precision_need_build_alone(
    tmp_path, wheel, tiny_vae_bundle, tiny_fp16_bundle
):
    run = environment(tmp_path / "env", f"{wheel}[cpu,build]")
    bundle = tiny_vae_bundle.path
    ended = run("vaedeploy", "optimize", bundle / "decoder.onnx", "-o", tmp_path / "faster.onnx")
    assert ended.returncode == 0, ended.stderr
    ended = run("vaedeploy", "bench", bundle, "--size", "64x64", "--rounds", "1")
    assert ended.returncode == 0, ended.stderr
    ended = run("vaedeploy", "verify", tiny_fp16_bundle.path, "--no-note")
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_engines_need_neither_pytorch_nor_onnx_runtime(tmp_path, wheel, tiny_vae_bundle):
    run = environment(tmp_path / "env", f"{wheel}[rtx]")
    script = "from importlib.util import find_spec; print([m for m in ('torch', 'onnxruntime') if find_spec(m)])"
    assert run("python", "-c", script).stdout == "[]\n"
    copy = shutil.copytree(tiny_vae_bundle.path, tmp_path / "tiny")
    write_profile(tmp_path, shapes="{ a = { height = 64, width = 64 } }")
    ended = run("vaedeploy", "build", copy, "--profile", "mine", "--profiles", tmp_path)
    assert (ended.returncode, ended.stdout.count("unverified")) == (0, 2), ended.stderr
    assert run("vaedeploy", "inspect", copy, "--check").returncode == 0


@pytest.mark.slow
def test_the_runtime_in_the_clean_environment(clean, bundle, tmp_path):
    picture, latent, decoded = tmp_path / "photo.png", tmp_path / "photo.safetensors", tmp_path / "decoded.png"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(picture)
    assert clean("vaedeploy", "encode", bundle, picture, "-o", latent).returncode == 0
    assert clean("vaedeploy", "decode", bundle, latent, "-o", decoded).returncode == 0
    with vd.VAE(bundle) as vae:
        np.testing.assert_array_equal(read_latent(latent).latent, vae.encode(pixels))
        np.testing.assert_array_equal(read_image(decoded), vae.decode(vae.encode(pixels))[0])


@pytest.mark.slow
def test_the_runtime_with_the_oldest_numpy(tmp_path, wheel, bundle):
    """Triton's Python backend of 2.51 and PyTriton have it; with numpy 2 they garble arrays."""
    (oldest,) = [r.partition(">=")[2] for r in PROJECT["dependencies"] if r.startswith("numpy>=")]
    pins = tmp_path / "constraints.txt"
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins.write_text(re.sub(r"^numpy==.*$", f"numpy=={oldest}.*", text, flags=re.MULTILINE))
    run = environment(tmp_path / "env", f"{wheel}[cpu]", constraints=pins)
    script = (
        "import hashlib, numpy as np, vaedeploy as vd\n"
        f"vae, rng = vd.VAE({str(bundle)!r}), np.random.default_rng(0)\n"
        "print(np.__version__)\n"
        "for size in ((64, 64), (64, 96), (128, 64)):\n"
        "    latent = vae.encode(rng.integers(0, 256, (2, *size, 3), np.uint8), sample=True, seed=3)\n"
        "    for array in (latent, vae.decode(latent), vae.decode(latent, output='float')):\n"
        "        print(array.dtype, array.shape, hashlib.sha256(array.tobytes()).hexdigest())\n"
    )
    old, new = (
        run("python", "-c", script),
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True),
    )
    assert old.returncode == 0, old.stderr
    version, *arrays = old.stdout.splitlines()
    assert version.startswith(f"{oldest}.")
    assert len(arrays) == 9
    assert arrays == new.stdout.splitlines()[1:]


@pytest.mark.slow
def test_verification_in_the_clean_environment(clean, bundle):
    """Without PyTorch: against the float64 outputs that were kept with the bundle."""
    ended = clean("vaedeploy", "verify", bundle, "--json")
    assert (ended.returncode, json.loads(ended.stdout)["passed"]) == (0, True)
    assert "golden.safetensors" in json.loads(ended.stdout)["reference"]
