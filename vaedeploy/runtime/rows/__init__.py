"""Computes a half by rows: any size within the memory at hand, with the result of the whole graph.

``plan`` says what is stored and what is computed again, ``strips`` runs the pieces, ``budget`` shares memory among
calls, and ``session`` decides which calls run whole and which by rows. Needs numpy and ONNX Runtime alone.
"""
