"""Rows of text for what a bundle holds: ``inspect``, ``build``, and the end of ``export``."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec

from vaedeploy.bundle import Bundle
from vaedeploy.bundle.engines import engine_faults, gpu_fault, rebuild
from vaedeploy.bundle.manifest import EngineInfo
from vaedeploy.cli.tables.known import Row, latent_shape
from vaedeploy.runtime import onnxruntime_cuda, openvino
from vaedeploy.runtime.rows.half import RowsHalf
from vaedeploy.runtime.verdicts import Verdict, read_verdicts
from vaedeploy.system.gpu import find_gpu
from vaedeploy.system.installs import version_of
from vaedeploy.values.words import counted
from vaedeploy.verify.words import METRIC_WORDS, amount, name_of

ENGINE_COLUMNS = ("profile", "part", "backend", "capability", "precision", "size", "memory", "state")
"""size: that of the engine's file. memory: what an execution context takes beside that, as the builder reports it, at
the size that takes most.
"""

COMPUTING = ("convolution", "deconvolution", "matrix_multiply", "normalization", "softmax", "activation")
"""The kinds of layers that ``inspect --layers`` lists; the others move data and compute shapes."""


def engine_sizes(bundle: Bundle) -> list[str]:
    """A line for each set of sizes that engines take, with the profiles that have it."""
    names: dict[str, dict[str, None]] = {}
    for info in bundle.manifest.engines.values():
        sizes = (f"{shape}" if shape.static else f"{name} {shape}" for name, shape in info.identity.shapes.items())
        names.setdefault(", ".join(sizes), {})[info.profile] = None
    return [f"{', '.join(owners)}: {sizes}" for sizes, owners in names.items()]


def engine_rows(bundle: Bundle, profiles: Collection[str]) -> list[Row]:
    """A row for each engine of ``profiles``, in ``ENGINE_COLUMNS``."""
    return [
        (
            info.profile,
            info.part,
            f"{info.identity.backend} {info.identity.backend_version}",
            info.identity.compute_capability,
            info.identity.precision,
            _size(bundle.manifest.files[name].bytes),
            _size(max(info.activation_bytes.values(), default=0)),
            _engine_state(info),
        )
        for name, info in sorted(bundle.manifest.engines.items())
        if info.profile in profiles
    ]


def _engine_state(info: EngineInfo) -> str:
    if info.verification is None:
        return "unverified"
    return "verified" if info.verification.passed else "FAILED"


def _engine_problems(bundle: Bundle) -> dict[str, list[str]]:
    """Each engine's name -> its problems on this machine and the command that fixes them, or an empty list."""
    gpu = find_gpu() if bundle.manifest.engines else None
    problems = {}
    for name, info in sorted(bundle.manifest.engines.items()):
        faults = engine_faults(bundle, name, version=version_of(info.identity.backend), verify_hash=False)
        other_gpu = gpu_fault(info.identity, gpu) if gpu else None
        problems[name] = [
            *([f"not for the GPU in this machine: {other_gpu}"] if other_gpu else []),
            *(f"STALE: {fault}" for fault in faults),
            *([rebuild(bundle, name)] if faults else []),
        ]
    return problems


