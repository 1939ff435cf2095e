"""The public verbs, one a module: each joins stages into what a command, or a function of ``vaedeploy``, does.

May import every stage; only the command line imports it. Nothing is re-exported here, so that a verb imports only the
libraries that it needs.
"""
