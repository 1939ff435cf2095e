"""The graphs of a bundle: the portable form of each half, and the forms made from it that backends run."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from vaedeploy.bundle.graphs import EXTRA_FORMS, FORMS, file_name
from vaedeploy.bundle.rows import rows_name
from vaedeploy.errors import ExportError, InputError
from vaedeploy.images.photos import Photo, crop_batch
from vaedeploy.images.pixels import to_float
from vaedeploy.pipeline.rows import write_rows
from vaedeploy.runtime import onnxruntime_cpu
from vaedeploy.system.progress import Progress, silent
from vaedeploy.values.kinds import PARTS, ImageInput, Part, Precision, Target
from vaedeploy.values.latent import LatentSpec
from vaedeploy.values.trials import trial_latents

if TYPE_CHECKING:
    from vaedeploy.bundle.calibration import Calibration
    from vaedeploy.rewrite import Rewritten
    from vaedeploy.values.reference import Reference


CALIBRATION = (("small", 12, 12), ("wide", 16, 24), ("large", 24, 24))
"""The images on which activations are measured: name, then height and width in latents, as for ``trial_latents``."""

TRACING = "Exporting to ONNX"

REWRITING = "Rewriting the graphs"

log = logging.getLogger(__name__)


def write_portable(reference: Reference, folder: Path, image_input: ImageInput, progress: Progress) -> dict[Part, str]:
    """Trace both halves and write each to ``PART.onnx``, with its weights beside it.

    Returns the sha256 of each half's graph, as ``content_sha256`` computes it.
    """
    from vaedeploy.graph.graph import content_sha256, release_weights, save_graph
    from vaedeploy.graph.trace import trace_graph

    contents: dict[Part, str] = {}

    for done, part in enumerate(PARTS):
        progress(TRACING, done, len(PARTS))
        traced = trace_graph(reference, part, image_input=image_input)
        save_graph(traced, folder / file_name(part, "portable"))
        contents[part] = content_sha256(traced)
        release_weights(traced)
        _check(folder / file_name(part, "portable"))
    progress(TRACING, len(PARTS), len(PARTS))
    return contents


def calibrate(
    folder: Path, photos: list[Photo], latent: LatentSpec, image_input: ImageInput, progress: Progress
) -> Calibration:
    """Measure the largest magnitude of each tensor in both portable graphs, and write them to ``calibration.json``.

    The encoder runs on photographs, and the decoder on the latents that the encoder makes of them.
    """
    from vaedeploy.bundle.calibration import NAME, Calibration, encode_calibration
    from vaedeploy.numerics.maxima import WHAT, measure_maxima

    factor = latent.factor
    sizes = [tuple(trial_latents(latents, factor) * factor for latents in size) for _, *size in CALIBRATION]
    batches = [
        crop_batch(photos, 1, height, width, first=index, channels=latent.image_channels)
        for index, (height, width) in enumerate(sizes)
    ]
    inputs: list[NDArray[Any]] = batches if image_input == "uint8" else [to_float(batch) for batch in batches]
    encoder = onnxruntime_cpu.Session(folder / file_name("encoder", "portable"))
    latents = [encoder.run(encoder.outputs[:1], {encoder.inputs[0]: value})[0] for value in inputs]
    feeds = {
        "encoder": [{encoder.inputs[0]: value} for value in inputs],
        "decoder": [{"latent": latent} for latent in latents],
    }
    del encoder
    maxima = {}
    for part in PARTS:
        measured = measure_maxima(
            folder / file_name(part, "portable"), feeds[part], what=f"{WHAT} of the {part}", progress=progress
        )
        maxima[part] = {name: number if number < float("inf") else None for name, number in measured.items()}
    calibration = Calibration(
        maxima, tuple(f"{row[0]} {h}x{w}" for row, (h, w) in zip(CALIBRATION, sizes, strict=True))
    )
    (folder / NAME).write_bytes(encode_calibration(calibration))
    return calibration


def write_forms(
    folder: Path,
    precision: Precision,
    calibration: Calibration | None,
    rules: bool,
    keep_fp32: Collection[str] = (),
    extra: Sequence[Target] = (),
    factor: int | None = None,
    progress: Progress = silent,
) -> dict[str, dict[str, int]]:
    """Write the forms of ``precision``, and those of EXTRA_FORMS that ``extra`` names, beside the portable graphs.

    factor: the latents'; given, the rows form of each half that has one is written, too.

    Returns file -> rule -> matches.

    rules: False leaves out the exact rewrites: a half-precision form is only lowered, and a float32 form, which would
        equal the portable graph, is not written. keep_fp32: names of nodes of either half, see ``rewrite_graph``.

    Raises InputError for a name that no node has.
    """
    from vaedeploy.graph.graph import load_graph, save_form
    from vaedeploy.rewrite import names_in, rewrite_graph

    applied: dict[str, dict[str, int]] = {}
    graphs = {part: load_graph(folder / file_name(part, "portable"), part) for part in PARTS}
    known = frozenset[str]().union(*(names_in(graph.model, keep_fp32) for graph in graphs.values()))
    if missing := sorted(set(keep_fp32) - known):
        raise InputError(f"keep_fp32 names {missing[0]!r}, and no graph has a node of that name")
    for done, (part, portable) in enumerate(graphs.items()):
        progress(REWRITING, done, len(graphs))
        for form, form_precision in (*FORMS[precision].items(), *((form, EXTRA_FORMS[form]) for form in extra)):
            if not rules and form_precision == "fp32":
                continue
            maxima = calibration.of(part) if calibration else None
            rewritten = rewrite_graph(portable, form, form_precision, maxima=maxima, rules=rules, keep_fp32=keep_fp32)
            path = folder / file_name(part, form)
            save_form(rewritten.graph, path, shared=form_precision == "fp32")
            _check(path)
            _log_outcomes(path.name, rewritten)
            applied[path.name] = {outcome.rule: outcome.matches for outcome in rewritten.outcomes}
        if rules and factor is not None and (count := write_rows(folder, portable, factor)):
            applied[rows_name(part)] = {"cut_rows": count}
    progress(REWRITING, len(graphs), len(graphs))
    return applied


def _log_outcomes(name: str, rewritten: Rewritten) -> None:
    """Log what users may want to know but need not act on."""
    for outcome in rewritten.outcomes:
        for refusal in outcome.refusals:
            log.info("%s: %s left %s alone: %s", name, outcome.rule, refusal.node, refusal.reason)
    if rewritten.underflows:
        zeros, small = (sum(getattr(u, kind) for u in rewritten.underflows) for kind in ("zeros", "subnormals"))
        log.info("%s: %d weights are too small for the lower type and became zero; %d lost digits", name, zeros, small)


def _check(path: Path) -> None:
    import onnx

    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the export wrote an invalid ONNX graph, {path.name}: {error}") from error