def _engine_text(bundle: Bundle, name: str, problems: Iterable[str], layers: bool) -> str:
    """An engine's size, state, identity, memory and problems, in lines. layers: also its memory by size, its tensors
    and its layers, which are many.
    """
    info = bundle.manifest.engines[name]
    identity = info.identity
    kinds = (f"{n} {kind}" for kind, n in info.layers.items() if kind.split()[0] in COMPUTING)
    lines = [
        f"{name}  {_size(bundle.manifest.files[name].bytes)}  {_engine_state(info)}"
        + (" (it has not been run on its GPU)" if info.verification is None else ""),
        f"{identity.backend} {identity.backend_version}, compute capability {identity.compute_capability}"
        + (f", {identity.gpu} alone" if identity.gpu else "")
        + f", {identity.precision}, {_size(info.weights_bytes)} of weights",
    ]
    if layers:
        lines += [
            *(f"{identity.shapes[k]} ({k}): {_size(count)} of memory" for k, count in info.activation_bytes.items()),
            "tensors: " + ", ".join(f"{tensor} {kind}" for tensor, kind in info.tensors.items()),
            f"layers: {', '.join(kinds)}",
        ]
    elif by_memory := sorted(info.activation_bytes.items(), key=lambda item: item[1]):
        (least, few), (most, many) = by_memory[0], by_memory[-1]
        lines.append(f"memory: {_size(few)} ({least}) to {_size(many)} ({most})")
    return "\n".join([*lines, *problems])


UNSEALED = (
    "bundle.json itself cannot be proved: it is older than seals. Whatever changes the bundle next seals it, such as "
    "vaedeploy verify"
)
WORST = ("rel_l2", "max_levels", "psnr")
"""The metrics whose worst values ``export`` ends with; ``inspect`` has the others as well."""

SIDES = (1024, 2048, 4096)
"""The sides, in pixels, of the images for which ``inspect`` states the memory."""


