"""Turns the VAE of an image diffusion model from PyTorch weights into something that a service can embed.

Each stage is a package, and each public verb is a module of the package ``pipeline``::

    weights ──> Reference ──> Graph ──> Graph ──> Engine
                source        graph     rewrite   engines
                   └──────── verify ─────┘           │
                                │                    │
                                └─────> bundle <─────┘ ──> VAE
                                                           runtime

``export_vae`` makes a bundle, with verified ONNX graphs. ``build_engines`` adds TensorRT engines to it.
``verify_bundle`` compares it with PyTorch again. ``VAE`` encodes and decodes, and needs neither PyTorch nor onnx::

    import vaedeploy as vd

    bundle = vd.export_vae("demo", out="demo")
    with vd.VAE("demo") as vae:
        latent = vae.encode(photo)    # (H, W, 3) uint8 -> (1, C, H/8, W/8) float32
        image = vae.decode(latent)    # -> (1, H, W, 3) uint8

Work that takes long has ``progress=``, and ``vd.progress_bar()`` is one. Every logger is below ``vaedeploy``:
``logging.getLogger("vaedeploy").setLevel(logging.INFO)`` says which backends are not available, and why.

``help(vd.export_vae)`` explains a public name. These are all:
"""

from __future__ import annotations

import ast
import pkgutil
import textwrap
from importlib import import_module

# The public names are those that ``__init__.pyi`` imports. Type checkers read that stub directly. At run time this
# module reads it too, and imports a name from the module that the stub names when the name is first used, so that
# ``import vaedeploy`` is fast.
_STUB = ast.parse(pkgutil.get_data(__name__, "__init__.pyi") or b"")

_MODULES = {
    alias.name: f"{__name__}.{statement.module}"
    for statement in _STUB.body
    if isinstance(statement, ast.ImportFrom)
    for alias in statement.names
}
"""Public name -> the module that it is imported from."""

__all__ = sorted(_MODULES)


def _listed() -> str:
    """The public names, for ``help``."""
    kinds: dict[str, list[str]] = {"Functions": [], "Classes": [], "Errors and warnings": []}
    for name in __all__:
        if not name.startswith("_"):
            kind = "Functions" if name.islower() else "Classes"
            kinds["Errors and warnings" if name.endswith(("Error", "Warning")) else kind].append(name)
    return "\n".join(textwrap.fill(f"{kind}: {', '.join(names)}.", 100) for kind, names in kinds.items())


__doc__ = f"{__doc__}\n{_listed()}\n"


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
