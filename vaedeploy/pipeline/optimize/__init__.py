"""Any ONNX file -> a faster or smaller one, and how far its outputs differ: what ``vaedeploy optimize`` does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import onnx_ir as ir

from vaedeploy.errors import BackendError, InputError
from vaedeploy.graph.edit import LOWER
from vaedeploy.graph.graph import Graph
from vaedeploy.graph.operations import count_operations
from vaedeploy.pipeline.optimize import files
from vaedeploy.pipeline.optimize.inputs import Feed, choose_sizes, fix_unnamed, random_feed, read_feed
from vaedeploy.pipeline.optimize.proof import OutputDifference, drawing_node, run_both
from vaedeploy.pipeline.optimize.source import Source, read_source
from vaedeploy.rewrite import Outcome, Refusal, Rewritten, Underflow, names_in, rewrite_graph
from vaedeploy.rewrite.cuda.operators import DOMAIN
from vaedeploy.system.arguments import as_list
from vaedeploy.system.progress import Progress, silent
from vaedeploy.values.kinds import Precision, Target
from vaedeploy.verify.limits import bound_of

__all__ = ["Figures", "Optimized", "OutputDifference", "optimize_onnx"]

REWRITING = "Rewriting"

COMPARING = "Comparing"

NOT_MEASURED = "not measured: give --inputs, so that activations which fp16 cannot hold are scaled"


ONLY_ON_CUDA = "no CPU runs its fused operators: compare both graphs with ONNX Runtime's CUDA provider, on a GPU"


@dataclass(frozen=True)
class Figures:
    """How much a graph computes at ``Optimized.sizes``, by ``count_operations``.

    operations: all floating-point operations. convolutions: those of convolutions. weight_bytes: the bytes of all
    weights. uncounted: the names of nodes whose operations are not known, and so not counted.
    """

    operations: int
    convolutions: int
    weight_bytes: int
    uncounted: tuple[str, ...]


@dataclass(frozen=True)
class Optimized:
    """The result of ``optimize_onnx``.

    source, out: the two files. target: what the new graph is for. precision: that of the new graph. outcomes: what each
    rule did, in order. underflows: weights in which numbers became zero or lost digits. sizes: those of the inputs'
    symbolic dimensions for which the figures ``before`` and ``after`` hold.
    compared_on: the inputs that both graphs ran on, in words. differences: how far each output is off; empty where the
    graphs could not be compared, for which ``not_compared`` says why.
    warnings: sentences about outputs that differ by more than they should.
    """

    source: str
    out: str
    target: Target
    precision: Precision
    outcomes: tuple[Outcome, ...]
    underflows: tuple[Underflow, ...]
    sizes: Mapping[str, int]
    before: Figures
    after: Figures
    compared_on: str
    differences: tuple[OutputDifference, ...]
    not_compared: str | None
    warnings: tuple[str, ...]


def optimize_onnx(
    source: str | Path,
    out: str | Path,
    *,
    target: Target = "onnxruntime",
    precision: Precision | None = None,
    keep_fp32: Sequence[str] = (),
    inputs: Sequence[str | Path] = (),
    sizes: Mapping[str, int] | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Optimized:
    """Apply the exact rewrites to any ONNX file, and compare the result with the original.

    >>> optimized = vd.optimize_onnx("decoder.onnx", "fast.onnx", precision="fp16", inputs=["latent.safetensors"])
    >>> [(d.output, d.relative_l2) for d in optimized.differences]

    source: the ONNX file, which is not changed. out: the file to write; its weights go to ``out`` + ``.data``.
    target: what will run the graph: "onnxruntime", "tensorrt", "openvino" (fp32 only) or "onnxruntime-cuda" (only from
        fp32 to fp16): ONNX Runtime's CUDA provider with its fused operators. No CPU runs that graph, so it is not
        compared.
    precision: "fp32", "fp16" or "bf16"; by default, that of the graph. Only a float32 graph can be lowered.
    keep_fp32: names of nodes that stay in float32 where the graph is lowered.
    inputs: safetensors files, each with a tensor for every input of the graph, by its name. Activations are measured on
        them (for fp16), and both graphs are compared on them. Without any, the graphs are compared on small random
        inputs from a fixed seed.
    sizes: those of the inputs' symbolic dimensions, by name, at which operations are counted.
    force: replace a file that is at ``out``.
    progress: reports which step is done, see ``Progress``.

    The graph's inputs and outputs keep their names, shapes and types.

    Raises InputError for arguments, a graph or inputs that cannot be used, OutputError for an ``out`` that cannot be
    written to, and BackendError where activations cannot be measured. Nothing is left behind then.
    """
    _check_choice("target", target, get_args(Target))
    original = read_source(Path(source))
    current = _precision_of(original)
    wanted = _check_precision(original.path, current, precision or current, target)
    out = Path(out)
    files.check_place(out, original, force)
    chosen = choose_sizes(original.model, sizes or {})
    lowered: Precision = "fp32" if wanted == current else wanted  # "fp32": only the rules, in the graph's own type
    kept = _check_kept(original, as_list("keep_fp32", keep_fp32), lowered)
    feeds = [read_feed(Path(path), original.model) for path in as_list("inputs", inputs)]
    with files.writing(out) as draft:
        maxima = _measure(original.model, feeds, progress) if lowered == "fp16" and feeds else None
        progress(REWRITING, 0, 1)
        # The rules do not look at the part, and this graph need not be half of a VAE.
        rewritten = rewrite_graph(Graph(original.model, "decoder"), target, lowered, maxima=maxima, keep_fp32=kept)
        files.write_draft(rewritten.graph.model, draft, original)
        progress(REWRITING, 1, 1)
        before, after = _count(original.model, rewritten, chosen)
        compared_on, differences, why_not = _compare(original, draft, rewritten.graph.model, feeds, progress)
        files.publish(draft, out)
    return Optimized(
        str(source),
        str(out),
        target,
        wanted,
        (*_notes(current, precision, lowered, maxima is not None), *rewritten.outcomes),
        rewritten.underflows,
        chosen,
        before,
        after,
        compared_on,
        differences,
        why_not,
        tuple(_warnings(differences, wanted)),
    )


def _check_choice(name: str, choice: str, valid: Sequence[str]) -> None:
    if choice not in valid:
        raise InputError(f"{name} is {choice!r}; it must be one of {', '.join(valid)}")


def _precision_of(source: Source) -> Precision:
    """A graph's precision: half where any tensor has it, since lowering leaves some tensors in float32."""
    graph = source.model.graph
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    types = {value.dtype for value in values}
    if ir.DataType.DOUBLE in types:
        raise InputError(f"{source.path} computes in float64; export it in float32, from which other types are made")
    return next((precision for precision, dtype in LOWER.items() if dtype in types), "fp32")


