"""diffusers' ``VQModel`` as the MoVQ of Kandinsky 2 and 3, which is decoded without its codebook.

May import ``values``, ``system`` and ``errors``. It re-exports nothing, because ``modules`` imports PyTorch.
"""
