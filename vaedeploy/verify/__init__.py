"""Outputs of graphs and backends against PyTorch -> ``Report``: limits, cases, bisection, and the page of it.

May import every stage, ``numerics`` and ``page``, but no verb. Nothing is re-exported here, so that reading a report
does not import PyTorch.
"""
