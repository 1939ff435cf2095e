"""Bundles in the place of other libraries' VAEs, one module a library. Each imports its library at the top."""
