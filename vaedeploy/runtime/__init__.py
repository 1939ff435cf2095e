"""Runs a bundle. This needs numpy and one backend, and nothing that is needed only to make a bundle.

with VAE("mse840k") as vae:
    latent = vae.encode(photo)      # (H, W, 3) uint8 -> (1, C, H/f, W/f) float32
    image = vae.decode(latent)      # (1, H, W, 3) uint8

May import ``bundle``, ``images`` and what is below them, but no library that is needed only to make a bundle, such as
PyTorch or onnx.
"""

from __future__ import annotations

from vaedeploy.runtime.backends import BACKENDS
from vaedeploy.runtime.rows.session import MemoryPlan
from vaedeploy.runtime.types import HostImage, HostLatent, Moments, SupportsDLPack
from vaedeploy.runtime.unverified import UnverifiedBundleWarning
from vaedeploy.runtime.vae import VAE
from vaedeploy.values.latent import Limits

__all__ = [
    "BACKENDS",
    "VAE",
    "HostImage",
    "HostLatent",
    "Limits",
    "MemoryPlan",
    "Moments",
    "SupportsDLPack",
    "UnverifiedBundleWarning",
]
