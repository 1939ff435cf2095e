"""diffusers' ``AsymmetricAutoencoderKL``, the VAE of Stable Diffusion 1 with a larger decoder, without a mask.

May import ``values``, ``system`` and ``errors``.
"""
