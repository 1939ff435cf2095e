"""The command that verifies a bundle."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vaedeploy.cli import terminal
from vaedeploy.cli.group import cli
from vaedeploy.cli.options import bundle_argument, identity_option, json_option, keep_result, photos_option, tell_page
from vaedeploy.cli.parameters import BACKEND, PATH, PRECISION, PROFILE
from vaedeploy.cli.progress import progress_display
from vaedeploy.cli.table import show_table
from vaedeploy.errors import VerificationError

if TYPE_CHECKING:
    from vaedeploy.verify.report import Report
    from vaedeploy.verify.traces import Bisection


@cli.command()
@bundle_argument
@click.option(
    "--weights",
    metavar="SRC",
    help="Compute the reference with PyTorch again, from these weights of the same VAE: a preset's name for the "
    "preset's own, or what --weights of export takes. [default: the outputs that the bundle keeps; with --photos, the "
    "weights that the bundle names]",
)
@click.option(
    "--backend",
    type=BACKEND,
    metavar="NAME",
    help="Check what this backend computes on this machine, instead of the graphs in ONNX Runtime on the CPU.",
)
@click.option(
    "--profile",
    type=PROFILE,
    metavar="NAME",
    help="With --backend: check only the engines that were built for this GPU profile.",
)
@click.option(
    "--precision",
    type=PRECISION,
    help="With --backend: check what it computes in this precision. [default: the bundle's]",
)
@click.option(
    "--device",
    metavar="NAME",
    help="With --backend openvino: check what this device computes, such as GPU.0 (OpenVINO's name for it). "
    "[default: the CPU]",
)
@photos_option("Compute the reference with PyTorch again, and verify,")
@identity_option
@click.option("--no-note", is_flag=True, help="Write no verdict into the bundle.")
@click.option("--junit", type=PATH, metavar="FILE", help="Also write the cases to this file, as JUnit's XML.")
@click.option("--bisect", is_flag=True, help="Show the first tensors that go wrong; of all graphs, if none failed.")
@click.option("--report", "page", type=PATH, metavar="DIR", help="Also write an HTML page with images, DIR/index.html.")
@json_option
def verify(
    bundle: Path,
    weights: str | None,
    backend: str | None,
    no_note: bool,
    junit: Path | None,
    bisect: bool,
    as_json: bool,
    device: str | None,
    **options: Any,
) -> None:
    """Compare a bundle with PyTorch, and mark it verified or not.

    The command runs the bundle's graphs on the CPU and compares their outputs with PyTorch's in float64. It prints a
    verdict for each half and form of graph, with the cause if it failed, the cases that failed, and the differences
    that a person would see; -v prints all cases. It writes the verdict into the bundle, unless --no-note is given. The
    exit code is 3 if a case exceeds a limit.

    A bundle keeps PyTorch's outputs of the VAE that it holds, and a swap replaces these too. To be told that a bundle
    holds another VAE than the one that you want, give --identity or --weights.

    With --backend, it runs the bundle's engines or graphs on this machine's GPU, or the graphs in OpenVINO. It compares
    them with the bundle's verified float32 graph on the CPU, or with PyTorch in float32 on the GPU if --weights is
    given. Each engine runs at the smallest, the optimum and the largest size of each of its optimisation profiles.
    OpenVINO's verdict holds for CPUs of this kind, and compares its decoding time with ONNX Runtime's.

    Graphs that failed are then compared with the portable float32 graphs tensor by tensor: the verdict names the first
    module that goes wrong, and what to do is printed. --bisect also prints the tensors, and compares all graphs if none
    failed.

    \b
    Example:
      vaedeploy verify mse840k
      vaedeploy verify mse840k --json > report.json
      vaedeploy verify mse840k --bisect
      vaedeploy verify mse840k --report report
      vaedeploy verify mse840k --no-note --identity "$IDENTITY" --junit verify.xml
      vaedeploy verify mse840k --backend tensorrt-rtx --profile rtx4090
      vaedeploy verify mse840k --backend openvino --precision bf16
    """
    from vaedeploy.bundle.stored import refuse_in_bundle
    from vaedeploy.pipeline.verify import verify_bundle
    from vaedeploy.system.atomic import check_place, write_file
    from vaedeploy.verify.junit import junit_xml

    if device is not None:
        options["device"] = device  # the default of ``verify_bundle`` is the first GPU, where a backend has one
    for name in ("profile", "precision", "device"):
        if backend is None and options.get(name) is not None:
            raise click.UsageError(f"--{name} needs --backend: it says how a backend computes.")
    if backend is not None and bisect:
        raise click.UsageError("--bisect cannot be used with --backend: it compares the graphs on the CPU.")
    if bisect:
        import vaedeploy.verify.bisect  # noqa: F401 - a package that it needs may be missing: fail before the work
    if junit is not None:
        refuse_in_bundle(junit)
        check_place(junit)
    report, problem = keep_result(
        lambda tell: verify_bundle(bundle, backend=backend, weights=weights, note=not no_note, progress=tell, **options)
    )
    if junit is not None:
        write_file(junit, junit_xml(report, bundle.resolve().name))
    try:
        if bisect and report.bisection is None:  # else it was done because the graphs failed
            report = _bisected(bundle, report)
    finally:  # the report is shown even where the bisection fails
        if as_json:
            terminal.show_json(report.to_document())
        else:
            _show_report(report, steps=bisect)
    code = tell_page(options["page"], problem)
    if not report.passed:
        if backend is None and report.bisection is None:
            terminal.note(f"To find where the graphs go wrong, run: vaedeploy verify {bundle} --bisect")
        code = VerificationError.exit_code
    sys.exit(code)


def _bisected(bundle: Path, report: Report) -> Report:
    """The report with where the bundle's graphs go wrong."""
    import msgspec

    from vaedeploy.verify.bisect import bisect_bundle

    with progress_display() as progress:
        return msgspec.structs.replace(report, bisection=bisect_bundle(bundle, report, progress=progress))


def _show_report(report: Report, *, steps: bool) -> None:
    """Show a verdict for each part and form, the cases that failed, or all of them after -v, what a bisection found,
    with its tensors if ``steps``, and at last whether the bundle passed.
    """
    from vaedeploy.cli.tables.verify import case_table, closing_lines, verdict_rows
    from vaedeploy.verify.verdicts import find_verdicts

    verdicts = find_verdicts(report)
    show_table((), verdict_rows(verdicts))
    for verdict in verdicts:
        cases = [case for case in verdict.cases if terminal.is_verbose() or not case.passed]
        if cases:
            terminal.show_text(f"\n{verdict.name}")
            heads, rows = case_table(cases)
            show_table(heads, rows, numbers=heads[2:-1])
    if report.bisection is not None:
        _show_bisection(report.bisection, steps)
    terminal.show_text("\n".join(("", *closing_lines(report))))


def _show_bisection(bisection: Bisection, steps: bool) -> None:
    """Show what to do, after the tensors that go wrong if ``steps``."""
    from vaedeploy.verify.steps import STEP_COLUMNS, step_rows

    terminal.show("")
    if steps and (rows := step_rows(bisection)):
        show_table(STEP_COLUMNS, rows, numbers=STEP_COLUMNS[6:])
    terminal.show_text("\n".join(bisection.advice))
