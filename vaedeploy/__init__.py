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

The public names are those that ``__init__.pyi`` imports. Type checkers read that stub directly. At run time this module
reads it too, and imports a name from the module that the stub names when the name is first used, so that
``import vaedeploy`` is fast.
"""

from __future__ import annotations

import ast
import pkgutil
from importlib import import_module

_STUB = ast.parse(pkgutil.get_data(__name__, "__init__.pyi") or b"")

_MODULES = {
    alias.name: f"{__name__}.{statement.module}"
    for statement in _STUB.body
    if isinstance(statement, ast.ImportFrom)
    for alias in statement.names
}
"""Public name -> the module that it is imported from."""

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
