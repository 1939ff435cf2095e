"""diffusers' ``PaellaVQModel``, the last decoder of Stable Cascade and Würstchen.

May import ``values``, ``system`` and ``errors``. It re-exports nothing, because ``modules`` imports PyTorch.
"""
