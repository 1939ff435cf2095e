"""Graph and GPU profile -> TensorRT engine, built in a separate process.

May import ``bundle``, ``graph``, ``source`` and what is below them; knows nothing of the other stages.
"""
