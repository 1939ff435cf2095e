"""Values -> rows of text for people: what ``inspect``, ``presets``, ``doctor`` and ``verify`` show."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from vaedeploy.bundle import Bundle
from vaedeploy.doctor import Diagnosis
from vaedeploy.latent import LatentSpec
from vaedeploy.preset import Preset

if TYPE_CHECKING:
    from vaedeploy.verify import Case, Report

Row = tuple[str, ...]

CASE_COLUMNS = ("graph", "part", "case", "max abs", "mean abs", "rel L2", "PSNR", "off", "")
"""case: batch x height x width. PSNR, in dB, and the share of values that are off at all are those of 8-bit pixels."""


def preset_rows(presets: Iterable[Preset]) -> list[Row]:
    """A row a preset: its name, and in two lines what it is for, and what and where it is."""
    return [
        (p.name, f"{p.purpose}\n{_latent_shape(p.latent)}; {p.licence}; {p.repository or 'in this package'}")
        for p in presets
    ]


def bundle_rows(bundle: Bundle, checked: bool) -> list[Row]:
    """A row for each thing that a manifest says. ``checked``: every file's sha256 was proved just now."""
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
        ("latent", f"{_latent_shape(latent)}, scale {latent.scale}, shift {latent.shift}"),
        ("image input", manifest.image_input),
        ("precision", manifest.precision),
        ("verified", _verification(bundle)),
    ]
    rows += [("file", f"{name}  {_size(info.bytes)}") for name, info in sorted(files.items())]
    return [*rows, ("check", "every file is as the manifest says")] if checked else rows


def diagnosis_rows(diagnosis: Diagnosis) -> list[Row]:
    """What is installed, then each backend and each extra with what to do about it."""
    rows: list[Row] = [
        ("vaedeploy", diagnosis.vaedeploy),
        ("python", diagnosis.python),
        ("platform", diagnosis.platform),
    ]
    rows += [(name, version or "not installed") for name, version in diagnosis.packages.items()]
    rows += [(f"backend {b.name}", b.problem or "answers") for b in diagnosis.backends]
    for extra in diagnosis.extras:
        state = f"missing: {', '.join(extra.missing)}. Run: {extra.install}" if extra.missing else "complete"
        rows.append((f"extra [{extra.name}]", f"{state} (for {extra.purpose})"))
    return rows


def case_rows(report: Report) -> list[Row]:
    """A row a case, in ``CASE_COLUMNS``."""
    return [
        (
            case.form,
            case.part if case.output != "latent_std" else f"{case.part} std",
            _case_shape(case),
            *(f"{value:.1e}" for value in (case.max_abs, case.mean_abs, case.rel_l2)),
            *_pixels(case),
            "" if case.passed else "FAILED",
        )
        for case in report.cases
    ]


def verdict_lines(report: Report) -> list[str]:
    """Each limit that was missed, and last the verdict."""
    failed = [case for case in report.cases if not case.passed]
    lines = [f"{c.form} {c.part} {_case_shape(c)}, {c.output}: {failure}" for c in failed for failure in c.failures]
    setting = f"on {report.backend} against {report.reference}"
    if report.passed:
        return [f"verified: {len(report.cases)} cases {setting}"]
    return [*lines, f"FAILED: {len(failed)} of {len(report.cases)} cases {setting}"]


def _pixels(case: Case) -> Row:
    """PSNR and share that is off: empty for a case without pixels."""
    if case.pixels_off is None:
        return "", ""
    return ("inf" if case.psnr is None else f"{case.psnr:.1f}"), f"{case.pixels_off:.2%}"


def _case_shape(case: Case) -> str:
    return f"{case.batch}x{case.height}x{case.width}"


def _latent_shape(latent: LatentSpec) -> str:
    return f"{latent.channels} channels at 1/{latent.factor} of the size"


def _verification(bundle: Bundle) -> str:
    verification = bundle.manifest.verification
    if verification is None:
        return f"no. Run: vaedeploy verify {bundle.path}"
    worst = ", ".join(f"{name} {_number(value)}" for name, value in verification.worst.items())
    state = "yes" if verification.passed else "FAILED"
    setting = f"{verification.cases} cases on {verification.backend} against {verification.reference}"
    return f"{state}: {setting}; worst {worst}"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"


def _size(count: int) -> str:
    """Bytes as people read them, to three digits: 999 bytes, 1.23 MB."""
    if count < 1000:
        return f"{count} bytes"
    power = min(3, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.3g} {('kB', 'MB', 'GB')[power - 1]}"
