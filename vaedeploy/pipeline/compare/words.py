"""Swaps and comparisons in plain sentences."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from vaedeploy.images.cut import Cut, cuts_line
from vaedeploy.pipeline.compare.result import (
    Comparison,
    Reconstruction,
    Speed,
    Summary,
    Swap,
    Transform,
    mean_perceptual,
)
from vaedeploy.pipeline.compare.transform import causes
from vaedeploy.quality import Quality
from vaedeploy.values.words import counted

BETTER = 1.0
"""dB of PSNR by which a decoder must be ahead of the latent's own one to be called better."""


def swap_words(swap: Swap, beside: Sequence[Quality]) -> str:
    """How well a swap works, how to correct it, and how its images differ from those of the encoder's own decoder, or
    from the photographs, see ``Swap.findings``.

    beside: the quality of the one against the other, for each crop.
    """
    sentences = [_fit(swap)]
    if swap.transform is not None:
        sentences.append(f"To correct it, {remedy(swap.transform)}; that gives {_db(swap.restored_psnr)}.")
    if swap.verdict != "not compatible" and swap.encoder != swap.decoder:
        sentences += [finding.words for finding in swap.findings]
        color, chroma, contrast, detail = np.median([_difference(quality) for quality in beside], axis=0)
        better = is_better(swap.psnr, swap.own_psnr)
        whose = "the shrunk photographs" if better else f"the pictures of {swap.encoder}'s own decoder"
        sentences.append(
            f"Beside {whose}, colour differs by {color:.1f} CIEDE2000; "
            f"colour strength is {chroma:.0%}, contrast {contrast:.0%} and fine detail {detail:.0%} of theirs."
        )
    return " ".join(sentences)


def is_better(psnr: float | None, own_psnr: float | None) -> bool:
    """Whether a decoder that makes images of ``psnr`` dB is better than the latents' own one; None: no difference."""
    levels = [math.inf if level is None else level for level in (psnr, own_psnr)]
    return levels[0] > levels[1] + BETTER


def broken_words(encoder: str, decoder: str, broken: Mapping[str, float], plain: float) -> str:
    """Why a swap cannot be judged. broken: each VAE that does not show the photographs by itself -> its PSNR in dB.
    plain: the PSNR of plain pictures of their mean colours.
    """
    names = list(broken)
    figures = ", ".join(f"{name} {_db(psnr)}" for name, psnr in broken.items())
    does = "does" if len(names) == 1 else "do"
    return (
        f"{_names(names)} {does} not show the photographs with {_its(names)} own latents (PSNR: {figures}; a "
        f"plain picture of the mean colour has {_db(plain)}), so nobody can tell whether {decoder} "
        f"decodes those of {encoder}."
    )


def remedy(transform: Transform) -> str:
    """The transform as instructions: what to do to a latent before it is given to the other decoder."""
    faults = causes(transform)
    steps = []
    if "permuted channels" in faults:
        steps.append(f"take the latent's channels in the order {', '.join(map(str, transform.order))}")
    if "sign flip" in faults:
        flipped = [str(n) for n, sign in enumerate(transform.signs) if sign < 0]
        which = "the latent" if len(flipped) == len(transform.signs) else f"channels {', '.join(flipped)}"
        steps.append(f"flip the sign of {which}")
    if "wrong scale" in faults:
        steps.append(f"multiply the latent by {transform.scale:.3f}")
    if "wrong shift" in faults:
        steps.append(f"add {transform.shift:.3f} to the latent")
    return ", then ".join(steps)


def summary_lines(comparison: Comparison) -> list[str]:
    """Which VAE is truest, what each one does to photographs, and which is fastest, a line each."""
    if choice := _choice(comparison):
        lines = [f"{choice}: in colour and in detail, no difference between them is large enough to tell."]
    else:
        lines = [
            _truest("colour", comparison.truest_color, comparison),
            _truest("detail", comparison.truest_detail, comparison),
        ]
    lines.append(_broken(comparison))
    lines += bundle_lines(comparison)
    lines += [_fastest(part, comparison.speeds) for part in ("encode", "decode")]
    return [line for line in lines if line]


def bundle_lines(comparison: Comparison) -> list[str]:
    """What each VAE does to photographs, a line each, and how those of RGBA images were compared."""
    rows = comparison.reconstructions
    lines = [bundle_line(s, [row for row in rows if row.bundle == s.bundle]) for s in comparison.summaries]
    return [*lines, *flattened_line(comparison.flattened)]


