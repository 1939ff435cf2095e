"""Images and latents as files and as arrays, and the photographs that VAEs are verified on.

May import ``values``, ``system`` and ``errors``.
"""
