"""Comparing the outputs of graphs and backends with PyTorch's -> ``Report``: limits, cases, bisection and the page.

May import every stage, ``numerics`` and ``page``, but not ``pipeline``. Nothing is re-exported here, so that reading a
report does not import PyTorch.
"""
