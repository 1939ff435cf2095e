"""The extras of vaedeploy: which packages each installs, which modules these have, and which commands need them."""

from __future__ import annotations

import json
import re
import shutil
import sys
import sysconfig
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

BASE = ("click", "filelock", "msgspec", "numpy", "pillow", "platformdirs", "rich", "safetensors")
"""The packages that every installation of vaedeploy has."""

CUDA = {"cuda-bindings": "cuda.bindings", "cuda-core": "cuda.core"}
"""The packages that every backend on a GPU needs -> their import names."""

BUILD = {"onnx": "onnx", "onnx_ir": "onnx_ir", "onnxscript": "onnxscript", "polygraphy": "polygraphy"}
"""The packages that every builder of engines needs -> their import names."""

EXTRAS = {
    "cpu": {"onnxruntime": "onnxruntime"},
    "openvino": {"openvino": "openvino"},
    "cuda": {"onnxruntime-gpu": "onnxruntime", **CUDA},
    "export": {
        "diffusers": "diffusers",
        "huggingface_hub": "huggingface_hub",
        "jinja2": "jinja2",
        "onnx": "onnx",
        "onnx_ir": "onnx_ir",
        "onnxscript": "onnxscript",
        "scikit-image": "skimage",
        "scipy": "scipy",
        "torch": "torch",
    },
    "hub": {"huggingface_hub": "huggingface_hub"},
    "build": BUILD,
    "serve": {"uvicorn": "uvicorn"},
    "data": {"pyarrow": "pyarrow"},
    "ray": {"ray": "ray"},
    "rtx": {"tensorrt-rtx": "tensorrt_rtx", **CUDA, **BUILD},
    "tensorrt": {"tensorrt": "tensorrt", **CUDA, **BUILD},
}
"""Extra -> each package that it installs -> the package's import name."""

PURPOSES = {
    "cpu": "encode, decode, verify (bundles in half precision with build too)",
    "openvino": "the same with OpenVINO, beside cpu or without it; in bfloat16 too",
    "cuda": "the same on an NVIDIA GPU, instead of cpu",
    "export": "export, verify, compare",
    "hub": "push, pull, and bundles that are named hf://owner/name",
    "build": "optimize, bench, verify in half precision, and what builds of any backend need",
    "serve": "serve, beside a backend",
    "data": "cache, for pictures in parquet files",
    "ray": "cache --ray, on many machines",
    "rtx": "build --backend tensorrt-rtx, which needs no GPU, and run on RTX GPUs",
    "tensorrt": "build --backend tensorrt, on the GPU that it is for, and run there",
}
"""Extra -> the commands that need it, in words."""


def version_of(package: str) -> str | None:
    """The installed version of a package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


OLDEST = {"onnxruntime": (1, 24), "openvino": (2025, 0)}
"""Module of a library that runs graphs -> the first version that works here. ``pyproject.toml`` requires it too, and
says why, but the library may have been installed without the extra.
"""


def age_fault(library: ModuleType) -> str | None:
    """How an imported library of ``OLDEST`` is too old, in words that follow its name; None where it is not."""
    version, oldest = getattr(library, "__version__", None) or "", OLDEST[library.__name__]
    found = re.match(r"(\d+)\.(\d+)", version)
    if found and (int(found[1]), int(found[2])) >= oldest:
        return None
    told = version.partition("-")[0] or "without a version"
    return f"{told} is too old: version {'.'.join(map(str, oldest))} or newer is needed"


COMMANDS = {
    "build": ("rtx", "tensorrt"),
    "optimize": ("build",),
    "bench": ("build",),
    "push": ("hub",),
    "pull": ("hub",),
}
"""Command -> the extras that it can run with, the usual one first.

