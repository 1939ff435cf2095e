"""Reference -> ONNX graph: tracing it, and reading sizes, shapes and operation counts from it.

May import ``values``, ``system`` and ``errors``. Nothing is re-exported here, so that reading a graph does not import
PyTorch.
"""