def _check_precision(path: Path, current: Precision, wanted: Precision, target: Target) -> Precision:
    _check_choice("precision", wanted, get_args(Precision))
    if current not in ("fp32", wanted):
        raise InputError(
            f"{path} is {current} and cannot become {wanted}: what was rounded away does not come back. "
            f"Give the fp32 graph that it was made from, or leave out --precision"
        )
    if target == "onnxruntime-cuda" and (current, wanted) != ("fp32", "fp16"):
        given = f"and {path} is {current} already" if current != "fp32" else "give --precision fp16"
        raise InputError(f"--target onnxruntime-cuda makes an fp16 graph of an fp32 one: {given}")
    if target == "openvino" and wanted != "fp32":
        raise InputError("--target openvino is for fp32 graphs: OpenVINO lowers them itself, to what it is asked for")
    if wanted == "bf16" and target == "onnxruntime":
        raise InputError("ONNX Runtime has no bfloat16 convolution: bf16 is for --target tensorrt")
    return wanted


def _check_kept(source: Source, names: Sequence[str], lowered: Precision) -> Sequence[str]:
    if names and lowered == "fp32":
        raise InputError("keep_fp32 is for half precision, and this graph is not lowered; leave it out")
    if missing := sorted(set(names) - names_in(source.model, names)):
        raise InputError(f"keep_fp32 names {missing[0]!r}, and {source.path} has no node of that name")
    return names


