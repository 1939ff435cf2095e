"""diffusers' ``AutoencoderKLTemporalDecoder``, the VAE of Stable Video Diffusion: one frame of it.

May import ``values``, ``system`` and ``errors``. It re-exports nothing, because ``modules`` imports PyTorch.
"""
