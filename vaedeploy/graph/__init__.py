"""Reference -> ONNX graph: traces each half of a VAE, and computes sizes, shapes and operation counts of a graph.

May import ``values``, ``system`` and ``errors``. Nothing is re-exported here, so that reading a graph does not import
PyTorch.
"""
