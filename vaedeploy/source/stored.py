"""What a weights file holds, before its tensors are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Stored:
    """A tensor in a weights file.

    shape: as the file states it. read: reads it, as a view of the mapped file where possible. Raises WeightsError where
    the bytes do not make such a tensor.
    """

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class Contents:
    """The tensors of a weights file by their names, and what the file states about itself."""

    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str] = field(default_factory=dict)
