"""The values that every stage shares: halves, precisions, the latent contract, shapes and the reference VAE.

May import ``errors`` only. Nothing here reads a file or starts a library.
"""
