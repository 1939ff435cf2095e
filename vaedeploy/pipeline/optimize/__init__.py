"""Any ONNX file -> a faster or smaller one, and how far its outputs moved: what ``vaedeploy optimize`` does."""

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
from vaedeploy.rewrite import Outcome, Refusal, Rewritten, Underflow, rewrite_graph
from vaedeploy.system.arguments import as_list
from vaedeploy.system.progress import Progress, silent
from vaedeploy.values.kinds import Precision, Target
from vaedeploy.verify.limits import bound_of

__all__ = ["Figures", "Optimized", "OutputDifference", "optimize_onnx"]

REWRITING = "Rewriting"

COMPARING = "Comparing"

NOT_MEASURED = "not measured: give --inputs, so that activations which fp16 cannot hold are scaled"


@dataclass(frozen=True)
class Figures:
    """What a graph takes at ``Optimized.sizes``, as ``count_operations`` counts.

    operations, convolutions: floating-point operations of all, and of convolutions. weight_bytes: of all weights.
    uncounted: names of nodes whose operations are not known and not among these.
    """

    operations: int
    convolutions: int
    weight_bytes: int
    uncounted: tuple[str, ...]


@dataclass(frozen=True)
class Optimized:
    """What was done, and what came of it.

    precision: of the graph now. outcomes: what each rule did, in order. underflows: weights that lost numbers.
    sizes: of the inputs' symbolic dimensions, for ``before`` and ``after``.
    differences: of the outputs, none where ``not_compared`` says why. compared_on: the inputs, in words.
    warnings: what needs a look.
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
    inputs: Sequence[str | Path] = (),
    sizes: Mapping[str, int] | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Optimized:
    """Apply the exact rewrites to the graph in the file ``source`` and write it to ``out`` and ``out`` + ``.data``.

    target: what will run it. precision: the graph's own unless given; only a float32 graph can be lowered.
    inputs: safetensors files, each a set of tensors by the name of the graph input, to measure activations on (fp16)
    and to compare both graphs on; a small seeded random set is compared on without. sizes: of symbolic dimensions, to
    count operations at. force: replace what is at ``out``. progress: is told which step is done, see ``Progress``.

    Inputs and outputs keep their names, shapes and types; ``source`` is not changed. Where anything is raised, nothing
    is left behind: InputError for what was given and cannot be used, OutputError for a place that cannot be written to,
    BackendError where activations cannot be measured.
    """
    _check_choice("target", target, get_args(Target))
    given = files.read_source(Path(source))
    own = _own_precision(given)
    wanted = _check_precision(given.path, own, precision or own, target)
    out = Path(out)
    files.check_place(out, given, force)
    chosen = choose_sizes(given.model, sizes or {})
    feeds = [read_feed(Path(path), given.model) for path in as_list("inputs", inputs)]
    with files.writing(out) as draft:
        lowered: Precision = "fp32" if wanted == own else wanted  # the rules alone, in the type that the graph has
        maxima = _measure(given.model, feeds, progress) if lowered == "fp16" and feeds else None
        progress(REWRITING, 0, 1)
        # The part is of no account to the rules, and a graph of others need not be one.
        rewritten = rewrite_graph(Graph(given.model, "decoder"), target, lowered, maxima=maxima)
        files.write_draft(rewritten.graph.model, draft, given)
        progress(REWRITING, 1, 1)
        before, after = _count(given.model, rewritten, chosen)
        compared_on, differences, why_not = _compare(given, draft, feeds, progress)
        files.publish(draft, out)
    return Optimized(
        str(source),
        str(out),
        target,
        wanted,
        (*_notes(own, precision, lowered, maxima is not None), *rewritten.outcomes),
        rewritten.underflows,
        chosen,
        before,
        after,
        compared_on,
        differences,
        why_not,
        tuple(_warnings(differences, wanted)),
    )


def _check_choice(name: str, given: str, valid: Sequence[str]) -> None:
    if given not in valid:
        raise InputError(f"{name} is {given!r}; it must be one of {', '.join(valid)}")


def _own_precision(source: files.Source) -> Precision:
    """Half precision where any tensor is: a graph that was lowered has float32 in some places too."""
    graph = source.model.graph
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    types = {value.dtype for value in values}
    if ir.DataType.DOUBLE in types:
        raise InputError(f"{source.path} computes in float64; export it in float32, from which other types are made")
    return next((precision for precision, dtype in LOWER.items() if dtype in types), "fp32")


def _check_precision(path: Path, own: Precision, wanted: Precision, target: Target) -> Precision:
    _check_choice("precision", wanted, get_args(Precision))
    if own not in ("fp32", wanted):
        raise InputError(
            f"{path} is {own} and cannot become {wanted}: what was rounded away does not come back. "
            f"Give the fp32 graph that it was made from, or leave out --precision"
        )
    if wanted == "bf16" and target == "onnxruntime":
        raise InputError("ONNX Runtime has no bfloat16 convolution: bf16 is for --target tensorrt")
    return wanted


def _measure(model: ir.Model, feeds: Sequence[Feed], progress: Progress) -> dict[str, float]:
    from vaedeploy.numerics.maxima import measure_maxima

    return measure_maxima(model, feeds, progress=progress)


def _notes(own: Precision, asked: Precision | None, lowered: Precision, measured: bool) -> list[Outcome]:
    """Rows for rules that were not run, where one might look for them."""
    if lowered == "fp16" and not measured:
        return [Outcome("rescale", 0, (Refusal("", NOT_MEASURED),))]
    if asked == own != "fp32":
        return [Outcome(f"lower_precision({own})", 0, (Refusal("", f"the graph is {own} already"),))]
    return []


def _count(model: ir.Model, rewritten: Rewritten, sizes: Mapping[str, int]) -> tuple[Figures, Figures]:
    before, after = _figures(model, sizes), _figures(rewritten.graph.model, sizes)
    if any(outcome.rule == "chunk_attention" and outcome.matches for outcome in rewritten.outcomes):
        # Attention is in loops now, which are not counted. No rule changes a product, so all are as they were.
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
    source: files.Source, draft: Path, feeds: Sequence[Feed], progress: Progress
) -> tuple[str, tuple[OutputDifference, ...], str | None]:
    """What both graphs were run on, the differences, and why there are none."""
    node = drawing_node(source.model)
    if node is not None:
        return "", (), f"the graph draws random numbers ({node.op_type}), so that no two runs give the same"
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


def _warnings(differences: Sequence[OutputDifference], precision: Precision) -> list[str]:
    bound = bound_of(precision, "rel_l2")
    found = []
    for difference in differences:
        if difference.not_finite > difference.before:
            found.append(f"{difference.output} has {difference.not_finite} numbers that are NaN or infinite")
        elif difference.type.startswith("float") and difference.relative_l2 > bound:
            found.append(
                f"{difference.output} differs by {difference.relative_l2:.1e} (relative L2), more than the "
                f"{bound:.0e} that {precision} accounts for"
            )
    return found
