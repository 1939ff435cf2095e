"""Profiles of the GPUs that engines are built for, read from ``profiles/*.toml`` and the user's own folder."""

from __future__ import annotations

import difflib
import logging
import os
import re
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from vaedeploy.errors import ProfileError
from vaedeploy.system.atomic import write_file
from vaedeploy.system.documents import read_document
from vaedeploy.system.gpu import Gpu, find_gpu
from vaedeploy.system.oserrors import reason
from vaedeploy.system.places import is_folder
from vaedeploy.values.kinds import Backend, ComputeCapability, Precision
from vaedeploy.values.latent import SizeRule
from vaedeploy.values.shapes import ShapeSet

FOLDER_VARIABLE = "VAEDEPLOY_PROFILES"
"""The environment variable that names the user's profile folder."""

CAPABILITIES: dict[Backend, tuple[str, ...]] = {
    "tensorrt": ("7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.3", "12.0", "12.1"),
    "tensorrt-rtx": ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"),
}
"""The compute capabilities that each backend builds for."""

NO_BFLOAT16 = ("7.5",)
"""Compute capabilities without bfloat16 arithmetic."""

# A bundle has a folder of this name, and on Windows the names of devices (con, com1, ...) cannot be folders.
NAME = re.compile(r"(?!(con|prn|aux|nul|com\d|lpt\d)(\.|\Z))[a-z0-9][a-z0-9._-]*(?<![.])")

LARGEST = 1_000_000
"""Largest profile that is read, in bytes. One takes about 1000."""

NAME_RULE = "may contain only a-z, 0-9, '.', '_' and '-', and must be a valid folder name on every system"

log = logging.getLogger(__name__)

