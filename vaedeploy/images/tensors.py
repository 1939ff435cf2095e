"""Safetensors files of latents, whose faults become LatentErrors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors

from vaedeploy.errors import LatentError
from vaedeploy.system.oserrors import reason


@contextmanager
def tensors_of(path: Path, missing: str) -> Iterator[Any]:
    """Context with the open file ``path``. Raises LatentError if the file, or what is read from it within the context,
    cannot be read; ``missing`` is the error's message for a missing file.
    """
    try:
        with faults_told(path), safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except FileNotFoundError as error:
        raise LatentError(missing) from error
    except OSError as error:
        raise LatentError(f"{path} cannot be read: {reason(error)}") from error


@contextmanager
def faults_told(name: Path | str) -> Iterator[None]:
    """Context in which content called ``name`` is read. Raises LatentError if it is damaged."""
    try:
        yield
    except safetensors.SafetensorError as error:
        raise LatentError(f"{name} is not a safetensors file, or is truncated: {error}") from error
