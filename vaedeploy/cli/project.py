"""``vaedeploy.toml``, which lists bundles: each is ``[bundle.NAME]``, with options of ``vaedeploy export`` as keys.

The command gets the values as if they had been typed, so that it checks them and says what is wrong. Example::

    [bundle.sdxl-fp16]
    vae = "sdxl"
    precision = "fp16"
    profile = ["rtx4090", "sm86"]

    [bundle.mine]
    vae = "mse840k"
    weights = "weights/mine.safetensors"    # relative to this file
    out = "bundles/mine"                    # by default, mine
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from vaedeploy.errors import InputError
from vaedeploy.system.documents import read_document
from vaedeploy.system.oserrors import reason
from vaedeploy.system.places import exists, resolved
from vaedeploy.values.origin import WEIGHTS_SUFFIXES
from vaedeploy.values.presets import preset_names

LARGEST = 1_000_000
"""Largest file that is read, in bytes."""

NOT_HERE = ("--all", "--config", "--force", "--json")
"""Options of ``export`` that belong to a call, not to a bundle."""

PLACES = ("--vae", "--weights")
"""Options whose value may be a path, or something else."""


def read_project(file: Path, ctx: click.Context) -> dict[str, click.Context]:
    """Name -> the context of ``export`` for that bundle, for all bundles of the file. ctx: that of this call.

    Raises InputError, with the line or the key, where the file cannot be used.
    """
    try:
        table = tomllib.loads(read_document(file, LARGEST).decode())
    except OSError as error:
        raise InputError(
            f"{file} cannot be read: {reason(error)}. It lists bundles, each as [bundle.NAME] with options of export"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not a TOML file: {error}") from error
    bundles = table.pop("bundle", None)
    if table:
        raise InputError(f"{file} has {next(iter(table))}; it may have only tables [bundle.NAME]")
    if not isinstance(bundles, dict) or not bundles:
        raise InputError(f"{file} lists no bundles; write each as [bundle.NAME], with options of export below it")
    contexts = {name: _context(file, name, options, ctx) for name, options in bundles.items()}
    places: dict[Path, str] = {}
    for name, context in contexts.items():
        other = places.setdefault(resolved(context.params["out"]), name)
        if other != name:
            raise InputError(f"{file}: [bundle.{other}] and [bundle.{name}] have the same out, {context.params['out']}")
    return contexts


def _context(file: Path, name: str, options: Any, ctx: click.Context) -> click.Context:
    """The context of ``export`` with the options of one bundle."""
    where = f"{file}, [bundle.{name}]"
    if not isinstance(options, dict):
        raise InputError(f"{where} is not a table; write its options below it")
    words = ["--out", str(file.parent / name)] if "out" not in options else []
    words += [word for key, value in options.items() for word in _words(file, where, key, value, ctx.command)]
    words += ["--force"] if ctx.params["force"] else []
    try:
        context = ctx.command.make_context("export", words, ctx.parent)
    except click.UsageError as error:
        raise InputError(f"{where}: {error.format_message()}") from error
    # Their environment variables belong to the call, too: VAEDEPLOY_EXPORT_ALL would export all bundles for each one.
    context.params |= {"every": False, "as_json": False}
    if context.params["vae_option"] is None:
        raise InputError(f"{where} has no vae; name a preset, a hub repository, a folder or a weights file")
    return context


def _words(file: Path, where: str, key: str, value: Any, command: click.Command) -> Iterator[str]:
    """One option as it is typed."""
    known = {
        name: option
        for option in command.params
        if isinstance(option, click.Option) and option.expose_value
        for name in option.opts
        if name.startswith("--") and name not in NOT_HERE
    }
    option = known.get(f"--{key}")
    if option is None:
        near = difflib.get_close_matches(f"--{key}", known, n=1)
        hint = f"did you mean {near[0].removeprefix('--')}?" if near else "vaedeploy export --help lists the options"
        raise InputError(f"{where} has {key}, which is not an option of export; {hint}")
    if option.is_flag:
        if not isinstance(value, bool):
            raise InputError(f"{where}: {key} is {value!r}; it must be true or false")
        yield from [f"--{key}"] if value else []
        return
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str | int | float) and not isinstance(item, bool) for item in values):
        raise InputError(f"{where}: {key} is {value!r}; it must be text, a number, or a list of them")
    texts = [_placed(file, option, f"--{key}", str(item)) for item in values]
    if not option.multiple:
        texts = [",".join(texts)]
    for text in texts:
        yield f"--{key}={text}"


def _placed(file: Path, option: click.Option, name: str, text: str) -> str:
    """A value; if it is a path, the file's folder is put before it."""
    if name == "--vae" and text in preset_names():
        return text  # as on the command line, a preset wins over a folder of its name, such as the bundle made before
    place = file.parent / text
    may_be = name in PLACES and (exists(place) or text.endswith(WEIGHTS_SUFFIXES))
    return str(place) if may_be or isinstance(option.type, click.Path) else text
