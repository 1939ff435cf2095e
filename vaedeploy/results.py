"""Results of work -> rows of text for people: ``verify``, ``bench``, ``compare``, ``swap``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vaedeploy.bundle import Bundle

if TYPE_CHECKING:
    from vaedeploy.bench import Bench
    from vaedeploy.compare import Comparison
    from vaedeploy.swap import Drift
    from vaedeploy.verify import Case, Report

Row = tuple[str, ...]

CASE_COLUMNS = ("graph", "part", "case", "max abs", "mean abs", "rel L2", "PSNR", "off", "")
"""case: batch x height x width. PSNR, in dB, and the share of values that are off at all are those of 8-bit pixels."""


BENCH_COLUMNS = ("backend", "precision", "part", "size", "ms", "range", "floor", "of it", "")
"""size: batch x height x width. floor: ms, see ``bench.Timing``; of it: its share in the time."""

COMPARE_COLUMNS = ("VAE", "PSNR", "CIEDE2000", "chroma", "contrast", "detail", "encode ms", "decode ms")
"""Medians over all photographs; see ``compare.Summary``."""


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
    """Each limit that was missed, what a person would see, and last the verdict."""
    failed = [case for case in report.cases if not case.passed]
    lines = [f"{c.form} {c.part} {_case_shape(c)}, {c.output}: {failure}" for c in failed for failure in c.failures]
    lines += [f"seen: {c.form} {c.part} {_case_shape(c)}: {words}" for c in report.cases for words in c.findings or ()]
    setting = f"on {report.backend} against {report.reference}"
    if report.passed:
        return [*lines, f"verified: {len(report.cases)} cases {setting}"]
    return [*lines, f"FAILED: {len(failed)} of {len(report.cases)} cases {setting}"]


def bench_rows(bench: Bench) -> list[Row]:
    """A row a timing, in ``BENCH_COLUMNS``."""
    return [
        (
            t.backend,
            t.precision,
            t.part,
            f"{t.batch}x{t.height}x{t.width}" if t.batch else "",
            *(
                (_milliseconds(t.ms), f"{_milliseconds(t.least_ms)} to {_milliseconds(t.most_ms)}")
                if t.ms
                else ("", "")
            ),
            "" if t.floor_ms is None else _milliseconds(t.floor_ms),
            "" if t.share is None else f"{t.share:.0%}",
            t.problem or "",
        )
        for t in bench.timings
    ]


def ceiling_lines(bench: Bench) -> list[str]:
    """What the floors were made from, a line a device."""
    lines = []
    for ceilings in bench.ceilings:
        rates = ", ".join(f"{rate / 1e12:.3g} TFLOP/s in {precision}" for precision, rate in ceilings.product.items())
        lines.append(
            f"{ceilings.device}: a large matrix product at {rates}; a large copy at {ceilings.copy / 1e9:.3g} GB/s"
        )
    return lines


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def compare_rows(comparison: Comparison) -> list[Row]:
    """A row a bundle, in ``COMPARE_COLUMNS``."""
    times = {(speed.bundle, speed.part): speed.ms for speed in comparison.speeds}
    return [
        (
            s.bundle,
            f"{s.psnr:.1f}",
            f"{s.color:.2f}",
            *(f"{ratio:.0%}" for ratio in (s.chroma, s.contrast, s.detail)),
            _milliseconds(times[s.bundle, "encode"]),
            _milliseconds(times[s.bundle, "decode"]),
        )
        for s in comparison.summaries
    ]


def drift_rows(bundle: Bundle, drift: Drift) -> list[Row]:
    """What a swap did: which VAE is there now, and how far pictures of the old latents move."""
    red, green, blue = (f"{value:+.2f}" for value in drift.shift)
    return [
        ("bundle", str(bundle.path)),
        ("VAE", f"{bundle.manifest.vae.name} ({bundle.manifest.vae.architecture})"),
        ("latents", f"{drift.latent_rel_l2:.2%} of their size away"),
        ("pictures", f"{drift.mean_levels:.2f} levels of 255 away on average, PSNR {_decibels(drift.psnr)}"),
        ("brightness", f"red {red}, green {green}, blue {blue} levels"),
        ("to go back", f"vaedeploy swap {bundle.path} --restore"),
    ]


def _decibels(value: float | None) -> str:
    return "inf" if value is None else f"{value:.1f} dB"


def _pixels(case: Case) -> Row:
    """PSNR and share that is off: empty for a case without pixels."""
    if case.pixels_off is None:
        return "", ""
    return ("inf" if case.psnr is None else f"{case.psnr:.1f}"), f"{case.pixels_off:.2%}"


def _case_shape(case: Case) -> str:
    return f"{case.batch}x{case.height}x{case.width}"
