"""What the disk, the process and the machine give: atomic writes, locks, caches, GPUs, installed packages.

May import ``errors`` alone; knows nothing of VAEs.
"""
