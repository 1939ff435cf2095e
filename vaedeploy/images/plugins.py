"""Formats that Pillow reads where a plugin is installed: HEIC and JPEG XL."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from PIL import Image

from vaedeploy.system.installs import pip_install


@dataclass(frozen=True)
class Plugin:
    """A Pillow plugin. name: the format's, for people. package: what pip installs. module: what is imported.

    register: the module's function that registers it with Pillow; None where importing does. suffixes: its files'.
    """

    name: str
    package: str
    module: str
    register: str | None
    suffixes: tuple[str, ...]
    recognises: Callable[[bytes], bool]


def _is_heif(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in (
        b"heic",
        b"heix",
        b"heim",
        b"heis",
        b"hevc",
        b"hevx",
        b"mif1",
        b"msf1",
    )


def _is_jpeg_xl(head: bytes) -> bool:
    return head[:2] == b"\xff\x0a" or head[:12] == b"\0\0\0\x0cJXL \r\n\x87\n"


PLUGINS = {
    "HEIF": Plugin("HEIC", "pillow-heif", "pillow_heif", "register_heif_opener", (".heic", ".heif", ".hif"), _is_heif),
    "JXL": Plugin("JPEG XL", "pillow-jxl-plugin", "pillow_jxl", None, (".jxl",), _is_jpeg_xl),
}
"""Pillow's name of a format -> the plugin that reads it."""

HEAD = 12
"""Bytes at the beginning of a file that ``Plugin.recognises`` looks at."""


@functools.cache
def plugin_formats() -> list[str]:
    """Pillow's names of the formats whose plugins are installed. They are imported at the first call."""
    return [form for form, plugin in PLUGINS.items() if _registers(form, plugin)]


def _registers(form: str, plugin: Plugin) -> bool:
    try:
        module: Any = import_module(plugin.module)
        if plugin.register is not None:
            getattr(module, plugin.register)()
    except (ImportError, AttributeError, OSError):  # it, or its library, is missing
        return False
    return form in Image.OPEN


def format_names() -> list[str]:
    """The names, for people, of the formats whose plugins are installed."""
    return [PLUGINS[form].name for form in plugin_formats()]


def plugin_message(source: Path | IO[bytes], name: Path | str) -> str | None:
    """A message on why Pillow could not open or decode a file; None if the file is not a plugin's.

    The plugins' own messages are about how they were built, or about boxes of the format.
    """
    if isinstance(source, Path):
        with source.open("rb") as file:
            head = file.read(HEAD)
    else:
        source.seek(0)
        head = source.read(HEAD)
    for form, plugin in PLUGINS.items():
        if plugin.recognises(head) and form in plugin_formats():
            return f"{name} is {plugin.name} and cannot be decoded, it is truncated or broken"
        if plugin.recognises(head):
            return f"{name} is {plugin.name}, which Pillow reads with a plugin. Run: {pip_install()} {plugin.package}"
    return None
