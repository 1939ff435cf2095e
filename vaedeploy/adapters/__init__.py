"""Bundles in place of other libraries' VAEs, one module per library. Each imports its library at the top."""
