"""The command that writes model repositories for Triton Inference Server."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from vaedeploy.cli import terminal
from vaedeploy.cli.documents import telling_bundle
from vaedeploy.cli.group import cli
from vaedeploy.cli.options import bundle_argument, json_option, out_option
from vaedeploy.cli.progress import progress_display


@cli.command()
@bundle_argument
@out_option("REPOSITORY", "The folder to create.", required=True)
@click.option("--name", metavar="NAME", help="How the models' names begin. [default: the name of the bundle's VAE]")
@click.option(
    "--bundle-at",
    metavar="PATH",
    help="Do not copy the bundle: the models open it at this absolute path on the server's machine.",
)
@click.option(
    "--native",
    is_flag=True,
    help="Write models for Triton's onnxruntime and tensorrt backends instead, which run without vaedeploy and lose "
    "what its runtime does; each config.pbtxt says what.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    metavar="N",
    help="The most items of a request, and of requests that are joined.",
)
@click.option("--allow-unverified", is_flag=True, help="Write models even if the bundle is not verified.")
@click.option("--force", is_flag=True, help="Replace a repository that --out already holds.")
@json_option
def triton(bundle: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Write a model repository for Triton Inference Server.

    vaedeploy runs the models NAME-encode and NAME-decode in Triton's Python backend, whose Python needs vaedeploy and
    one of its backends. They give the runtime's results bit for bit, compute requests of one size together, and refuse
    bad input in the runtime's words. Each has a copy of the bundle in its folder. The command prints the folders of the
    models.

    With --native there is also a model NAME-encode-PROFILE and NAME-decode-PROFILE for each TensorRT engine of the
    bundle.

    --json prints the output of inspect --json for the bundle without memory, with four more fields: repository; models,
    their names; seconds; and error, which is null.

    \b
    Example:
      vaedeploy triton mse840k -o models
      tritonserver --model-repository models
    """
    from vaedeploy.bundle import Bundle
    from vaedeploy.pipeline.triton import write_triton
    from vaedeploy.system.installs import requirement

    with telling_bundle(as_json) as made, progress_display() as progress:
        models = write_triton(bundle, out, progress=progress, **options)
        made.bundle = Bundle.open(bundle, verify_hashes=False)
        made.more |= {"repository": str(out), "models": [model.name for model in models]}
    if not as_json:
        terminal.show("\n".join(map(str, models)))
    if not options["native"]:
        needed = requirement("cpu")
        terminal.note(f'Their Python needs vaedeploy: pip install "{needed}", or [cuda] or [tensorrt] for a GPU')
    terminal.note(f"To serve them, run: tritonserver --model-repository {shlex.quote(str(out))}")
