"""diffusers' ``AutoencoderKLWan`` and ``AutoencoderKLQwenImage``, the same network with two configs: one frame of it.

May import ``values``, ``system`` and ``errors``. It re-exports nothing, because ``modules`` imports PyTorch.
"""
