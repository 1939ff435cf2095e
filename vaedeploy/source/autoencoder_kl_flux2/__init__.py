"""diffusers' ``AutoencoderKLFlux2``: its config, its packed halves, and the contract in its weights.

May import ``values``, ``system`` and ``errors``.
"""
