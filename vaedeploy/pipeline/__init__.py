"""The public functions of ``vaedeploy``, one module each: every one joins stages into what a command does.

May import every stage; only the command line imports it. Nothing is re-exported here, so that each function imports
only the libraries that it needs.
"""
