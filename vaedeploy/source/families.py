"""The families of VAEs that can be loaded, by the name of their class in diffusers."""

from __future__ import annotations

from typing import Any

from vaedeploy.source.autoencoder_kl.family import AutoencoderKLFamily
from vaedeploy.source.autoencoder_kl_wan.family import QwenImageFamily, WanFamily
from vaedeploy.source.family import Architecture, Family

FAMILIES: dict[str, Family[Any]] = {
    family.class_name: family
    for family in (
        AutoencoderKLFamily(),
        QwenImageFamily(),
        WanFamily(),
    )
}
"""Class name -> family."""


def family_of(architecture: Architecture) -> Family[Any]:
    """The family of an architecture."""
    return FAMILIES[architecture.class_name]
