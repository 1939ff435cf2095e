"""Commands for ONNX graphs without a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from vaedeploy.cli import terminal
from vaedeploy.cli.group import PATH, cli, json_option


@cli.command()
@click.argument("graph", type=PATH, metavar="IN.onnx")
@click.option("-o", "out", required=True, type=PATH, metavar="OUT.onnx", help="The file to write; OUT.onnx.data too.")
@click.option(
    "--target",
    type=click.Choice(["onnxruntime", "tensorrt"]),
    default="onnxruntime",
    show_default=True,
    help="What will run it.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    help="Of the graph; inputs and outputs keep their types. [default: the graph's own]",
)
@click.option(
    "--inputs",
    type=PATH,
    multiple=True,
    metavar="FILE",
    help="A .safetensors file of real inputs, by name: fp16 is scaled and both graphs compared on them. Repeatable.",
)
@click.option(
    "--sizes",
    multiple=True,
    metavar="NAME=N",
    help="A dimension's size to count operations at. Repeatable. [default: batch 1, 512 for pictures, else 64]",
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@json_option
def optimize(graph: Path, sizes: Sequence[str], as_json: bool, **options: Any) -> None:
    """Rewrite any ONNX graph of a VAE to run faster.

    The result is an equal graph, or one in half precision. IN.onnx may come from any exporter. Prints each rule with
    its matches, what was left alone and why, operations and bytes before and after, and how far each output moved when
    both graphs were run.

    \b
    Example:
      vaedeploy optimize decoder.onnx -o faster.onnx
      vaedeploy optimize decoder.onnx -o fp16.onnx --target tensorrt --precision fp16 --inputs latents.safetensors
      vaedeploy optimize demo/decoder.onnx -o faster.onnx --sizes latent_height=128 --sizes latent_width=128
    """
    from vaedeploy.cli.tables.optimize import closing_lines, tables
    from vaedeploy.pipeline.optimize import optimize_onnx
    from vaedeploy.pipeline.optimize.inputs import parse_sizes

    with terminal.progress_display() as progress:
        optimized = optimize_onnx(graph, sizes=parse_sizes(sizes), progress=progress, **options)
    if as_json:
        terminal.show_json(optimized)
    else:
        for table in tables(optimized):
            terminal.show_table(*table)
            terminal.show("")
        terminal.show("\n".join(closing_lines(optimized)))
    for warning in optimized.warnings:
        terminal.say(f"Warning: {warning}")
