"""How what a backend needs is installed and imported."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec

BASE = ("click", "msgspec", "numpy", "pillow", "rich", "safetensors")
"""The packages that every installation has."""

CUDA = {"cuda-bindings": "cuda.bindings", "cuda-core": "cuda.core"}

EXTRAS = {
    "cpu": {"onnxruntime": "onnxruntime"},
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
    "build": {"onnx": "onnx", "onnx_ir": "onnx_ir", "onnxscript": "onnxscript", "polygraphy": "polygraphy"},
    "rtx": {"tensorrt-rtx": "tensorrt_rtx", **CUDA},
    "tensorrt": {"tensorrt": "tensorrt", **CUDA},
}
"""What each extra adds: a package, and the name that it is imported by. rtx and tensorrt hold build as well."""

PURPOSES = {
    "cpu": "encode, decode, verify",
    "cuda": "the same on an NVIDIA GPU, instead of cpu",
    "export": "export, verify, compare",
    "build": "optimize, bench, and what builds of any backend need",
    "rtx": "build --backend tensorrt-rtx, on any machine, and run on RTX GPUs",
    "tensorrt": "build --backend tensorrt, on the GPU that it is for, and run there",
}
"""The commands that need each extra."""


def version_of(package: str) -> str | None:
    """The installed version of a package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


COMMANDS = {"build": ("rtx", "tensorrt"), "optimize": ("build",), "bench": ("build",)}
"""The extras that a command needs, the usual one first; the other ones need the first that has what is missing."""


def advice_for(module: str, command: str | None = None) -> str | None:
    """What to say where ``command`` cannot import ``module`` (a dotted name); None where no extra has that."""
    root = module.partition(".")[0]
    having = [extra for extra, packages in EXTRAS.items() if root in packages.values()]
    if not having:
        return None
    package = next(package for package, name in EXTRAS[having[0]].items() if name == root)
    # rtx and tensorrt hold build.
    own = [extra for extra in COMMANDS.get(command or "", ()) if extra in having or "build" in having]
    first, *others = own or having[:1]
    also = "".join(f" (or [{extra}] for: {PURPOSES[extra]})" for extra in others)
    smaller = ". Without a GPU, install PyTorch's build for CPUs first: it saves gigabytes" if first == "export" else ""
    return (
        f"{command or 'this'} needs {package}, of the extra [{first}], which is not installed. "
        f"Run: {install_command(first)}{also}{smaller}"
    )


def _missing(modules: dict[str, str]) -> tuple[str, ...]:
    """Judged by what can be imported: onnxruntime-gpu serves where onnxruntime is asked for, but not the reverse."""
    return tuple(
        package
        for package, module in modules.items()
        if not _is_there(module) or (package == "onnxruntime-gpu" and version_of(package) is None)
    )


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it would be in is not there
        return False


ENGINE_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""The module of each backend that has engines; both have one interface."""

ENGINE_EXTRAS = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}
"""The extra that installs it."""


def install_command(extra: str) -> str:
    """What to run to get an extra."""
    return f'pip install "vaedeploy[{extra}]"'
