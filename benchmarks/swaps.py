"""Show what ``vaedeploy compare`` finds when latents of the demo VAEs are altered in a known way.

python benchmarks/swaps.py DEMO_BUNDLE DEMO_MSE_BUNDLE --images DIR

It prints a table with a row, and the seconds that it took, for each alteration.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vaedeploy.images.files import read_image
from vaedeploy.images.photos import photo_files, shrink_middle
from vaedeploy.pipeline.compare.swaps import SWAP_PHOTOS, SWAP_SIDE, swap_matrix
from vaedeploy.runtime import VAE

Change = Callable[[np.ndarray], np.ndarray]


def same(latent: np.ndarray) -> np.ndarray:
    return latent


@dataclass(frozen=True)
class Altered:
    """A VAE whose latents are changed: ``encoded`` after its encoder, ``decoded`` before its decoder."""

    vae: VAE
    decoded: Change = same
    encoded: Change = same

    @property
    def latent(self):
        return self.vae.latent

    def encode(self, image):
        return self.encoded(self.vae.encode(image)).astype(np.float32)

    def decode(self, latent):
        return self.vae.decode(self.decoded(latent).astype(np.float32))


def alterations(channels: int) -> dict[str, tuple[Change, Change]]:
    """Name -> (the change before the decoder, the change after the encoder)."""
    rng = np.random.default_rng(0)
    order = rng.permutation(channels)
    back = np.argsort(order)
    signs = np.where(np.arange(channels) % 3 == 0, -1, 1)[:, None, None]
    turn = np.linalg.qr(rng.normal(size=(channels, channels)))[0]
    scales = {
        f"decoder: latent times {s:g}": (lambda z, s=s: z * s, same) for s in (0.3, 0.5, 0.7, 0.9, 1.1, 1.4, 2, 3)
    }
    return {
        "nothing": (same, same),
        **scales,
        "decoder: latent less 0.228": (lambda z: z - 0.228, same),
        "decoder: all signs": (lambda z: -z, same),
        "decoder: a third of the signs": (lambda z: z * signs, same),
        "decoder: order": (lambda z: z[:, order], same),
        "both: latent times 1.8": (lambda z: z / 1.8, lambda z: z * 1.8),
        "both: all signs": (lambda z: -z, lambda z: -z),
        "both: order, and times 1.5": (lambda z: z[:, back] / 1.5, lambda z: z[:, order] * 1.5),
        "both: rotated": (
            lambda z: np.einsum("ji,bjhw->bihw", turn, z),
            lambda z: np.einsum("ij,bjhw->bihw", turn, z),
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs=2, type=Path)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--only", default="", help="only alterations whose name contains this")
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # the bundles may be unverified
    files = photo_files(given.images)
    chosen = [files[n] for n in np.linspace(0, len(files) - 1, min(SWAP_PHOTOS, len(files))).round().astype(int)]
    crops = [shrink_middle(read_image(file), 8, SWAP_SIDE) for file in chosen]
    print("| altered | verdict | cause | own dB | swapped dB | corrected dB | scale | shift | seen | s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    with VAE(given.bundles[0]) as one, VAE(given.bundles[1]) as other:
        for name, (decoded, encoded) in alterations(one.latent.channels).items():
            if given.only not in name:
                continue
            started = time.perf_counter()
            swaps, _ = swap_matrix({"one": one, "other": Altered(other, decoded, encoded)}, crops)
            seconds = time.perf_counter() - started
            (swap,) = (s for s in swaps if (s.encoder, s.decoder) == ("one", "other"))
            levels = ["" if v is None else f"{v:.1f}" for v in (swap.own_psnr, swap.psnr, swap.restored_psnr)]
            found = swap.transform
            change = ("", "") if found is None else (f"{found.scale:.3f}", f"{found.shift:+.3f}")
            seen = ", ".join(finding.name for finding in swap.findings) or "nothing"
            print(
                "| "
                + " | ".join([name, swap.verdict, swap.cause or "", *levels, *change, seen, f"{seconds:.0f}"])
                + " |"
            )


if __name__ == "__main__":
    main()
