"""Rows of text that the terminal shows for the results of commands.

No other package of vaedeploy imports this one.
"""
