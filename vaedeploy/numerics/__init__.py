"""How a graph computes, digit by digit, on a CPU: float64, emulated half precision, largest magnitudes, divergence.

May import ``rewrite``, ``runtime``, ``graph`` and what is below them. Nothing is re-exported here, so that one module
does not import the libraries of another.
"""
