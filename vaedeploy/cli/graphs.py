"""Commands for ONNX graphs that belong to no bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from vaedeploy.cli import terminal
from vaedeploy.cli.group import cli
from vaedeploy.cli.options import json_option, out_option
from vaedeploy.cli.parameters import PATH, PRECISION, OneOf
from vaedeploy.cli.progress import progress_display
from vaedeploy.cli.table import show_table


@cli.command()
@click.argument("graph", type=PATH, metavar="IN.onnx")
@out_option("OUT.onnx", "The graph to write; its weights go to OUT.onnx.data.", required=True)
@click.option(
    "--target",
    type=OneOf(["onnxruntime", "onnxruntime-cuda", "openvino", "tensorrt"]),
    default="onnxruntime",
    show_default=True,
    help="Rewrite the graph for this runtime. onnxruntime-cuda has operators that only ONNX Runtime's CUDA provider "
    "runs, and needs --precision fp16.",
)
@click.option(
    "--precision",
    type=PRECISION,
    help="The precision that the graph computes in; inputs and outputs keep their types. [default: that of IN.onnx]",
)
@click.option(
    "--keep-fp32",
    multiple=True,
    metavar="NODE",
    help="With fp16 or bf16: leave this node of the graph in float32, by its name. Repeatable.",
)
@click.option(
    "--inputs",
    type=PATH,
    multiple=True,
    metavar="FILE",
    help="A .safetensors file with a tensor for each graph input, by name. Both graphs are compared on it; for fp16, "
    "activations are measured on it, so that what would overflow is scaled. Repeatable. [default: compare on small "
    "random inputs, and scale nothing]",
)
@click.option(
    "--sizes",
    multiple=True,
    metavar="NAME=N",
    help="Count operations with this size of the dimension NAME. Repeatable. [default: batch 1, 512 for the sides of "
    "images, 64 for those of latents]",
)
@click.option("--force", is_flag=True, help="Replace OUT.onnx if it exists.")
@json_option
def optimize(graph: Path, sizes: Sequence[str], as_json: bool, **options: Any) -> None:
    """Rewrite any ONNX graph of a VAE to run faster.

    IN.onnx may come from any exporter. The result computes the same, or the same in half precision. The command runs
    both graphs and prints how far each output moved, the places that each rule changed, those that it left alone and
    why, and the operations and bytes before and after.

    \b
    Example:
      vaedeploy optimize a.onnx -o b.onnx
      vaedeploy optimize a.onnx -o b.onnx --precision fp16 --inputs z.safetensors
      vaedeploy optimize a.onnx -o b.onnx --precision bf16 --target tensorrt
      vaedeploy optimize demo/decoder.onnx -o b.onnx --sizes latent_height=128
    """
    from vaedeploy.cli.tables.optimize import closing_lines, tables
    from vaedeploy.pipeline.optimize import optimize_onnx
    from vaedeploy.pipeline.optimize.inputs import parse_sizes

    with progress_display() as progress:
        optimized = optimize_onnx(graph, sizes=parse_sizes(sizes), progress=progress, **options)
    if as_json:
        terminal.show_json(optimized)
    else:
        for table in tables(optimized):
            show_table(*table)
            terminal.show("")
        terminal.show_text("\n".join(closing_lines(optimized)))
    for warning in optimized.warnings:
        terminal.say(f"Warning: {warning}")
