"""Graph and GPU profile -> TensorRT engine, built in a process of its own.

May import ``bundle``, ``graph``, ``source`` and what is below them; knows nothing of other stages.
"""
