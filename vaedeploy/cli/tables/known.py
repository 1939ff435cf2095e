"""Rows of text for the results of ``presets``, ``profiles`` and ``doctor``."""

from __future__ import annotations

import re
from collections.abc import Iterable

from vaedeploy.engines.profile import Profile
from vaedeploy.pipeline.doctor import Diagnosis
from vaedeploy.source import Preset
from vaedeploy.source.family import LatentShape
from vaedeploy.system.gpu import Gpu
from vaedeploy.values.latent import COLORS, RGB, LatentSpec
from vaedeploy.values.words import counted

Row = tuple[str, ...]

PROFILE_COLUMNS = ("profile", "GPU", "capability", "memory", "backend", "precision")

BUILDERS = "tensorrt-rtx builds without a GPU, tensorrt on the GPU itself."

NEVER_RUN = dict.fromkeys(
    ("tensorrt", "tensorrt-rtx"),
    "; vaedeploy's tests of it (make test-gpu) have never been run on a GPU yet",
)
"""What ``doctor`` adds to backends that were written without the hardware that they need."""

BFLOAT16 = {
    True: "it computes bfloat16 (--backend openvino --precision bf16) in a fraction of float32's time",
    False: "it has no instructions for bfloat16",
}
"""What ``doctor`` says of a CPU."""


def preset_rows(presets: Iterable[Preset]) -> list[Row]:
    """A row for each preset: its name; its purpose in one line, and its latents, licence and repository in another."""
    return [
        (
            p.name,
            f"{p.purpose}\n"
            f"latent: {latent_shape(p.latent_shape)}; licence: {p.licence}; "
            f"weights: {p.repository or 'in this package'}",
        )
        for p in presets
    ]


def profile_rows(profiles: Iterable[Profile]) -> list[Row]:
    """A row for each profile, in ``PROFILE_COLUMNS``: lower compute capabilities first, then less memory."""
    ordered = sorted(profiles, key=lambda p: (float(p.compute_capability), p.memory_gib))
    return [
        (
            p.name,
            _gpu_kind(p),
            p.compute_capability,
            f"{p.memory_gib:g} GiB",
            p.backend,
            p.precision,
        )
        for p in ordered
    ]


def _gpu_kind(profile: Profile) -> str:
    """The GPU's name, without what other columns say or all names share."""
    name = profile.gpu.removesuffix(f" of compute capability {profile.compute_capability}")
    return re.sub(r"^NVIDIA (GeForce )?| \(\d+ GB\)$", "", name)


def profile_sizes(profiles: Iterable[Profile]) -> list[str]:
    """Where engines are built, then a line for each set of sizes with the names of the profiles that have it; the
    commonest set comes last.
    """
    names: dict[str, list[str]] = {}
    for profile in profiles:
        names.setdefault(", ".join(map(str, profile.shapes.values())), []).append(profile.name)
    *rare, (common, _) = sorted(names.items(), key=lambda item: len(item[1]))
    lines = [f"{', '.join(owners)}: {sizes}" for sizes, owners in rare]
    return [BUILDERS, "", "Sizes, batch x height x width:", *lines, f"{'all others' if rare else 'all'}: {common}"]


def diagnosis_rows(diagnosis: Diagnosis) -> list[Row]:
    """The machine, then whether each backend is available, what to install for each extra, and what is installed."""
    rows: list[Row] = [
        ("vaedeploy", diagnosis.vaedeploy),
        ("python", diagnosis.python),
        ("platform", diagnosis.platform),
        ("CPU", f"{diagnosis.cpu}; {BFLOAT16[diagnosis.bfloat16]}"),
        ("GPU", _gpu(diagnosis.gpu)),
    ]
    rows += [(f"backend {b.name}", b.problem or f"available{NEVER_RUN.get(b.name, '')}") for b in diagnosis.backends]
    for extra in diagnosis.extras:
        # Both packages of ONNX Runtime write to one folder.
        replaces = "onnxruntime-gpu" in extra.missing and diagnosis.packages["onnxruntime"]
        run = f"pip uninstall onnxruntime, then {extra.install}" if replaces else extra.install
        state = f"missing: {', '.join(extra.missing)}. Run: {run}" if extra.missing else "complete"
        rows.append((f"extra [{extra.name}]", f"{state} (for {extra.purpose})"))
    installed = [f"{name} {version}" for name, version in diagnosis.packages.items() if version]
    missing = [name for name, version in diagnosis.packages.items() if not version]
    # In only two rows: a terminal shows the end of the output, which should have the rows above.
    return [*rows, ("installed", ", ".join(installed)), ("not installed", ", ".join(missing) or "nothing")]


def _gpu(gpu: Gpu | None) -> str:
    if gpu is None:
        return "none, or no CUDA driver"
    return f"{gpu.name}, compute capability {gpu.compute_capability}, {gpu.memory_gib:g} GiB"


def latent_shape(latent: LatentSpec | LatentShape) -> str:
    images = f" of {COLORS[latent.image_channels]} images" if latent.image_channels != RGB else ""
    return f"{counted(latent.channels, 'channel')} at 1/{latent.factor} of the size{images}"
