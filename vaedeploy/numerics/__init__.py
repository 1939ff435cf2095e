"""Measures on the CPU how a graph computes: float64, emulated half precision, largest magnitudes, divergence.

May import ``rewrite``, ``runtime``, ``graph`` and what is below them. Nothing is re-exported here, so that importing
one module does not import the libraries of another.
"""
