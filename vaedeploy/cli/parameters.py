"""Types of arguments and options: how a value is read, and which values the shell completes.

What a completion reads, such as presets, is imported when the shell asks for it, so that ``--help`` does not wait.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from vaedeploy.cli.meant import near_word
from vaedeploy.errors import InputError, LatentError
from vaedeploy.system.places import is_file
from vaedeploy.system.text import shown, whole_number
from vaedeploy.values.words import counted

PATH = click.Path(path_type=Path)

Items = list[CompletionItem]


class Known(click.ParamType[str]):
    """A word. ``names`` gives the known ones; whoever gets the word checks it."""

    name = "text"

    def __init__(self, names: Callable[[], Iterable[str]], files: bool = False) -> None:
        """files: whether a file or folder can stand in the word's place."""
        self._names, self._files = names, files

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
        found = [CompletionItem(name) for name in self._names() if name.startswith(incomplete)]
        return found or ([CompletionItem(incomplete, type="file")] if self._files else [])


class OneOf(click.Choice[str]):
    """One of a few words. Any other is refused with the word that may be meant."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        meant = None if value in self.choices else near_word(str(value), self.choices)
        if meant is not None:
            self.fail(f"{value!r} is not one of {', '.join(map(repr, self.choices))}. Did you mean {meant!r}?")
        return super().convert(value, param, ctx)


class Separated(click.ParamType[tuple[str, ...]]):
    """Words separated by commas: ``rtx4090,rtx5090``. ``names`` gives the known ones."""

    name = "text"

    def __init__(self, names: Callable[[], Iterable[str]], missing: str) -> None:
        """missing: what to do where the option is needed and not given."""
        self._names, self._missing = names, missing

    def get_missing_message(self, param: click.Parameter, ctx: click.Context | None) -> str:
        return self._missing

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        words = tuple(word.strip() for word in str(value).split(","))
        if not all(words):
            self.fail(f"{value!r} has a name that is empty; write names with one comma between them", param, ctx)
        return words

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
        before, comma, last = incomplete.rpartition(",")
        return [CompletionItem(f"{before}{comma}{name}") for name in self._names() if name.startswith(last)]


def check_no_image(bundle: Path) -> None:
    """Raise InputError for a picture or a latent file in a bundle's place, as from arguments in the wrong order, or
    from the second file of ``--images a.png b.png``.
    """
    if not is_file(bundle) or (kind := _kind(bundle)) is None:
        return
    context = click.get_current_context()
    hint = " Pictures for --images go into one folder." if context.info_name == "compare" else ""
    raise InputError(
        f"{bundle} is {kind}, and stands where a bundle is wanted, which is a folder.{hint} Run: {_order(context)}"
    )


def _kind(file: Path) -> str | None:
    """What a file is: a picture, by its name, or a latent file; None for any other."""
    from vaedeploy.images.files import image_suffixes
    from vaedeploy.images.latents import read_latent

    if file.suffix.lower() in image_suffixes():
        return "a picture"
    try:
        read_latent(file)
    except LatentError:
        return None
    return "a latent file"


def _order(context: click.Context) -> str:
    """A command with all that it must be given, such as ``vaedeploy look BUNDLE IMAGE... -o DIR``."""
    parameters = context.command.params
    arguments = chain.from_iterable(p.get_usage_pieces(context) for p in parameters)
    options = (f"{p.opts[0]} {p.metavar}" for p in parameters if isinstance(p, click.Option) and p.required)
    return " ".join((context.command_path, *arguments, *options))


class BundlePlace(click.ParamType[Path | str]):
    """A bundle: the path of its folder, or its address on the hub. A picture is refused here, before the options that
    are missing: whoever gives nothing else does not know yet that a bundle comes first.
    """

    name = "bundle"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        if isinstance(value, str) and value.startswith("hf://"):
            return value
        check_no_image(Path(value))
        return Path(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
        """The bundles whose paths begin so; if there are none, any folder."""
        found = sorted(glob.glob(f"{glob.escape(incomplete)}*/bundle.json"))  # noqa: PTH207 - Path takes no absolute one
        return [CompletionItem(str(Path(file).parent)) for file in found] or [CompletionItem(incomplete, type="dir")]


PRECISION = OneOf(("fp32", "fp16", "bf16"))
"""``values.kinds.Precision`` as words, so that help does not wait for that import."""


def preset_names() -> Iterable[str]:
    from vaedeploy.values.presets import preset_names as names

    return names()


def profile_names() -> Iterable[str]:
    from vaedeploy.engines.profile import profile_names as names

    return names()


def backend_names() -> Iterable[str]:
    from vaedeploy.runtime.backends import BACKENDS

    return BACKENDS


BUNDLE = BundlePlace()

VAE = Known(preset_names, files=True)

PROFILE = Known(profile_names)

PROFILES = Separated(profile_names, "To see all profiles: vaedeploy profiles")

BACKEND = Known(backend_names)


def numbers(text: str) -> float | tuple[float, ...]:
    """The type of an option that takes one number, or several separated by commas."""
    try:
        several = tuple(map(float, text.split(",")))
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither a number nor numbers that are separated by commas.") from None
    return several if len(several) > 1 else several[0]


class MemorySize(click.ParamType[int]):
    """A number of bytes, with the units that people write: 4G is 4 * 10^9, and 4GiB is 4 * 2^30."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]+)?) ?([kmgt]?)(i?)b?", str(value).strip(), re.IGNORECASE)
        power = " KMGT".find(found[2].upper() or " ") if found else 0
        size = int(float(found[1]) * (1024 if found[3] else 1000) ** power) if found else 0
        if found is None or size < 1 or (found[3] and not power):
            self.fail(f"{value!r} is not a number of bytes above 0; write it as 4G (4 * 10^9) or 4GiB (4 * 2^30)")
        from vaedeploy.system.memory import LEAST_LIMIT, meant_unit

        if size < LEAST_LIMIT:
            unit = "M" if power else meant_unit(size)
            hint = f"did you mean {found[1]}{unit}?" if unit else "write it as 4G (4 * 10^9) or 4GiB (4 * 2^30)"
            self.fail(f"{value!r} is {counted(size, 'byte')}, and nothing is computed in so few; {hint}")
        return size


class Size(click.ParamType[tuple[int, int]]):
    """A height and a width in pixels, as in 512x768."""

    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        height, width = map(whole_number, str(value).partition("x")[::2])
        if height is None or width is None:
            self.fail(f"{shown(repr(value))} is not a size; give height x width in pixels, such as 512x768")
        return height, width


class Color(click.ParamType[tuple[int, int, int]]):
    """A colour, by its name or as #RRGGBB."""

    name = "color"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int, int]:
        from PIL import ImageColor

        try:
            red, green, blue = ImageColor.getcolor(str(value), "RGB")  # type: ignore[misc]  # of RGB it gives three
        except ValueError:
            meant = f". Did you mean '#{value}'?" if re.fullmatch("([0-9a-fA-F]{3}){1,2}", str(value)) else ""
            self.fail(f"{value!r} is not a colour; give a name, such as white, or #RRGGBB{meant}")
        return red, green, blue
