"""The values that all stages share: halves, precisions, the latent contract, shapes, the reference VAE.

May import ``errors`` alone; nothing here reads a file or starts a library.
"""
