"""Results as rows of text for the terminal, one module for each kind of result.

May import whatever the command line may; nothing else imports it.
"""