def _measure(model: ir.Model, feeds: Sequence[Feed], progress: Progress) -> dict[str, float]:
    from vaedeploy.numerics.maxima import measure_maxima

    return measure_maxima(model, feeds, progress=progress)


def _notes(current: Precision, asked: Precision | None, lowered: Precision, measured: bool) -> list[Outcome]:
    """Outcomes that say why a rule did not run where a reader might expect it to."""
    if lowered == "fp16" and not measured:
        return [Outcome("rescale", 0, (Refusal("", NOT_MEASURED),))]
    if asked == current != "fp32":
        return [Outcome(f"lower_precision({current})", 0, (Refusal("", f"the graph is {current} already"),))]
    return []


def _count(model: ir.Model, rewritten: Rewritten, sizes: Mapping[str, int]) -> tuple[Figures, Figures]:
    before, after = _figures(model, sizes), _figures(rewritten.graph.model, sizes)
    if any(outcome.rule == "chunk_attention" and outcome.matches for outcome in rewritten.outcomes):
        # Attention now runs in loops, which are not counted. No rule changes its products, so their count is as before.
        products = before.operations - before.convolutions
        after = dataclasses.replace(
            after,
            operations=after.convolutions + products,
            uncounted=tuple(name for name in after.uncounted if name in before.uncounted),
        )
    return before, after


def _figures(model: ir.Model, sizes: Mapping[str, int]) -> Figures:
    counted = count_operations(*fix_unnamed(model, sizes))
    return Figures(counted.total, counted.convolutions, counted.weight_bytes, counted.uncounted)


def _compare(
    source: Source, draft: Path, new: ir.Model, feeds: Sequence[Feed], progress: Progress
) -> tuple[str, tuple[OutputDifference, ...], str | None]:
    """What both graphs ran on, in words, how their outputs differ, and, where they could not be compared, why."""
    node = drawing_node(source.model)
    if node is not None:
        return "", (), f"the graph draws random numbers ({node.op_type}), so that no two runs give the same"
    if any(domain == DOMAIN for domain, _ in _operators(new) - _operators(source.model)):
        return "", (), ONLY_ON_CUDA
    progress(COMPARING, 0, 1)
    try:
        if feeds:
            return f"{len(feeds)} x --inputs", run_both(source.path, draft, feeds), None
        small = choose_sizes(source.model, {}, "small")
        on = ", ".join(["seeded random inputs", *(f"{name}={size}" for name, size in small.items())])
        return on, run_both(source.path, draft, [random_feed(source.model, small)]), None
    except (BackendError, InputError) as error:
        return "", (), str(error) if feeds else f"{error}. Give --inputs to compare on those"
    finally:
        progress(COMPARING, 1, 1)


def _operators(model: ir.Model) -> set[tuple[str, str]]:
    return {(node.domain, node.op_type) for node in model.graph}


def _warnings(differences: Sequence[OutputDifference], precision: Precision) -> list[str]:
    """A sentence for each output that has new NaN or infinity, or differs by more than ``precision`` explains."""
    bound = bound_of(precision, "rel_l2")
    warnings = []
    for difference in differences:
        if difference.not_finite > difference.before:
            warnings.append(f"{difference.output} has {difference.not_finite} numbers that are NaN or infinite")
        elif difference.type.startswith("float") and difference.relative_l2 > bound:
            warnings.append(
                f"{difference.output} differs by {difference.relative_l2:.1e} (relative L2), more than the "
                f"{bound:.0e} that {precision} accounts for"
            )
    return warnings
