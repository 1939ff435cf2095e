"""Results as rows of text for the terminal, with one module for each kind of result.

May import whatever ``cli`` may; only ``cli`` imports it.
"""
