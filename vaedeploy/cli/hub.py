"""Commands that move bundles to and from the hub."""

from __future__ import annotations

from pathlib import Path

import click

from vaedeploy.cli import terminal
from vaedeploy.cli.documents import telling_bundle
from vaedeploy.cli.group import cli
from vaedeploy.cli.options import bundle_argument, identity_option, json_option, out_option
from vaedeploy.cli.progress import progress_display


@cli.command()
@bundle_argument
@click.argument("repository", metavar="OWNER/NAME[@BRANCH]")
@click.option("--allow-unverified", is_flag=True, help="Push the bundle even if it is not verified.")
@json_option
def push(bundle: Path, repository: str, allow_unverified: bool, as_json: bool) -> None:
    """Put a bundle into a hub repository.

    The command uploads the bundle as one commit and prints its address with that commit, which names these files for
    ever. The repository must exist: hf repos create owner/name [--private]. It gets a README.md, with the VAE's
    identity, its latent contract and the figures of the verification, unless it has one that somebody wrote. The token
    is huggingface_hub's: hf auth login, or HF_TOKEN.

    --json prints the output of inspect --json without memory, with three more fields: address; seconds; and error,
    which is null.

    \b
    Example:
      vaedeploy push mse840k someone/mse840k
    """
    from vaedeploy.bundle import Bundle
    from vaedeploy.pipeline.push import push_bundle

    with telling_bundle(as_json) as made, progress_display() as progress:
        address = push_bundle(bundle, repository, allow_unverified=allow_unverified, progress=progress)
        made.bundle, made.more["address"] = Bundle.open(bundle, verify_hashes=False), address
    if not as_json:
        terminal.show(address)


@cli.command()
@click.argument("repository", metavar="OWNER/NAME[@REVISION]")
@out_option("DIR", "The folder to create for the bundle. [default: vaedeploy's cache, one folder for each commit]")
@identity_option
@click.option("--force", is_flag=True, help="Replace a bundle that --out already holds.")
@json_option
def pull(repository: str, out: Path | None, identity: str | None, force: bool, as_json: bool) -> None:
    """Download a bundle from a hub repository.

    The command checks every file against the bundle's manifest and prints the bundle's folder, and its address with the
    commit on stderr. The revision is a branch, a tag or a commit; a commit that is in the cache needs no network. Other
    commands, such as inspect and decode, pull a bundle that is named hf://owner/name@revision by themselves.

    --json prints the output of inspect --json without memory, with three more fields: address, with the commit;
    seconds; and error, which is null.

    \b
    Example:
      vaedeploy pull someone/mse840k -o mse840k
      vaedeploy pull someone/mse840k@0123456789abcdef0123456789abcdef01234567
    """
    from vaedeploy.pipeline.pull import pull_pinned

    if force and out is None:
        raise click.UsageError("--force needs --out.")
    with telling_bundle(as_json) as made, progress_display() as progress:
        bundle, address = pull_pinned(repository, out, identity=identity, force=force, progress=progress)
        made.bundle, made.more["address"] = bundle, str(address)
    if not as_json:
        terminal.show(str(bundle.path))
        terminal.note(f"It is {address}")
