"""diffusers' ``AutoencoderKLKVAE``: its config and its family.

May import ``values``, ``system`` and ``errors``.
"""