HardwareCompatibility = Literal["none", "same-compute-capability"]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the engine builder.

    tf32: whether float32 convolutions and products may round their inputs to 10 bits, on GPUs of compute capability 8.0
    and later. optimization_level: 0 (fast build) to 5 (fast engine), for ``tensorrt`` only; None leaves it to TensorRT.
    hardware_compatibility: whether an engine of ``tensorrt`` runs only on the GPU model that it was built on, or on
    every model of that compute capability, as engines of ``tensorrt-rtx`` always do.
    """

    tf32: bool = False
    optimization_level: Annotated[int, msgspec.Meta(ge=0, le=5)] | None = None
    hardware_compatibility: HardwareCompatibility = "none"

    def of(self, backend: Backend) -> dict[str, bool | int | str]:
        """The options that ``backend`` has and that are set, by name."""
        chosen: dict[str, bool | int | str] = {"tf32": self.tf32}
        if backend == "tensorrt":
            chosen["hardware_compatibility"] = self.hardware_compatibility
            if self.optimization_level is not None:
                chosen["optimization_level"] = self.optimization_level
        return chosen


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A kind of GPU, and how engines are built for it.

    name: the name of the profile's file, and of the folder of its engines in a bundle. gpu: the GPU's usual name.
    compute_capability: such as "8.9". memory_gib: the GPU's memory in GiB.
    backend: the backend that builds, unless the caller names another. precision: the precision of the graphs.
    shapes: a name -> the range of sizes of one optimisation profile, the tight ranges first. options: see ``Options``.
    cuda_graphs: whether engines run as CUDA graphs, which saves launches and costs memory.
    """

    name: str
    gpu: str
    compute_capability: ComputeCapability
    memory_gib: Annotated[float, msgspec.Meta(gt=0, le=65536)]
    backend: Backend
    precision: Precision
    shapes: Annotated[dict[str, ShapeSet], msgspec.Meta(min_length=1)]
    options: Options = Options()
    cuda_graphs: bool = True

    def __post_init__(self) -> None:
        self.check_backend(self.backend)
        if self.precision == "bf16" and self.compute_capability in NO_BFLOAT16:
            raise ValueError(
                f"precision is bf16, and compute capability {self.compute_capability} has no bfloat16; "
                "it must be fp16 or fp32"
            )

    def check_backend(self, backend: Backend) -> None:
        """Raise ValueError if ``backend`` does not build for this compute capability."""
        valid = [name for name, capabilities in CAPABILITIES.items() if self.compute_capability in capabilities]
        if backend not in valid:
            raise ValueError(
                f"backend {backend} does not build for compute capability {self.compute_capability}, only for "
                f"{', '.join(CAPABILITIES[backend])}; here it must be {' or '.join(valid) or 'another GPU'}"
            )

    def of_factor(self, factor: int) -> tuple[Profile, list[str]]:
        """(The profile for VAEs of this spatial factor, names of the shapes that it lacks.)

        Ranges are narrowed to multiples of the factor, and lose no size that such a VAE takes. Shapes without any such
        size are left out. Raises ProfileError where none is left.
        """
        fitted = {name: shape.of_factor(factor) for name, shape in self.shapes.items()}
        shapes = {name: shape for name, shape in fitted.items() if shape is not None}
        if not shapes:
            raise ProfileError(f"profile {self.name}, {self._nearest(factor)}")
        left_out = [name for name in fitted if name not in shapes]
        return msgspec.structs.replace(self, shapes=shapes), left_out

    def _nearest(self, factor: int) -> str:
        """The first size that is not a multiple of ``factor``, and the nearest multiples, in words."""
        rule = SizeRule(factor)
        name, axis, pixels = next(
            (name, axis, pixels)
            for name, shape in self.shapes.items()
            for axis in ("height", "width")
            for pixels in getattr(shape, axis)
            if not rule.allows(pixels, factor)
        )
        near = sorted({max(factor, pixels // factor * factor), rule.padded(pixels, factor)[0]})
        return (
            f"shapes.{name}: {axis} {pixels} is not a multiple of {factor}, as this VAE needs; the nearest are "
            f"{' and '.join(map(str, near))}"
        )


def shipped_folder() -> Path:
    """The folder of vaedeploy's own profiles: inside an installed package, or at the top of a checkout."""
    installed = Path(str(resources.files("vaedeploy.engines") / "profiles"))
    return installed if installed.is_dir() else Path(__file__).parents[2] / "profiles"


def user_folder(folder: str | Path | None) -> Path | None:
    """The user's folder of profiles: ``folder``, else the one that VAEDEPLOY_PROFILES names, else None. Raises
    ProfileError if it is not a folder.
    """
    given = folder or os.environ.get(FOLDER_VARIABLE)
    if not given:
        return None
    if not is_folder(given):
        raise ProfileError(f"the folder of profiles, {given}, is not there. Make it, or give another one")
    return Path(given)


def profile_names(folder: str | Path | None = None) -> list[str]:
    """The names of all profiles, vaedeploy's own first. Raises ProfileError as ``get_profile`` does."""
    return list(_files(folder))


def profiles(folder: str | Path | None = None) -> dict[str, Profile]:
    """All profiles by name. Raises ProfileError as ``get_profile`` does."""
    return {name: read_profile(path) for name, path in _files(folder).items()}


def get_profile(name: str, folder: str | Path | None = None) -> Profile:
    """The profile ``name``: one of vaedeploy's own, or one from ``folder``.

    folder: the user's folder of profiles; None takes the one that VAEDEPLOY_PROFILES names, if any. Raises ProfileError
    if there is no such profile, if its file cannot be used, or if a file in the folder has the name of one of
    vaedeploy's own profiles.
    """
    files = _files(folder)
    if name in files:
        return read_profile(files[name])
    near = difflib.get_close_matches(name.lower(), files, n=3, cutoff=0.5)
    hint = f"; the nearest are: {', '.join(near)}" if near else ""
    of_capability = sorted((name for name in files if re.fullmatch(r"sm\d+", name)), key=lambda name: int(name[2:]))
    raise ProfileError(
        f"no profile is named {name!r}{hint}. A GPU without a profile takes that of its compute capability: "
        f"{', '.join(of_capability)}. To see all {len(files)}: vaedeploy profiles. Your own are looked for in "
        f"--profiles DIR or {FOLDER_VARIABLE}; to begin one: vaedeploy profiles --init {name} --profiles DIR"
    )


def read_profile(path: Path) -> Profile:
    """Read a profile from its file. Raises ProfileError, naming the field, if it is invalid or contradicts itself."""
    try:
        table = msgspec.toml.decode(read_document(path, LARGEST), type=dict)
        if not NAME.fullmatch(path.stem):
            raise ValueError(f"its file's name names a folder in bundles, and {NAME_RULE}")
        if "name" in table:
            raise ValueError("it has a field name; a profile is named by its file")
        return msgspec.convert({**table, "name": path.stem}, Profile)
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError) as error:
        why = reason(error) if isinstance(error, OSError) else error
        raise ProfileError(f"profile {path.stem} cannot be used: {why}. Its file: {path}") from error


def init_profile(name: str, folder: str | Path | None = None) -> Path:
    """Write a commented profile for the user to edit, and return its path.

    folder: where it is written; None takes the folder that VAEDEPLOY_PROFILES names, else the current directory.
    The values are those of the GPU in this machine. Without a GPU they are an RTX 4090's, and a warning is logged.

    Raises ProfileError for a name that is not valid or is taken, and for a GPU that no backend builds for.
    """
    if not NAME.fullmatch(name):
        raise ProfileError(f"{name!r} is not a profile name: it {NAME_RULE}")
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
    files = _files(folder)
    path = (user_folder(folder) or Path()) / f"{name}.toml"
    if name in files or path.exists():
        raise ProfileError(f"profile {name} is there already: {files.get(name, path)}. Choose another name")
    detected = find_gpu()
    gpu = detected or Gpu("NVIDIA GeForce RTX 4090", "8.9", 24)
    backend = next((b for b in ("tensorrt-rtx", "tensorrt") if gpu.compute_capability in CAPABILITIES[b]), None)
    if backend is None:
        raise ProfileError(f"{gpu.name} has compute capability {gpu.compute_capability}; no backend builds for it")
    origin = "Filled in from the GPU in this machine." if detected else "No GPU was found: these are an RTX 4090's."
    text = (shipped_folder() / "template.toml.in").read_text(encoding="utf-8")
    values = {
        "origin": origin,
        "gpu": gpu.name,
        "capability": gpu.compute_capability,
        "memory": f"{gpu.memory_gib:g}",
        "backend": backend,
    }
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    write_file(path, text.encode())
    if detected is None:
        log.warning(
            "no GPU was found here, so %s has the values of an RTX 4090. Change gpu, compute_capability, memory_gib "
            "and backend to those of yours",
            path,
        )
    return path


def _files(folder: str | Path | None) -> dict[str, Path]:
    """Name -> file of all profiles, vaedeploy's own first."""
    shipped = {path.stem: path for path in _profile_files(shipped_folder())}
    own_folder = user_folder(folder)
    for path in _profile_files(own_folder) if own_folder else ():
        if path.stem in shipped:
            raise ProfileError(
                f"{path} has the name of a profile that vaedeploy carries; an engine's folder would not say which was "
                f"meant. Rename it, to my-{path.stem}.toml for example"
            )
    return shipped | {path.stem: path for path in (_profile_files(own_folder) if own_folder else ())}


def _profile_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.toml") if not path.name.startswith("."))
