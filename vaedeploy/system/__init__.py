"""The disk, the process and the machine: atomic writes, locks, caches, GPUs and installed packages.

May import ``errors`` only. Knows nothing of VAEs.
"""