def flattened_line(bundles: Sequence[str]) -> list[str]:
    """How ``bundles``, the RGBA ones compared with others, were compared; no line where there is none."""
    if not bundles:
        return []
    return [
        f"RGBA images were compared with RGB images: {_names(bundles)} encoded the photographs as "
        "opaque ones, and what was decoded is seen in front of white."
    ]


def perceptual_lines(rows: Sequence[Reconstruction]) -> list[str]:
    """What LPIPS and DISTS of one VAE's reconstructions are; no line where neither was measured."""
    means = [f"{n} {m:z.3f}" for n, m in zip(("LPIPS", "DISTS"), mean_perceptual(rows), strict=True) if m is not None]
    over = f", on average over {counted(len(rows), 'picture')}" if len(rows) > 1 else ""
    return [f"{' and '.join(means)}{over}: 0 is equal, and lower is closer."] if means else []


def failure_lines(failures: Sequence[str], shown: int) -> tuple[str, ...]:
    """Which pictures are not shown, and why; no line where all are. failures: a sentence for each that is not."""
    if not failures:
        return ()
    count = f"{len(failures)} of {counted(shown + len(failures), 'picture')}"
    told = f"{count} {'is' if len(failures) == 1 else 'are'} not shown: {failures[0]}"
    return (f"{told}; and {counted(len(failures) - 1, 'other')}." if failures[1:] else f"{told}.",)


def cut_lines(cuts: Sequence[Cut], total: int) -> tuple[str, ...]:
    """Which part of the pictures is looked at; no line where none was cut. total: how many pictures there are."""
    return (cuts_line(cuts, total),) if cuts else ()


def swap_lines(comparison: Comparison) -> list[str]:
    """How well each swap works, a line each."""
    return [f"{swap.encoder} into {swap.decoder}: {swap.verdict}. {swap.words}" for swap in comparison.swaps]


def verdict_line(comparison: Comparison) -> str:
    """The comparison in one sentence."""
    colors, details = comparison.truest_color, comparison.truest_detail
    total = len(comparison.bundles)
    if not colors:
        truest = "No VAE shows the photographs, so none is truest"
    elif len(colors) == len(details) == total:
        equal = "no VAE is truer than another in colour or in detail"
        choice = _choice(comparison)
        truest = f"{choice}: {equal}" if choice else f"N{equal[1:]}"
    elif colors == details:
        truest = f"{_names(colors)} {_are(colors)} truest, in colour and in detail"
    else:
        no = {"colour": "No", "detail": "no"}  # the first begins the sentence
        truest = ", and ".join(
            f"{no[what]} VAE is truer in {what}"
            if len(best) == total
            else f"{_names(best)} {_are(best)} truest in {what}"
            for what, best in (("colour", colors), ("detail", details))
        )
    return f"{truest}; {_swaps(comparison)}."


def _choice(comparison: Comparison) -> str:
    """What to do where no VAE is better: none is truer, and all have the same faults. Empty where one may be better."""
    total = len(comparison.bundles)
    faults = {name: set[str]() for name in comparison.bundles}
    for row in comparison.reconstructions:
        faults[row.bundle] |= {finding.name for finding in row.findings}
    seen = list(faults.values())
    if not len(comparison.truest_color) == len(comparison.truest_detail) == total or seen.count(seen[0]) < total:
        return ""
    if all(swap.verdict == "compatible" for swap in comparison.swaps):
        return "Use either" if total == 2 else "Use any of them"
    return "Keep the one that your diffusion model was trained with"


def _swaps(comparison: Comparison) -> str:
    worst = {swap.verdict for swap in comparison.swaps}
    if "not compatible" in worst:
        return "not all can take each other's latents"
    if "cannot be judged" in worst:
        return "whether all can take each other's latents cannot be judged"
    if "compatible with a shift" in worst:
        return "all can take each other's latents, but not without a shift"
    return "all can take each other's latents"


def _truest(what: str, best: tuple[str, ...], comparison: Comparison) -> str:
    if not best:
        return ""
    if len(best) == len(comparison.bundles):
        return f"In {what}, no difference between them is large enough to tell."
    return f"Truest in {what}: {_names(best)}."


