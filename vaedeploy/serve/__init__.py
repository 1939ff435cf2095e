"""Bundles behind a port: the Open Inference Protocol (KServe v2) for programs, and routes for people.

    vaedeploy serve mse840k

``docs/services.md`` describes the routes. May import ``runtime``, ``bundle``, ``images`` and what is below them, and
uvicorn, but no library that is needed only to make a bundle.
"""
