"""LPIPS and DISTS: how different two images are to a trained vision network, if its weights are at hand.

LPIPS: Zhang, Isola, Efros, Shechtman and Wang 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual
Metric", version 0.1, on AlexNet. DISTS: Ding, Ma, Wang and Simoncelli 2020, "Image Quality Assessment: Unifying
Structure and Texture Similarity", on VGG16.

torchmetrics computes both. It has the papers' trained layers, and takes the networks from torchvision, which would
download their weights: a metric whose file is missing is left out before that, with a sentence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec
import numpy as np
from numpy.typing import NDArray

from vaedeploy.images.opacity import on_white
from vaedeploy.system.installs import missing_packages, pip_install, version_of
from vaedeploy.system.torch_state import plain_torch

if TYPE_CHECKING:
    import torch

    Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

PACKAGES = {"torch": "torch", "torchmetrics": "torchmetrics", "torchvision": "torchvision"}
"""The packages that compute both metrics -> their import names."""


class Perceptual(msgspec.Struct, frozen=True, omit_defaults=True):
    """How different two images are to a network. 0 is equal, and lower is closer; None where it was not measured.

    lpips: from 0 to about 1: how far apart AlexNet's features are, place by place.
    dists: 0 to 1: how far apart the means of VGG16's features are, and how little they vary together. Another sample of
        the same texture changes it little.
    """

    lpips: float | None = None
    dists: float | None = None


@dataclass(frozen=True)
class PerceptualMetrics:
    """The metrics that can be computed here. left_out: sentences on the others, on why and what to do."""

    lpips: Distance | None
    dists: Distance | None
    left_out: tuple[str, ...]

    def measure(self, reference: NDArray[np.uint8], candidate: NDArray[np.uint8]) -> Perceptual | None:
        """The metrics that can be computed here, for two images at their own size; None if there are none.

        reference, candidate: (H, W, 3) or (H, W, 4) uint8, of one shape, with sides of 32 pixels or more. Those with
            opacity are seen in front of white.
        """
        if self.lpips is None and self.dists is None:
            return None
        with plain_torch():
            images = _tensor(reference), _tensor(candidate)
            return Perceptual(*(None if m is None else float(m(*images)) for m in (self.lpips, self.dists)))


def load_perceptual() -> PerceptualMetrics:
    """The metrics whose packages and weights are on this machine. Nothing is downloaded."""
    if fault := _packages_fault():
        return PerceptualMetrics(None, None, (f"LPIPS and DISTS were left out: {fault}",))
    from torchvision.models import AlexNet_Weights, VGG16_Weights

    lpips = _load("AlexNet", AlexNet_Weights.DEFAULT.url, _lpips)
    dists = _load("VGG16", VGG16_Weights.DEFAULT.url, _dists)
    return PerceptualMetrics(
        None if isinstance(lpips, str) else lpips,
        None if isinstance(dists, str) else dists,
        tuple(f"{n} was left out: {m}" for n, m in (("LPIPS", lpips), ("DISTS", dists)) if isinstance(m, str)),
    )


def _packages_fault() -> str | None:
    """Why the packages compute neither metric; None where they can be imported."""
    if missing := missing_packages(PACKAGES):
        names = missing[0] if len(missing) == 1 else f"{', '.join(missing[:-1])} and {missing[-1]}"
        which = f"the package {names} is" if len(missing) == 1 else f"the packages {names} are"
        return f"{which} not installed. Run: {pip_install()} {' '.join(missing)}"
    try:
        import torchvision  # noqa: F401
    except Exception as error:  # one built for another PyTorch may raise anything
        return (
            f"torchvision {version_of('torchvision')} cannot be imported beside torch {version_of('torch')} "
            f"({_first_line(error)}). Install the torchvision that was built for it, from where it came"
        )
    return None


def _load(network: str, url: str, load: Callable[[], Distance]) -> Distance | str:
    """The metric that ``load`` gives, or why it cannot. network: the one it needs, which torchvision has at ``url``."""
    import torch

    file = Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(url).path).name)
    if not file.is_file():
        return f"{network}'s weights are not on this machine. To have it measured, put {url} into {file.parent}"
    try:
        with plain_torch():
            return load()
    except ImportError as error:
        return (
            f"torchmetrics {version_of('torchmetrics')} cannot be used ({_first_line(error)}). Run: {pip_install()} "
            "--upgrade torchmetrics"
        )
    except Exception as error:  # PyTorch may raise anything for a broken file
        return f"{file} cannot be loaded ({_first_line(error)}). Put {url} in its place"


def _lpips() -> Distance:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    metric: Any = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)

    def distance(reference: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = metric(reference, candidate)
        metric.reset()  # it would keep each value, for a mean
        return value

    return distance


def _dists() -> Distance:
    # The class for users, DeepImageStructureAndTextureSimilarity, would load VGG16 again for each image.
    from torchmetrics.functional.image.dists import DISTSNetwork

    network: Distance = DISTSNetwork()
    return network


def _tensor(image: NDArray[np.uint8]) -> torch.Tensor:
    """(H, W, 3) or (H, W, 4) uint8 as (1, 3, H, W) float32 in [0, 1]."""
    import torch

    planes = np.moveaxis(on_white(image), -1, 0)[None]
    return torch.from_numpy(planes.astype(np.float32, order="C") / np.float32(255))


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
