"""The command that exports VAEs to bundles: one of them, or those that a file lists."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from vaedeploy.cli import terminal
from vaedeploy.cli.documents import telling_bundle
from vaedeploy.cli.group import cli
from vaedeploy.cli.options import (
    build_options,
    json_option,
    out_option,
    photos_option,
    place_options,
    vae_argument,
)
from vaedeploy.cli.parameters import PATH, PRECISION, OneOf, numbers
from vaedeploy.cli.progress import progress_display
from vaedeploy.errors import VaedeployError

CONFIG = "vaedeploy.toml"
"""The file that lists bundles, unless --config names another one."""


@cli.command()
@vae_argument
@click.option(
    "--weights",
    metavar="SRC",
    help="Use other weights with the preset's architecture: a hub repository, a diffusers folder, a file, or "
    "random:SEED for seeded random weights. Where VAE is a folder: a folder or file of weights for its config.json.",
)
@place_options
@click.option(
    "--name",
    metavar="NAME",
    help="The VAE's name in the bundle. [default: the preset's name, or that of the weights' repository, folder or "
    "file]",
)
@out_option("DIR", "The folder to create for the bundle. [default: the VAE's name]")
@click.option(
    "--precision",
    type=PRECISION,
    default="fp32",
    show_default=True,
    help="The precision that the graphs compute in. Their inputs and outputs stay float32.",
)
@click.option(
    "--keep-fp32",
    multiple=True,
    metavar="NODE",
    help="With fp16 or bf16: leave this node of the graph in float32, by its name, which vaedeploy verify --bisect "
    "gives. Repeatable.",
)
@click.option(
    "--image-input",
    type=OneOf(["float", "uint8"]),
    default="float",
    show_default=True,
    help="The type of the images that the encoder's graph takes: float32 in [-1, 1], or uint8.",
)
@click.option(
    "--scale",
    type=numbers,
    metavar="X[,X...]",
    help="The scale of the latents: one number, or one for each channel, as in 0.5,0.25. Needed where nothing states "
    "it, or where two statements of it differ.",
)
@click.option(
    "--shift",
    type=numbers,
    metavar="X[,X...]",
    help="The shift of the latents: one number, or one for each channel, as in 0.5,0.25. Needed where nothing states "
    "it, or where two statements of it differ.",
)
@click.option(
    "--form",
    "forms",
    type=OneOf(["onnxruntime-cuda", "openvino"]),
    multiple=True,
    help="Also write the graphs in the form that is faster in OpenVINO, or those with the fused operators of ONNX "
    "Runtime's CUDA provider, which need --precision fp16. Repeatable.",
)
@photos_option("Measure activations, and verify,")
@build_options("Also build TensorRT engines")
@click.option(
    "--backend",
    "profile_backend",
    type=OneOf(["tensorrt", "tensorrt-rtx"]),
    help="With --profile: build engines for this backend. [default: the backend that the profile names]",
)
@click.option(
    "--private", is_flag=True, help="Keep only the weights' name in the bundle, and not their place on this disk."
)
@click.option("--no-rewrite", is_flag=True, help="Leave the graphs as PyTorch exports them: no exact rewrites.")
@click.option("--no-verify", is_flag=True, help="Do not verify the bundle; it is marked unverified.")
@click.option("--force", is_flag=True, help="Replace a bundle that --out already holds.")
@click.option("--all", "every", is_flag=True, help="Export every bundle that --config lists; --force replaces them.")
@click.option(
    "--config",
    type=PATH,
    default=CONFIG,
    show_default=True,
    metavar="FILE",
    help="With --all: the file that lists bundles.",
)
@json_option
@click.pass_context
def export(
    ctx: click.Context,
    /,
    vae: str | None,
    every: bool,
    config: Path,
    no_rewrite: bool,
    no_verify: bool,
    folder: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Export a VAE's weights to a bundle, and verify it.

    VAE is a preset, a hub repository (owner/name or owner/name@revision), a diffusers folder, or a weights file. The
    command exports the encoder and the decoder to ONNX, rewrites the graphs to run faster, and compares their
    outputs with PyTorch's on photographs. It prints the bundle's folder. If the verification fails, the bundle is
    kept, marked unverified, and the exit code is 3.

    --json prints the output of inspect --json without memory, with two more fields: seconds, the time that it took, and
    error, which is null, or says why the bundle failed its verification or lacks an engine.

    --all exports the bundles that vaedeploy.toml lists, each as [bundle.NAME] with these options: vae, precision and so
    on, with values as they are typed. Paths are relative to that file, and the bundle's folder is NAME beside it,
    unless out says otherwise. If one fails, the others go on.

    \b
    Example:
      vaedeploy export mse840k
      vaedeploy export mse840k --weights my-finetune.safetensors -o mine
      vaedeploy export sdxl --precision fp16 -o sdxl-fp16
      vaedeploy export Tongyi-MAI/Z-Image-Turbo --name z-image
      vaedeploy export sdxl --profile rtx4090,rtx5090
      vaedeploy export --all --force
    """
    if every:
        sys.exit(_export_all(ctx, config))
    if ctx.get_parameter_source("config") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--config needs --all.")
    if vae is None:
        raise click.UsageError(
            "No VAE is given. Name a preset, a hub repository, a folder or a weights file: vaedeploy export mse840k"
        )

    from vaedeploy.cli.tables.bundles import made_line

    with telling_bundle(as_json) as made, progress_display() as progress:
        from vaedeploy.pipeline.export import export_vae  # takes a second, which the display covers

        made.bundle = bundle = export_vae(
            vae, rewrite=not no_rewrite, verify=not no_verify, profile_folder=folder, progress=progress, **options
        )
    if not as_json:
        terminal.show(str(bundle.path))
    terminal.note(made_line(bundle))
    place = shlex.quote(str(bundle.path))
    if no_verify:
        terminal.note(f"To verify it, run: vaedeploy verify {place}")
    else:
        terminal.note(f"To see its images beside PyTorch's, run: vaedeploy verify {place} --report report")
        terminal.note(f"To see what it makes of your pictures, run: vaedeploy look {place} IMAGE... -o look")


def _export_all(ctx: click.Context, config: Path) -> int:
    """Export the bundles that a file lists. Returns the exit code: 0, or that of the first that failed."""
    from vaedeploy.cli.project import read_project

    for parameter in ctx.command.params:
        typed = ctx.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
        if typed and parameter.name not in ("every", "config", "force", "verbose", "quiet"):
            raise click.UsageError(
                f"{parameter.get_error_hint(ctx)} cannot be used with --all: {config} has the options of each bundle."
            )
    wanted = read_project(config, ctx)
    code = 0
    for number, (name, context) in enumerate(wanted.items(), 1):
        terminal.note(f"{number} of {len(wanted)}: {name}")
        try:
            with context:
                context.command.invoke(context)
        except VaedeployError as error:
            terminal.say(f"Error: {name}: {error}")
            code = code or error.exit_code
    return code