def memory_needs(bundle: Bundle) -> dict[str, dict[str, dict[str, int]]]:
    """Half -> size -> bytes on the CPU for the whole graph, and the least bytes, for halves that can run by rows."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for part in bundle.manifest.rows:
        half = RowsHalf(bundle, part)
        for side in SIDES:
            rows = side // half.table.factor
            untiled, least = half.needs(1, rows, rows)
            found.setdefault(part, {})[f"{side}x{side}"] = {"untiled": untiled, "least": least}
    return found


def bundle_document(bundle: Bundle, checked: bool) -> dict[str, Any]:
    """The manifest as builtins, with six more fields.

    ``path``: the bundle's folder. ``verified``: whether its last verification passed. ``problems``: everything that is
    wrong with the bundle on this machine, one sentence each. ``engine_states``: the state and the problems of each
    engine. ``backends``: the verdicts on other backends that run its graphs. ``checked``: whether every file's sha256
    was compared with the manifest.
    """
    manifest = bundle.manifest
    engines = _engine_problems(bundle)
    unverified = [] if bundle.verified else [f"verified: {_verification(bundle)}"]
    document: dict[str, Any] = msgspec.to_builtins(manifest)
    return document | {
        "path": str(bundle.path),
        "verified": bundle.verified,
        "problems": [
            *unverified,
            *(f"{name}: {problem}" for name, problems in engines.items() for problem in problems),
        ],
        "engine_states": {
            name: {"state": _engine_state(manifest.engines[name]), "problems": problems}
            for name, problems in engines.items()
        },
        "backends": [msgspec.to_builtins(verdict) for verdict in _backend_verdicts(bundle)],
        "checked": checked,
    }


def bundle_rows(bundle: Bundle, checked: bool, layers: bool = False) -> list[Row]:
    """A row for each entry of the manifest, with the problems that engines have on this machine.

    checked: say that every file's sha256 was compared with the manifest. layers: also list the layers and tensors of
    engines.
    """
    manifest = bundle.manifest
    vae, latent, files = manifest.vae, manifest.latent, manifest.files
    origin = vae.origin
    rows: list[Row] = [
        ("bundle", str(bundle.path)),
        ("format", f"{manifest.format}, made by vaedeploy {manifest.vaedeploy}"),
        ("VAE", f"{vae.name} ({vae.architecture})"),
        ("identity", vae.identity),
        (
            "weights",
            f"{origin.kind} {origin.location}".strip() + (f", sha256 {origin.sha256}" if origin.sha256 else ""),
        ),
        ("licence", vae.licence or "not known"),
        ("latent", f"{latent_shape(latent)}, scale {latent.scale}, shift {latent.shift}"),
        ("image input", manifest.image_input),
        ("precision", manifest.precision),
        ("verified", _verification(bundle)),
        *(("", line) for line in _backend_lines(bundle)),
    ]
    rows += [
        ("engine", _engine_text(bundle, name, problems, layers)) for name, problems in _engine_problems(bundle).items()
    ]
    rows += [("sizes", line) for line in engine_sizes(bundle)]
    rows += [(f"{part} takes", _needs(sizes)) for part, sizes in memory_needs(bundle).items()]
    rows += [("file", f"{name}  {_size(info.bytes)}") for name, info in sorted(files.items())]
    if checked:
        rows.append(("check", "every file is as the manifest says"))
        if bundle.manifest.seal is None:
            rows.append(("", UNSEALED))
    return rows


def _verification(bundle: Bundle) -> str:
    verification = bundle.manifest.verification
    if verification is None:
        return f"no. Run: vaedeploy verify {bundle.path}"
    worst = ", ".join(_worst(name, value) for name, value in verification.worst.items())
    state = "yes" if verification.passed else "FAILED"
    setting = f"{counted(verification.cases, 'case')} on {verification.backend} against {verification.reference}"
    return f"{state}: {setting}; at worst: {worst}"


def _backend_verdicts(bundle: Bundle) -> list[Verdict]:
    """What ``verify --backend`` noted about backends that run graphs."""
    return [verdict for name in (onnxruntime_cuda.NAME, openvino.NAME) for verdict in read_verdicts(bundle, name)]


def _backend_lines(bundle: Bundle) -> list[str]:
    """A line for each of these verdicts, and one for a form of graph that lacks one."""
    verdicts = _backend_verdicts(bundle)
    lines = [_backend_line(verdict) for verdict in verdicts]
    fused = onnxruntime_cuda.FUSED_FORM
    if fused in bundle.manifest.graphs["decoder"] and all(verdict.backend != fused for verdict in verdicts):
        lines.append(f"no: the form {fused} takes a GPU. Run there: vaedeploy verify {bundle.path} --backend {fused}")
    return lines


def _backend_line(verdict: Verdict) -> str:
    place = verdict.machine and (verdict.machine.gpu.name if verdict.machine.gpu else verdict.machine.cpu)
    state = "yes" if verdict.passed else "FAILED"
    when = f", {verdict.date[:10]}" if verdict.date else ""
    return f"{state}: {verdict.backend} in {verdict.precision} on {place}{when}, against {verdict.reference}"


def made_line(bundle: Bundle) -> str:
    """The verdict on a bundle that was just made, with its worst figures."""
    verification = bundle.manifest.verification
    if verification is None:
        return "unverified: nothing was compared with PyTorch"
    worst = ", ".join(_worst(name, verification.worst[name]) for name in WORST if name in verification.worst)
    cases = f"{counted(verification.cases, 'case')} against {verification.reference}"
    return f"{'verified' if verification.passed else 'FAILED'}: {cases}; at worst: {worst}"


def _worst(metric: str, value: float | None) -> str:
    if metric not in METRIC_WORDS:  # a metric of another vaedeploy version
        return f"{metric} {value}"
    return f"{name_of(metric)} {amount(metric, value)}"


def _needs(sizes: Mapping[str, Mapping[str, int]]) -> str:
    """Memory by size, such as "1024x1024: 2.78 GB, by rows at least 555 MB"."""
    return "\n".join(
        f"{size}: {_size(need['untiled'])}"
        + (f", by rows at least {_size(need['least'])}" if need["least"] < need["untiled"] else "")
        for size, need in sizes.items()
    )


def _size(count: int) -> str:
    """A number of bytes with a decimal unit, to three digits: 999 bytes, 1.23 MB."""
    if count < 1000:
        return f"{count} bytes"
    power = min(3, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.3g} {('kB', 'MB', 'GB')[power - 1]}"
