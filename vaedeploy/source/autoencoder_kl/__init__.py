"""diffusers' ``AutoencoderKL``: its config, its two halves as modules, and the names of its tensors.

May import ``values``, ``system`` and ``errors``. It re-exports nothing, because ``modules`` imports PyTorch.
"""
