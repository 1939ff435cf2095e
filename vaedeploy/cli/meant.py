"""What people mean by words that this command line lacks: slips, and the words of other tools."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

SAME = (
    ("fp32", "float32", "f32", "float", "full", "single"),
    ("fp16", "float16", "f16", "half"),
    ("bf16", "bfloat16"),
)
"""Words for one precision. Each option takes one of them."""

OPTIONS = {
    "--dtype": ("--precision",),
    "--torch-dtype": ("--precision",),
    "--fp16": ("--precision fp16",),
    "--half": ("--precision fp16",),
    "--bf16": ("--precision bf16",),
    "--fp32": ("--precision fp32",),
    "--model": ("--vae",),
    "--checkpoint": ("--weights",),
    "--output": ("--out",),
    "--output-dir": ("--out",),
    "--out-dir": ("--out",),
    "--gpu": ("--profile",),
    "--provider": ("--backend",),
    "--resolution": ("--size",),
    "--batch-size": ("--batch", "--max-batch"),
    "--num-workers": ("--workers",),
    "--overwrite": ("--force",),
}
"""An option of other tools -> its counterparts here, of which a command has at most one."""

COMMANDS = {
    "info": "inspect",
    "show": "inspect",
    "view": "look",
    "diff": "compare",
    "convert": "export",
    "test": "verify",
    "check": "verify",
    "benchmark": "bench",
    "list": "presets",
    "download": "pull",
    "upload": "push",
    "run": "serve",
    "version": "--version",
}
"""A command of other tools -> its counterpart here, which may be an option."""

LIMITS = ("--tolerance", "--tol", "--atol", "--rtol", "--threshold")
"""Options with which other tools set the tolerance of a comparison."""


def near_word(word: str, known: Sequence[str]) -> str | None:
    """The one of ``known`` that is meant by ``word``, or None."""
    for words in SAME:
        if word.lower() in words:
            return next((name for name in known if name in words), None)
    return next(iter(difflib.get_close_matches(word.lower(), known, n=1)), None)


def about_option(name: str, command: str, known: Sequence[str]) -> str | None:
    """A sentence about an option that ``command`` lacks; None if it is not clear what is meant."""
    meant = next((option for option in OPTIONS.get(name, ()) if option.split()[0] in known), None)
    if meant is not None:
        return f"Did you mean '{meant}'?"
    if command == "verify" and name in LIMITS:
        return "The limits are the same for every bundle: docs/verification.md has each with its reason."
    if command == "serve" and name in ("--workers", "--num-workers", "--processes"):
        return (
            "One process serves, and uses all cores. For more processes, run the command once for each, with a --port "
            "of its own, and share the cores out with --threads."
        )
    if command == "export" and name in ("--report", "--page"):
        return "The page is made of a bundle. After the export, run: vaedeploy verify BUNDLE --report DIR"
    if command in ("encode", "decode") and name in ("--force", "--overwrite"):
        return "A file of that name is replaced without it."
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f"Did you mean '{near[0]}'?" if near else None
