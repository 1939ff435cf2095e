"""Commands that create, inspect, swap and compare bundles."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from vaedeploy.cli import terminal
from vaedeploy.cli.documents import telling_bundle
from vaedeploy.cli.group import (
    BUNDLE,
    PATH,
    PRECISIONS,
    bundle_argument,
    cli,
    json_option,
    keep_result,
    local,
    numbers,
    page_option,
    photos_option,
    place_options,
    profiles_option,
    tell_page,
)


@cli.command()
@click.option(
    "--vae",
    required=True,
    metavar="NAME|REPO|PATH",
    help="A preset, a hub repository (owner/name or owner/name@revision), a diffusers folder, or a weights file.",
)
@click.option(
    "--weights",
    metavar="SRC",
    help="Use other weights with the preset's architecture: a hub repository, a diffusers folder, a file, or "
    "random:SEED for seeded random weights. Where --vae is a folder: a folder or file of weights for its config.json.",
)
@place_options
@click.option(
    "--name",
    metavar="NAME",
    help="What the bundle calls the VAE. [default: the preset's name, or that of the weights' repository, folder or "
    "file]",
)
@click.option("--out", type=PATH, metavar="DIR", help="The folder to create for the bundle. [default: the VAE's name]")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
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
    type=click.Choice(["float", "uint8"]),
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
    type=click.Choice(["onnxruntime-cuda", "openvino"]),
    multiple=True,
    help="Also write the graphs in the form that is faster in OpenVINO, or those with the fused operators of ONNX "
    "Runtime's CUDA provider, which need --precision fp16. Repeatable.",
)
@photos_option("Measure activations, and verify,")
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="NAME",
    help="Also build TensorRT engines for this GPU kind; vaedeploy profiles lists them. Repeatable.",
)
@profiles_option
@click.option(
    "--private", is_flag=True, help="Leave out of the bundle where the weights are on this disk; it keeps their name."
)
@click.option("--no-rewrite", is_flag=True, help="Leave the graphs as PyTorch exports them: no exact rewrites.")
@click.option("--no-verify", is_flag=True, help="Do not verify the bundle; it is marked unverified.")
@click.option("--force", is_flag=True, help="Replace a bundle that --out already holds.")
@json_option
def export(no_rewrite: bool, no_verify: bool, folder: Path | None, as_json: bool, **options: Any) -> None:
    """Export a VAE's weights to a bundle, and verify it.

    The command exports the encoder and the decoder to ONNX, rewrites the graphs to run faster, and compares their
    outputs with PyTorch's on photographs. It prints the bundle's folder. If the verification fails, the bundle is
    kept, marked unverified, and the exit code is 3.

    --json prints what inspect --json does but for memory, with two fields more: seconds, the time that it took, and
    error, which is null, or why the bundle that is there failed its verification or lacks an engine.

    \b
    Example:
      vaedeploy export --vae mse840k --out mse840k
      vaedeploy export --vae mse840k --weights my-finetune.safetensors --out mine
      vaedeploy export --vae sdxl --precision fp16 --out sdxl-fp16
      vaedeploy export --vae Tongyi-MAI/Z-Image-Turbo --name z-image
      vaedeploy export --vae sdxl --profile rtx4090 --out sdxl
    """
    from vaedeploy.pipeline.export import export_vae

    with telling_bundle(as_json) as made, terminal.progress_display() as progress:
        made.bundle = bundle = export_vae(
            rewrite=not no_rewrite, verify=not no_verify, profile_folder=folder, progress=progress, **options
        )
    if not as_json:
        terminal.show(str(bundle.path))
    again = f"vaedeploy verify {shlex.quote(str(bundle.path))}"
    if no_verify:
        terminal.say(f"It is not verified yet. To verify it, run: {again}")
    else:
        terminal.say(f"To see its images beside PyTorch's, run: {again} --report report")


@cli.command()
@bundle_argument
@click.option("--check", is_flag=True, help="Read every file and compare its sha256 with the manifest.")
@click.option("--layers", is_flag=True, help="Also list the layers and tensors of each engine.")
@json_option
def inspect(bundle: Path, check: bool, layers: bool, as_json: bool) -> None:
    """Show what a bundle holds.

    The command prints the bundle's VAE, latent contract, files, verification and engines, with the problems that they
    have on this machine, such as an engine for another GPU or of another version of TensorRT. It also prints the memory
    that a call takes on the CPU, beyond the loaded graphs.

    --json prints all of bundle.json with six fields more: path, the folder; verified; problems, a list of sentences;
    engine_states, the state and the problems of each engine; checked, which is true after --check; and memory, in
    bytes. If --check finds the bundle damaged, that is an error with exit code 2.

    \b
    Example:
      vaedeploy inspect mse840k --check
    """
    from vaedeploy.bundle import Bundle, check_bundle
    from vaedeploy.cli.tables.known import bundle_document, bundle_rows, memory_needs

    opened = check_bundle(bundle) if check else Bundle.open(bundle, verify_hashes=False)
    if as_json:
        terminal.show_json(bundle_document(opened, checked=check) | {"memory": memory_needs(opened)})
    else:
        terminal.show_table((), bundle_rows(opened, checked=check, layers=layers))


@cli.command()
@bundle_argument
@click.option(
    "--vae",
    metavar="NAME|REPO|PATH",
    help="The VAE to put in: a preset, a hub repository, a diffusers folder, or a weights file.",
)
@click.option("--weights", metavar="SRC", help="Use other weights with the preset's architecture, as in export.")
@place_options
@click.option("--restore", is_flag=True, help="Bring back the VAE that the bundle had first, bit for bit.")
@json_option
def swap(bundle: Path, vae: str | None, restore: bool, as_json: bool, **place: str | None) -> None:
    """Replace a bundle's VAE by another one, or bring the first back.

    The other VAE must have the same architecture and latent contract. It is exported and verified, and every engine of
    the bundle is built again, before the bundle is changed. The command prints how far latents and images move.

    --json prints what inspect --json does of the bundle as it is now, but for memory, with three fields more:
    seconds; error, which is null; and drift, which is null after --restore.

    \b
    Example:
      vaedeploy swap demo --vae demo-mse
      vaedeploy swap demo --restore
    """
    from vaedeploy.cli.tables.results import drift_rows
    from vaedeploy.pipeline.swap import restore_vae, swap_vae

    given = [f"--{name}" for name, value in place.items() if value is not None]
    if given and vae is None:
        raise click.UsageError(f"{given[0]} needs --vae, the VAE to put in.")
    if restore == (vae is not None):
        raise click.UsageError("Give either --vae or --restore.")
    drift = None
    with telling_bundle(as_json) as made, terminal.progress_display() as progress:
        if vae is None:
            swapped = restore_vae(bundle)
        else:
            swapped, drift = swap_vae(bundle, vae, progress=progress, **place)
        made.bundle, made.more["drift"] = swapped, drift
    if as_json:
        return
    if drift is None:
        terminal.show(str(swapped.path))
    else:
        terminal.show_table((), drift_rows(swapped, drift))


@cli.command()
@click.argument("bundles", nargs=-1, required=True, type=BUNDLE, metavar="BUNDLE BUNDLE...")
@click.option(
    "--images", required=True, type=PATH, metavar="DIR", help="Compare the VAEs on the photographs in this folder."
)
@page_option
@click.option("--backend", metavar="NAME", help="Run on this backend. [default: the first that is available]")
@json_option
def compare(bundles: tuple[Path | str, ...], images: Path, as_json: bool, **options: Any) -> None:
    """Compare VAEs: fidelity, speed, and whose latents each decodes.

    Each bundle encodes and decodes the photographs. The command prints how far each result is from its photograph, how
    long each VAE takes, and which is truest and fastest. Then each VAE decodes latents of each other one. The verdict
    for a pair is compatible, compatible with a shift (of colour, contrast or scale), or not compatible; a wrong scale
    or shift, flipped signs, permuted channels and another latent space are told apart.

    \b
    Example:
      vaedeploy compare demo demo-mse --images photos -o report
    """
    from vaedeploy.cli.tables.results import COMPARE_COLUMNS, compare_rows
    from vaedeploy.pipeline.compare import compare_bundles
    from vaedeploy.pipeline.compare.words import summary_lines, swap_lines

    found, problem = keep_result(
        lambda tell: compare_bundles(list(map(local, bundles)), images, progress=tell, **options)
    )
    if as_json:
        terminal.show_json(found)
    else:
        terminal.show_table(COMPARE_COLUMNS, compare_rows(found), numbers=COMPARE_COLUMNS[1:])
        terminal.show("\n".join((*summary_lines(found), *swap_lines(found))))
    sys.exit(tell_page(options["page"], problem))