def _broken(comparison: Comparison) -> str:
    """Which VAEs are not called truest, and why; empty where none is broken."""
    broken = comparison.broken
    if len(broken) == len(comparison.bundles):
        return "No VAE shows the photographs, so none is truest. Their weights may be random or damaged."
    if not broken:
        return ""
    shows = "does not show the photographs and is" if len(broken) == 1 else "do not show the photographs and are"
    its = _its(broken)
    return f"{_names(broken)} {shows} not called truest. {its.capitalize()} weights may be random or damaged."


def bundle_line(summary: Summary, rows: Sequence[Reconstruction]) -> str:
    """What a VAE does to pictures. rows: the reconstructions that ``summary`` sums up."""
    over = f"Over {counted(len(rows), 'picture')}, " if len(rows) > 1 else ""
    faults = faults_line(rows)
    return (
        f"{over}{summary.bundle} keeps {summary.detail:.0%} of the fine detail; colours are "
        f"{summary.color:.1f} CIEDE2000 off, with {summary.chroma:.0%} of their strength; "
        f"contrast is {summary.contrast:.0%}. "
        + ("" if summary.opacity is None else f"Opacity is {summary.opacity:.1f} levels of 255 off. ")
        + (f"Visible: {faults}." if faults else "No fault is visible.")
    )


def faults_line(rows: Sequence[Reconstruction]) -> str:
    """The faults that are seen in ``rows`` and in how many, the most frequent first; empty where there are none."""
    seen = Counter(finding.name for row in rows for finding in row.findings)
    return ", ".join(f"{fault} ({count} of {len(rows)})" for fault, count in seen.most_common())


def _fastest(part: str, speeds: Sequence[Speed]) -> str:
    timed = sorted((s for s in speeds if s.part == part and s.ms is not None), key=lambda s: s.ms or 0)
    return f"To {part} {timed_words(timed)}: {', '.join(map(_time, timed))}." if timed else ""


def _time(speed: Speed) -> str:
    spread = f" ({speed.least_ms:.0f} to {speed.most_ms:.0f})" if speed.rounds > 1 else ""
    return f"{speed.bundle} {speed.ms:.0f} ms{spread}"


def timed_words(speeds: Sequence[Speed]) -> str:
    """What was timed, and over how many rounds."""
    rounds = max(speed.rounds for speed in speeds)
    over = f", the median of {rounds} rounds" if rounds > 1 else ", in one round" if rounds else ""
    return f"one picture of {speeds[0].height}x{speeds[0].width} pixels{over}"


def _difference(quality: Quality) -> tuple[float, float, float, float]:
    return (
        quality.color.ciede2000_mean,
        quality.color.chroma_ratio,
        quality.contrast.global_ratio,
        quality.detail.fine,
    )


def _fit(swap: Swap) -> str:
    if swap.encoder == swap.decoder:
        them, figures = "its own latents", f"{_db(swap.psnr)} to the shrunk photographs"
    else:
        them = f"latents of {swap.encoder}"
        own = f"{swap.encoder}'s own decoder has {_db(swap.own_psnr)}"
        figures = f"{_db(swap.psnr)} to the shrunk photographs, where {own}"
    match swap.cause:
        case None:
            how = "better than" if is_better(swap.psnr, swap.own_psnr) else "as well as"
            return f"{swap.decoder} decodes {them} {how} their own decoder: {figures}."
        case "another latent space":
            return (
                f"{swap.decoder} does not understand {them} ({figures}), and no scale, shift, signs, order of channels "
                "or change of colours corrects that: it is another latent space."
            )
        case "colour and contrast":
            return f"{swap.decoder} understands {them}, but gives other colours or another contrast: {figures}."
        case "detail":
            return f"{swap.decoder} understands {them}, but its detail is less true: {figures}."
        case cause:
            how = {
                "wrong scale": "at the wrong scale",
                "wrong shift": "with the wrong shift",
                "sign flip": "with flipped signs",
                "permuted channels": "with their channels in another order",
            }[cause]
            return f"{swap.decoder} takes {them} {how}: {figures}."


def _names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _its(names: Sequence[str]) -> str:
    return "its" if len(names) == 1 else "their"


def _db(value: float | None) -> str:
    return "no difference" if value is None else f"{value:.1f} dB"
