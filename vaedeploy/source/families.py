"""The families of VAEs that can be loaded, by the name of their class in diffusers."""

from __future__ import annotations

from typing import Any

from vaedeploy.source.asymmetric_autoencoder_kl.family import AsymmetricFamily
from vaedeploy.source.autoencoder_dc.family import AutoencoderDCFamily
from vaedeploy.source.autoencoder_kl.family import AutoencoderKLFamily
from vaedeploy.source.autoencoder_kl_flux2.family import AutoencoderKLFlux2Family
from vaedeploy.source.autoencoder_kl_hunyuanimage.family import AutoencoderKLHunyuanImageFamily
from vaedeploy.source.autoencoder_kl_kvae.family import AutoencoderKLKVAEFamily
from vaedeploy.source.autoencoder_kl_temporal_decoder.family import TemporalDecoderFamily
from vaedeploy.source.autoencoder_kl_wan.family import QwenImage21Family, QwenImageFamily, WanFamily
from vaedeploy.source.autoencoder_tiny.family import AutoencoderTinyFamily
from vaedeploy.source.family import Architecture, Family
from vaedeploy.source.paella_vq_model.family import PaellaFamily
from vaedeploy.source.vq_model.family import VQModelFamily

FAMILIES: dict[str, Family[Any]] = {
    family.class_name: family
    for family in (
        AutoencoderKLFamily(),
        AutoencoderKLFlux2Family(),
        AutoencoderTinyFamily(),
        AutoencoderDCFamily(),
        AutoencoderKLHunyuanImageFamily(),
        QwenImageFamily(),
        WanFamily(),
        QwenImage21Family(),
        VQModelFamily(),
        PaellaFamily(),
        AsymmetricFamily(),
        TemporalDecoderFamily(),
        AutoencoderKLKVAEFamily(),
    )
}
"""Class name -> family."""

VIDEO = "it is a VAE of videos, and what is exported here takes images"
SOUND = "it is a VAE of sounds"

REFUSED = {
    "ConsistencyDecoderVAE": "its decoder draws noise, which a graph must not",
    "AutoencoderRAE": "its encoder is one of transformers' models, with sizes of its own",
    "AutoencoderKLHunyuanImageRefiner": "it is the VAE of a refiner, whose latents have an axis of frames",
    "AutoencoderOobleck": SOUND,
    "AutoencoderSAME": SOUND,
    "AutoencoderKLKVAEAudio": SOUND,
    "AutoencoderKLLTX2Audio": SOUND,
    "AutoencoderKLMiniMaxH3Audio": SOUND,
    "MMAudioVAE": SOUND,
    "AutoencoderKLAllegro": VIDEO,
    "AutoencoderKLCogVideoX": VIDEO,
    "AutoencoderKLCosmos": VIDEO,
    "AutoencoderKLHunyuanVideo": VIDEO,
    "AutoencoderKLHunyuanVideo15": VIDEO,
    "AutoencoderKLKVAEVideo": VIDEO,
    "AutoencoderKLLTXVideo": VIDEO,
    "AutoencoderKLLTX2Video": VIDEO,
    "AutoencoderKLMagvit": VIDEO,
    "AutoencoderKLMiniMaxH3": VIDEO,
    "AutoencoderKLMochi": VIDEO,
    "AutoencoderVidTok": VIDEO,
    "Kandinsky6SRVAE": VIDEO,
}
"""Classes that are known not to fit -> why."""


def family_of(architecture: Architecture) -> Family[Any]:
    """The family of an architecture."""
    return FAMILIES[architecture.class_name]
