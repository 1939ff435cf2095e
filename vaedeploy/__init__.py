"""Take the VAE of an image diffusion model from PyTorch weights to something that a service can embed.

The pipeline, a module for each arrow::

    Preset ──> Reference ──> Graph ──> Graph ──> Engine ──> Bundle ──> VAE
    preset     source        export    rewrite   build      bundle     runtime
                  └────────── verify ─────┘

``export_vae`` is all of it up to the bundle; ``build_engines`` adds TensorRT engines; ``verify_bundle`` proves it
against PyTorch again; ``VAE`` encodes and decodes with it, and needs neither PyTorch nor onnx for that::

    import vaedeploy as vd

    bundle = vd.export_vae("demo", out="demo")
    with vd.VAE("demo") as vae:
        latent = vae.encode(photo)    # (H, W, 3) uint8 -> (1, C, H/8, W/8) float32
        image = vae.decode(latent)    # -> (1, H, W, 3) uint8

Names are loaded when they are first used, so that ``import vaedeploy`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vaedeploy.bench import Bench, bench_bundle
    from vaedeploy.bisect import Bisection, bisect_bundle
    from vaedeploy.bundle import Bundle
    from vaedeploy.compare import Comparison, compare_bundles
    from vaedeploy.engines import build_engines
    from vaedeploy.errors import (
        BackendError,
        BuildError,
        BundleError,
        ContractError,
        DownloadError,
        EngineError,
        ExportError,
        ImageError,
        InputError,
        LatentError,
        OutputError,
        ProfileError,
        SizeError,
        UnknownPresetError,
        VaedeployError,
        VerificationError,
        WeightsError,
    )
    from vaedeploy.latent import LatentSpec
    from vaedeploy.optimize import Optimized, optimize_onnx
    from vaedeploy.pipeline import export_vae, verify_bundle
    from vaedeploy.preset import Preset, get_preset, presets
    from vaedeploy.profile import Profile, get_profile, profiles
    from vaedeploy.reference import Reference
    from vaedeploy.runtime import VAE, UnverifiedBundleWarning
    from vaedeploy.source import load_reference
    from vaedeploy.swap import restore_vae, swap_vae
    from vaedeploy.verify import Case, Report

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "BackendError",
    "Bench",
    "Bisection",
    "BuildError",
    "Bundle",
    "BundleError",
    "Case",
    "Comparison",
    "ContractError",
    "DownloadError",
    "EngineError",
    "ExportError",
    "ImageError",
    "InputError",
    "LatentError",
    "LatentSpec",
    "Optimized",
    "OutputError",
    "Preset",
    "Profile",
    "ProfileError",
    "Reference",
    "Report",
    "SizeError",
    "UnknownPresetError",
    "UnverifiedBundleWarning",
    "VaedeployError",
    "VerificationError",
    "WeightsError",
    "bench_bundle",
    "bisect_bundle",
    "build_engines",
    "compare_bundles",
    "export_vae",
    "get_preset",
    "get_profile",
    "load_reference",
    "optimize_onnx",
    "presets",
    "profiles",
    "restore_vae",
    "swap_vae",
    "verify_bundle",
]

_HOMES = {
    "Bench": "bench",
    "Bisection": "bisect",
    "Bundle": "bundle",
    "Case": "verify",
    "Comparison": "compare",
    "LatentSpec": "latent",
    "Optimized": "optimize",
    "Preset": "preset",
    "Profile": "profile",
    "Reference": "reference",
    "Report": "verify",
    "UnverifiedBundleWarning": "runtime",
    "VAE": "runtime",
    "bench_bundle": "bench",
    "bisect_bundle": "bisect",
    "build_engines": "engines",
    "compare_bundles": "compare",
    "export_vae": "pipeline",
    "get_preset": "preset",
    "get_profile": "profile",
    "load_reference": "source",
    "optimize_onnx": "optimize",
    "presets": "preset",
    "profiles": "profile",
    "restore_vae": "swap",
    "swap_vae": "swap",
    "verify_bundle": "pipeline",
}


if not TYPE_CHECKING:  # else type checkers would take any name for one of these

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module 'vaedeploy' has no attribute {name!r}")
        value = getattr(import_module(f"vaedeploy.{_HOMES.get(name, 'errors')}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
