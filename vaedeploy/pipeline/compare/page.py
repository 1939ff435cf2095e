"""Comparison -> Document: what the page of ``vaedeploy compare`` shows."""

from __future__ import annotations

from collections.abc import Sequence

from vaedeploy.page import Cell, Column, Document, Strip, Table
from vaedeploy.page.document import MOST_UPRIGHT, Tone
from vaedeploy.page.measures import CHROMA, COLOR, CONTRAST, DETAIL, DISTS, LPIPS, OPACITY, PSNR
from vaedeploy.pipeline.compare.result import Comparison, Swap
from vaedeploy.pipeline.compare.swaps import SWAP_PHOTOS, SWAP_SIDE
from vaedeploy.pipeline.compare.words import (
    cut_lines,
    failure_lines,
    faults_line,
    flattened_line,
    remedy,
    timed_words,
    verdict_line,
)
from vaedeploy.quality.candidates import Picture


def comparison_document(comparison: Comparison, pictures: Sequence[Picture], strips: Sequence[Strip]) -> Document:
    """What the page shows. strips: the images of each swap, with its sentences."""
    return Document(
        title=f"{', '.join(comparison.bundles)} on {len(pictures)} photographs",
        verdict=verdict_line(comparison),
        tone=_tone(comparison),
        sentences=(*cut_lines(comparison.cuts, len(pictures)), *failure_lines(comparison.failures, len(pictures))),
        further=(
            *flattened_line(comparison.flattened),
            *(_in_short(swap) for swap in comparison.swaps if swap.verdict != "compatible"),
        ),
        opens=(comparison.bundles[0], comparison.bundles[1]),
        reference="photograph",
        pictures=tuple(pictures),
        answer=(_overview(comparison),),
        tables=(_swaps(comparison),),
        strips=tuple(strips),
        notes=comparison.left_out,
    )


def _in_short(swap: Swap) -> str:
    what = [swap.cause or "", remedy(swap.transform) if swap.transform else ""]
    why = f" ({': '.join(filter(None, what))})" if swap.cause else ""
    return f"Latents of {swap.encoder}, decoded by {swap.decoder}: {swap.verdict}{why}."


def _tone(comparison: Comparison) -> Tone:
    verdicts = {swap.verdict for swap in comparison.swaps}
    if comparison.broken or verdicts & {"not compatible", "cannot be judged"}:
        return "bad"
    seen = any(row.findings for row in comparison.reconstructions)
    return "mixed" if seen or "compatible with a shift" in verdicts else "good"


def _overview(comparison: Comparison) -> Table:
    rgba = comparison.summaries[0].opacity is not None
    lpips, dists = (value is not None for value in (comparison.summaries[0].lpips, comparison.summaries[0].dists))
    means = " and ".join(name for name, seen in (("LPIPS", lpips), ("DISTS", dists)) if seen)
    columns = (
        Column("VAE"),
        *(measure.column for measure in (PSNR, COLOR, CHROMA, CONTRAST, DETAIL)),
        *(measure.column for measure, seen in ((LPIPS, lpips), (DISTS, dists), (OPACITY[0], rgba)) if seen),
        *(Column(f"Time to {part}", "ms", "Per call, the median over all rounds.") for part in comparison.timed),
        Column("What is seen"),
    )
    times: dict[tuple[str, str], float | None] = {(speed.bundle, speed.part): speed.ms for speed in comparison.speeds}
    rows = (
        (
            Cell(s.bundle),
            Cell(f"{s.psnr:.1f}", s.psnr),
            Cell(f"{s.color:.2f}", s.color),
            *(Cell(f"{100 * ratio:.0f}", ratio) for ratio in (s.chroma, s.contrast, s.detail)),
            *(Cell(f"{value:z.3f}", value) for value in (s.lpips, s.dists) if value is not None),
            *(() if s.opacity is None else (Cell(f"{s.opacity:.2f}", s.opacity),)),
            *(_time(times[s.bundle, part]) for part in comparison.timed),
            Cell(faults_line([row for row in comparison.reconstructions if row.bundle == s.bundle]) or "nothing"),
        )
        for s in comparison.summaries
    )
    lead = f"Medians over all photographs{', and means of ' if means else ''}{means}."
    if comparison.speeds:
        lead += f" Times are of {timed_words(comparison.speeds)}."
    upright = len(comparison.summaries) <= MOST_UPRIGHT
    return Table("The VAEs side by side", lead, columns, tuple(rows), upright)


def _time(ms: float | None) -> Cell:
    return Cell("none", float("inf")) if ms is None else Cell(f"{ms:.0f}", ms)


def _swaps(comparison: Comparison) -> Table:
    columns = (
        Column("Latents of"),
        Column("Decoded by"),
        Column("Verdict"),
        Column("Why"),
        Column("PSNR", "dB", "PSNR of the other decoder's images against the photographs."),
        Column("PSNR, own decoder", "dB", "PSNR of the images of the latents' own decoder."),
        Column("PSNR, corrected", "dB", "PSNR after the correction that the sentence describes."),
    )
    rows = tuple(
        (
            Cell(swap.encoder),
            Cell(swap.decoder),
            Cell(swap.verdict),
            Cell(swap.cause or ""),
            *(
                Cell("" if value is None else f"{value:.1f}", float("-inf") if value is None else value)
                for value in (swap.psnr, swap.own_psnr, swap.restored_psnr)
            ),
        )
        for swap in comparison.swaps
    )
    lead = (
        "Whether a diffusion model that was trained with one VAE can be used with another one's decoder. PSNR is of up "
        f"to {SWAP_PHOTOS} photographs that are shrunk to {SWAP_SIDE} pixels, so it differs from that of the VAEs side "
        "by side."
    )
    return Table("Compatible latents", lead, columns, rows)
