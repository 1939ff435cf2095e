"""Rows of text for the results of ``bench``, ``compare``, ``look`` and ``swap``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vaedeploy.bundle import Bundle
from vaedeploy.values.shapes import size_text

if TYPE_CHECKING:
    from vaedeploy.pipeline.bench import Bench
    from vaedeploy.pipeline.compare import Comparison
    from vaedeploy.pipeline.look import Looked
    from vaedeploy.pipeline.swap import Drift


Row = tuple[str, ...]

BENCH_COLUMNS = (
    "backend",
    "precision",
    "part",
    "size",
    "ms",
    "range, ms",
    "floor, ms",
    "floor, % of the time",
    "problem",
)
"""size: batch x height x width, in pixels. floor: see ``bench.Timing``."""


LOOK_COLUMNS = ("picture", "what is seen")


def look_rows(found: Looked) -> list[Row]:
    """A row for each picture, in ``LOOK_COLUMNS``."""
    return [(r.picture, " ".join(finding.words for finding in r.findings) or "no fault") for r in found.reconstructions]


def bench_rows(bench: Bench) -> list[Row]:
    """A row for each timing, in ``BENCH_COLUMNS``."""
    return [
        (
            t.backend,
            t.precision,
            t.part,
            size_text(t.batch, t.height, t.width) if t.batch else "",
            *(
                (_milliseconds(t.ms), f"{_milliseconds(t.least_ms)} to {_milliseconds(t.most_ms)}")
                if t.ms
                else ("", "")
            ),
            "" if t.floor_ms is None else _milliseconds(t.floor_ms),
            "" if t.share is None else f"{100 * t.share:.0f}",
            t.problem or "",
        )
        for t in bench.timings
    ]


def ceiling_lines(bench: Bench) -> list[str]:
    """The measured rates that the floors come from, a line for each device."""
    lines = []
    for ceilings in bench.ceilings:
        rates = ", ".join(f"{rate / 1e12:.3g} TFLOP/s in {precision}" for precision, rate in ceilings.product.items())
        lines.append(
            f"{ceilings.device}: a large matrix product at {rates}; a large copy at {ceilings.copy / 1e9:.3g} GB/s"
        )
    return lines


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def compare_columns(comparison: Comparison) -> Row:
    """Medians over all photographs, named as on the HTML page, and means of LPIPS and DISTS where they were measured;
    see ``compare.Summary``. 100 %: as in the photograph.
    """
    summary = comparison.summaries[0]
    return (
        *("VAE", "PSNR, dB", "colour difference, CIEDE2000", "colour strength, %", "contrast, %", "fine detail, %"),
        *(name for name, value in (("LPIPS", summary.lpips), ("DISTS", summary.dists)) if value is not None),
        *(f"time to {part}, ms" for part in comparison.timed),
    )


def compare_rows(comparison: Comparison) -> list[Row]:
    """A row for each bundle, in ``compare_columns``."""
    times = {(speed.bundle, speed.part): speed.ms for speed in comparison.speeds}
    return [
        (
            s.bundle,
            f"{s.psnr:.1f}",
            f"{s.color:.2f}",
            *(f"{100 * ratio:.0f}" for ratio in (s.chroma, s.contrast, s.detail)),
            *(f"{value:z.3f}" for value in (s.lpips, s.dists) if value is not None),
            *(_milliseconds(times[s.bundle, part]) for part in comparison.timed),
        )
        for s in comparison.summaries
    ]


def drift_rows(bundle: Bundle, drift: Drift) -> list[Row]:
    """The VAE that the bundle has now, and how far latents, and images decoded from the old latents, move."""
    moved = f"{drift.latent_rel_l2:.2%}"
    red, green, blue = (f"{value:+.2f}" for value in drift.shift)
    return [
        ("bundle", str(bundle.path)),
        ("VAE", f"{bundle.manifest.vae.name} ({bundle.manifest.vae.architecture})"),
        ("latents", "unchanged" if moved == "0.00%" else f"differ by {moved} (relative L2)"),
        ("images", f"differ by {drift.mean_levels:.2f} of 255 levels on average, PSNR {_decibels(drift.psnr)}"),
        ("brightness", f"red {red}, green {green}, blue {blue} levels"),
        ("to go back", f"vaedeploy swap {bundle.path} --restore"),
    ]


def _decibels(value: float | None) -> str:
    return "no difference" if value is None else f"{value:.1f} dB"
