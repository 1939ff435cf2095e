"""The graphs of a bundle: the portable form of each half, and the forms that targets run, made from it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from vaedeploy.errors import ExportError
from vaedeploy.manifest import PARTS, Form, ImageInput, Part, Precision
from vaedeploy.photos import Photo, Shape, crop_batch
from vaedeploy.progress import Progress
from vaedeploy.runtime import onnxruntime_cpu
from vaedeploy.runtime.arrays import to_float

if TYPE_CHECKING:
    from vaedeploy.calibrate import Calibration
    from vaedeploy.rewrite import Rewritten, Target
    from vaedeploy.source import Reference

SUFFIXES: Mapping[Form, str] = {"portable": ".onnx", "onnxruntime": ".ort.onnx", "tensorrt": ".trt.onnx"}

FORMS: Mapping[Precision, Mapping[Target, Precision]] = {
    "fp32": {"onnxruntime": "fp32"},
    "fp16": {"onnxruntime": "fp16"},
    "bf16": {"onnxruntime": "fp32", "tensorrt": "bf16"},
}
"""A bundle's precision -> the forms that it has beside the portable one, and theirs. ONNX Runtime has no bfloat16
convolution, so its form stays in float32.
"""

CALIBRATION = (("small", 12, 12), ("wide", 16, 24), ("large", 24, 24))
"""Pictures that activations are measured on: name, and height and width in units of the spatial factor."""

TRACING = "Exporting to ONNX"

log = logging.getLogger("vaedeploy.forms")


def write_portable(reference: Reference, folder: Path, image_input: ImageInput, progress: Progress) -> dict[Part, str]:
    """Trace both halves and write them: ``PART.onnx`` and its weights. Returns the sha256 of their contents."""
    from vaedeploy.export import trace_graph
    from vaedeploy.graph import content_sha256, release_weights, save_graph

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


def measure(folder: Path, photos: list[Photo], factor: int, image_input: ImageInput, progress: Progress) -> Calibration:
    """Write ``calibration.json``: the largest magnitudes in both portable graphs, over photographs and the latents that
    the encoder makes of them.
    """
    from vaedeploy.calibrate import NAME, WHAT, Calibration, encode_calibration, measure_maxima

    shapes = [Shape(name, 1, rows * factor, columns * factor, False) for name, rows, columns in CALIBRATION]
    batches = [crop_batch(photos, shape, first=index) for index, shape in enumerate(shapes)]
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
        found = measure_maxima(
            folder / file_name(part, "portable"), feeds[part], what=f"{WHAT} of the {part}", progress=progress
        )
        maxima[part] = {name: number if number < float("inf") else None for name, number in found.items()}
    calibration = Calibration(maxima, tuple(f"{s.name} {s.height}x{s.width}" for s in shapes))
    (folder / NAME).write_bytes(encode_calibration(calibration))
    return calibration


def write_forms(
    folder: Path, precision: Precision, calibration: Calibration | None, rules: bool
) -> dict[str, dict[str, int]]:
    """Write the forms of ``precision`` beside the portable graphs; returns file -> rule -> matches.

    rules: False for the lowering alone, and nothing where there is nothing to lower.
    """
    from vaedeploy.graph import load_graph, save_form
    from vaedeploy.rewrite import rewrite_graph

    applied: dict[str, dict[str, int]] = {}
    for part in PARTS:
        portable = load_graph(folder / file_name(part, "portable"), part)
        for form, own in FORMS[precision].items():
            if not rules and own == "fp32":
                continue
            maxima = calibration.of(part) if calibration else None
            rewritten = rewrite_graph(portable, form, own, maxima=maxima, rules=rules)
            path = folder / file_name(part, form)
            save_form(rewritten.graph, path, shared=own == "fp32")
            _check(path)
            _tell(path.name, rewritten)
            applied[path.name] = {outcome.rule: outcome.matches for outcome in rewritten.outcomes}
    return applied


def file_name(part: Part, form: Form) -> str:
    """Where a graph lies in a bundle."""
    return f"{part}{SUFFIXES[form]}"


def graph_names(folder: Path) -> dict[Part, dict[Form, str]]:
    """The manifest's table of the graphs that are in ``folder``."""
    return {
        part: {form: name for form in SUFFIXES if (folder / (name := file_name(part, form))).exists()} for part in PARTS
    }


def _tell(name: str, rewritten: Rewritten) -> None:
    """Log what a user may want to know and need not act on."""
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
        raise ExportError(f"a faulty graph was made, {path.name}: {error}") from error
