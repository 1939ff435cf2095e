"""What ``VAE`` takes and gives, for type checkers: numpy in, numpy out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

HostImage: TypeAlias = "NDArray[np.uint8] | NDArray[np.floating[Any]] | Image.Image"
"""Images whose latent is a numpy array."""

HostLatent: TypeAlias = NDArray[np.floating[Any]]
"""A latent whose images are numpy arrays."""


class SupportsDLPack(Protocol):
    """An array of any library that supports DLPack. What is in the host's memory gives numpy arrays, which support it
    too; what is in the GPU's memory gives arrays there.
    """

    def __dlpack__(self, *, stream: Any = ...) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...


AnyArray = TypeVar("AnyArray", bound=SupportsDLPack)


class Moments(NamedTuple, Generic[AnyArray]):
    """The distribution of an image's latent: mean and standard deviation, each (B, C, h, w) float32, scaled and shifted
    as the diffusion model sees them.
    """

    mean: AnyArray
    std: AnyArray
