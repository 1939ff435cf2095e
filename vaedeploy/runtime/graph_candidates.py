"""The ways to compute a bundle with its graphs."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Mapping
from functools import partial

from vaedeploy.bundle import Bundle
from vaedeploy.errors import BackendError
from vaedeploy.runtime import cuda_graphs, onnxruntime_cpu, onnxruntime_cuda, openvino
from vaedeploy.runtime.candidate import Candidate, Settings
from vaedeploy.runtime.rows.half import RowsHalf
from vaedeploy.runtime.rows.on_gpu import GpuRunner
from vaedeploy.runtime.rows.session import BoundedRunner, Whole
from vaedeploy.runtime.runner import Runner
from vaedeploy.runtime.unverified import doubt
from vaedeploy.runtime.verdicts import read_verdict, report_name
from vaedeploy.system.progress import silent
from vaedeploy.values.kinds import Form, Part, Precision

log = logging.getLogger(__name__)


def precision_of(bundle: Bundle) -> Precision:
    """The precision of a bundle's graphs in the form for ONNX Runtime, which is never bfloat16."""
    return "fp16" if bundle.manifest.precision == "fp16" else "fp32"


def float32_form(bundle: Bundle) -> Form:
    """The form of a bundle's graphs for ONNX Runtime in float32: the one made for it, if that is float32, else the
    portable one.
    """
    return "onnxruntime" if precision_of(bundle) == "fp32" else "portable"


def cpu_candidates(bundle: Bundle, asked: Settings) -> list[Candidate]:
    """Candidates of ONNX Runtime on the CPU. Raises BackendError if it cannot be used."""
    if problem := onnxruntime_cpu.problem():
        raise BackendError(problem)

    def open_half(form: Form, part: Part) -> Runner:
        read = partial(bundle.read_graph, part, form, asked.verify_hashes)
        graph = bundle.graph(part, form)
        return _within_budget(
            bundle, part, asked, onnxruntime_cpu.Session(graph, asked.threads, read=read, keep_memory=asked.keep_memory)
        )

    precision = precision_of(bundle)
    forms: dict[Precision, Form] = {precision: "onnxruntime", "fp32": float32_form(bundle)}
    return [Candidate(onnxruntime_cpu.NAME, kind, partial(open_half, form)) for kind, form in forms.items()]


def openvino_candidates(bundle: Bundle, asked: Settings) -> list[Candidate]:
    """Candidates of OpenVINO. Raises BackendError if it cannot be used."""
    device = asked.openvino_device
    if problem := openvino.problem(device):
        raise BackendError(problem)
    precision, on_cpu = asked.precision or _openvino_precision(bundle, device), device == openvino.CPU
    if precision not in openvino.TYPES:
        raise BackendError(f"OpenVINO computes in {' and '.join(openvino.TYPES)} here, and not in {precision}")
    if precision == "bf16" and not openvino.takes_bfloat16(device):
        raise BackendError(
            f"OpenVINO does not compute in bfloat16 on {openvino.processor(device)}, and would compute in float32 in "
            "its place. Ask for fp32, or for no precision"
        )
    if precision == "bf16" and on_cpu and not openvino.has_bfloat16():
        log.warning("this CPU has no instructions for bfloat16, so openvino is slower in bf16 than in fp32 here")

    def open_half(kind: Precision, part: Part) -> Runner:
        graph, read = bundle.graph(part, "openvino"), partial(bundle.read_graph, part, "openvino", asked.verify_hashes)
        session = openvino.Session(graph, kind, device, asked.threads, asked.keep_memory, read)
        return _within_budget(bundle, part, asked, session) if on_cpu else session

    def warning(kind: Precision) -> str | None:
        processor = openvino.processor(device)
        verdict = read_verdict(bundle, report_name(openvino.NAME, kind, processor))
        if verdict is not None and verdict.passed:
            return None
        words = ["vaedeploy", "verify", str(bundle.path), "--backend", openvino.NAME, "--precision", kind]
        command = shlex.join([*words, *([] if on_cpu else ["--device", device])])
        return f"openvino in {kind} {doubt(verdict, processor)}. Run: {command}"

    kinds = dict.fromkeys((precision, "fp32"))
    return [Candidate(openvino.NAME, kind, partial(open_half, kind), warning=warning(kind)) for kind in kinds]