Every other command needs the first extra in ``EXTRAS`` that installs the missing package.
"""


def advice_for(module: str, command: str | None = None) -> str | None:
    """What to tell the user if ``command`` cannot import ``module`` (a dotted name).

    None if no extra installs the module.
    """
    root = module.partition(".")[0]
    sources = [extra for extra, packages in EXTRAS.items() if root in packages.values()]
    if not sources:
        return None
    package = next(package for package, name in EXTRAS[sources[0]].items() if name == root)
    suitable = [extra for extra in COMMANDS.get(command or "", ()) if extra in sources]
    first, *others = suitable or sources[:1]
    also = "".join(f" (or [{extra}] for: {PURPOSES[extra]})" for extra in others)
    smaller = ". Without a GPU, install PyTorch's build for CPUs first: it saves gigabytes" if first == "export" else ""
    return (
        f"{command or 'this'} needs {package}, of the extra [{first}], which is not installed. "
        f"Run: {install_command(first)}{also}{smaller}"
    )


def missing_packages(modules: dict[str, str]) -> tuple[str, ...]:
    """Those packages of an extra (package -> module, as in ``EXTRAS``) that are not installed.

    A package counts as installed if its module can be imported, so onnxruntime-gpu serves as onnxruntime. The reverse
    does not hold: onnxruntime-gpu must itself be installed.
    """
    return tuple(
        package
        for package, module in modules.items()
        if not _is_importable(module) or (package == "onnxruntime-gpu" and version_of(package) is None)
    )


def _is_importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is not installed
        return False


ENGINE_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Backend that runs engines -> its Python module. Both modules have the same interface."""

ENGINE_EXTRAS = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}
"""Backend -> the extra that installs it."""


def install_command(extra: str) -> str:
    """The shell command that installs an extra into the environment that this runs in.

    pip and uv keep an installed vaedeploy, from a release or a checkout, and add its extra, whatever an index has under
    that name. A checkout that runs without being installed is installed as one.
    """
    if checkout := _checkout_as_it_is():
        return f'{pip_install()} --editable "{checkout}[{extra}]"'
    return f'{pip_install()} "vaedeploy[{extra}]"'


def upgrade_command() -> str:
    """How to get a newer vaedeploy into the environment that this runs in: a shell command, or words with one."""
    if checkout := _checkout_as_it_is():
        return f"update the checkout {checkout} (git pull)"
    origin = _origin()
    if "vcs_info" in origin:
        return f'{pip_install()} --upgrade "vaedeploy @ {origin["vcs_info"]["vcs"]}+{origin["url"]}"'
    if "dir_info" in origin:
        folder = _folder(origin)
        editable = "--editable " if origin["dir_info"].get("editable") else ""
        return f'update the checkout {folder} (git pull), then {pip_install()} {editable}"{folder}"'
    return f"{pip_install()} --upgrade vaedeploy"


def requirement(extra: str) -> str:
    """What pip is given in another environment to install this vaedeploy there, with an extra."""
    if checkout := _checkout_as_it_is():
        return f"{checkout}[{extra}]"
    origin = _origin()
    if "vcs_info" in origin:
        return f"vaedeploy[{extra}] @ {origin['vcs_info']['vcs']}+{origin['url']}"
    return f"{_folder(origin)}[{extra}]" if "dir_info" in origin else f"vaedeploy[{extra}]"


def pip_install() -> str:
    """The beginning of a shell command that installs packages into the environment that this runs in."""
    python = f'"{sys.executable}"' if " " in sys.executable else sys.executable
    if find_spec("pip") is not None:
        return "pip install" if _finds_our_pip() else f"{python} -m pip install"
    if (ours := _distribution()) and (ours.read_text("INSTALLER") or "").strip() == "uv":
        return f"uv pip install --python {python}"
    return f"pip --python {python} install"


def _finds_our_pip() -> bool:
    """Whether ``pip`` in a shell is that of the environment that this runs in."""
    found = shutil.which("pip")
    try:
        return found is not None and Path(found).parent.samefile(sysconfig.get_path("scripts"))
    except OSError:
        return False


def _distribution() -> metadata.Distribution | None:
    try:
        return metadata.distribution("vaedeploy")
    except metadata.PackageNotFoundError:
        return None


def _checkout_as_it_is() -> Path | None:
    """The checkout that this runs from, if it is not installed at all."""
    folder = Path(__file__).parents[2]
    return folder if _distribution() is None and (folder / "pyproject.toml").is_file() else None


def _folder(origin: dict[str, Any]) -> str:
    """The folder that vaedeploy was installed from."""
    from urllib.parse import urlsplit
    from urllib.request import url2pathname  # takes 20 ms to import

    return url2pathname(urlsplit(origin["url"]).path)


def _origin() -> dict[str, Any]:
    """Where vaedeploy was installed from, as PEP 610 records it. Empty if it came from an index or is not installed."""
    ours = _distribution()
    told = ours.read_text("direct_url.json") if ours else None
    return json.loads(told) if told else {}
