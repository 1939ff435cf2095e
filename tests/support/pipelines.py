"""Functions of diffusers' pipelines, which themselves need transformers to be imported."""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch


def pipeline_function(module: str, name: str) -> Callable[..., Any]:
    """The static method ``name`` that ``diffusers.pipelines.MODULE`` defines, taken out of its file."""
    package = find_spec("diffusers")
    assert package is not None
    assert package.origin is not None
    file = Path(package.origin).parent / "pipelines" / f"{module.replace('.', '/')}.py"
    if not file.exists() and version("diffusers").startswith("0.41."):
        pytest.skip(f"diffusers 0.41, the oldest, has no {module}")
    nodes = (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef))
    found = next(node for node in nodes if node.name == name)
    found.decorator_list = []
    names: dict[str, Any] = {"torch": torch}
    exec(compile(ast.Module([found], []), str(file), "exec"), names)
    function: Callable[..., Any] = names[name]
    return function