def openvino_leads(bundle: Bundle, asked: Settings) -> bool:
    """Whether a verification on a CPU of this kind found OpenVINO faster than ONNX Runtime and equal to PyTorch within
    the limits.
    """
    precision = asked.precision or _openvino_precision(bundle, openvino.CPU)
    verdict = read_verdict(bundle, report_name(openvino.NAME, precision, openvino.processor(openvino.CPU)))
    return verdict is not None and verdict.passed and verdict.pace is not None and verdict.pace < 1


def _openvino_precision(bundle: Bundle, device: str) -> Precision:
    """The precision if none is asked for: "bf16" for a bundle in bfloat16 on a CPU that gains from it, else "fp32"."""
    lower = bundle.manifest.precision == "bf16" and device == openvino.CPU and openvino.gains_from_bfloat16()
    return "bf16" if lower else "fp32"


def _within_budget(bundle: Bundle, part: Part, asked: Settings, whole: Whole) -> Runner:
    """``whole``, by rows where a call would take more memory than the budget has."""
    if (budget := asked.budget) is None:
        return whole
    half = RowsHalf(bundle, part, asked.threads, asked.verify_hashes, budget.progress, budget.workspace)
    return BoundedRunner(half, budget, whole, asked.keep_memory)


def cuda_candidates(bundle: Bundle, asked: Settings) -> list[Candidate]:
    """Candidates of ONNX Runtime on a GPU. Raises BackendError if it cannot be used."""
    device, chosen = asked.cuda_device, asked.provider_options or {}
    if problem := onnxruntime_cuda.problem(device):
        raise BackendError(problem)
    if cuda_graphs.are_asked(chosen) and onnxruntime_cuda.FUSED_FORM not in bundle.manifest.graphs["decoder"]:
        raise BackendError(
            f"CUDA graphs ({cuda_graphs.OPTION}) are for the form {onnxruntime_cuda.FUSED_FORM}, which {bundle.path} "
            f"does not have: export it with --precision fp16 --form {onnxruntime_cuda.FUSED_FORM}"
        )

    def session(precision: Precision, form: Form, more: Mapping[str, str], part: Part) -> Runner:
        graph, read = bundle.graph(part, form), partial(bundle.read_graph, part, form, asked.verify_hashes)
        plain = cuda_graphs.without(chosen)  # other forms have loops, and pieces run once: neither can be recorded
        options = {**more, **(chosen if form == onnxruntime_cuda.FUSED_FORM else plain)}
        whole = onnxruntime_cuda.Session(graph, device, asked.threads, options, precision, read)
        progress = asked.budget.progress if asked.budget else silent
        return GpuRunner(bundle, part, whole, device, asked.threads, plain, asked.verify_hashes, progress)

    precision = precision_of(bundle)
    open_half = partial(session, precision, "onnxruntime", {})
    if precision == "fp16":
        fused = partial(session, precision, onnxruntime_cuda.FUSED_FORM, onnxruntime_cuda.FUSED_OPTIONS)
        open_half = partial(_open_fused, bundle, fused, open_half)
    candidates = [Candidate(onnxruntime_cuda.NAME, precision, open_half)]
    if precision != "fp32":
        exact = partial(session, "fp32", float32_form(bundle), {})
        candidates.append(Candidate(onnxruntime_cuda.NAME, "fp32", exact))
    return candidates


def _open_fused(bundle: Bundle, fused: Callable[[Part], Runner], plain: Callable[[Part], Runner], part: Part) -> Runner:
    """Open the form with fused operators, or the one for any provider where the bundle has no such form, or this ONNX
    Runtime lacks an operator.
    """
    if onnxruntime_cuda.FUSED_FORM not in bundle.manifest.graphs[part]:
        return plain(part)
    try:
        runner = fused(part)
    except BackendError as error:
        log.warning("the %s runs without fused operators: %s", part, error)
        return plain(part)
    verdict = read_verdict(bundle, report_name(onnxruntime_cuda.NAME))
    if verdict is None or not verdict.passed:
        log.warning(
            "%s %s. Run: vaedeploy verify %s --backend %s",
            bundle.graph(part, onnxruntime_cuda.FUSED_FORM),
            doubt(verdict, "a GPU"),
            bundle.path,
            onnxruntime_cuda.NAME,
        )
    return runner
