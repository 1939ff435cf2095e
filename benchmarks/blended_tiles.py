"""Measure what decoding in blended tiles, as diffusers does it, changes on photographs, and what decoding by rows does.

    python benchmarks/blended_tiles.py [--photos DIR] [--json FILE] [--picture FILE]

The demo VAE decodes each picture at once, by rows in the least memory that they can take, and in tiles of 64 latents
(512 pixels) that overlap by a quarter, on the CPU. Errors are those against the decode at once, in 8-bit levels.
``--picture`` writes the first picture and both errors, at a quarter of its size: 16 times the difference, on mid grey.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from blended import decode_in_tiles  # noqa: E402

from vaedeploy.images.files import read_image  # noqa: E402
from vaedeploy.images.photos import Photo, load_photos  # noqa: E402
from vaedeploy.images.pixels import to_levels  # noqa: E402
from vaedeploy.pipeline.export import export_vae  # noqa: E402
from vaedeploy.quality import find_faults, measure_quality  # noqa: E402
from vaedeploy.runtime import VAE  # noqa: E402

BORDERS = 384
"""Distance of the tiles' beginnings, in pixels."""


def pictures(folder: Path) -> dict[str, Photo]:
    """1024 pixels high or so: Kodak photographs enlarged or side by side, and two of scikit-image's enlarged."""
    kodak = {number: read_image(folder / f"kodim{number:02}.png") for number in (3, 13, 14, 15, 16)}
    mosaic = [np.concatenate([kodak[left], kodak[left + 1]], axis=1) for left in (13, 15)]
    astronaut, coffee, _ = load_photos()
    return {
        "kodim15, enlarged": enlarged(kodak[15]),
        "kodim03, enlarged": enlarged(kodak[3]),
        "kodim13 to 16, side by side": np.concatenate(mosaic),
        "astronaut, enlarged": enlarged(astronaut),
        "coffee, enlarged": enlarged(coffee[:384, :592]),
    }


def enlarged(photo: Photo) -> Photo:
    height, width, _ = photo.shape
    return np.asarray(Image.fromarray(photo).resize((2 * width, 2 * height), Image.Resampling.LANCZOS))


def row(reference: Photo, candidate: Photo) -> dict[str, Any]:
    error = np.abs(candidate.astype(np.int16) - reference)
    quality = measure_quality(reference, candidate, tile=BORDERS)
    return {
        "mean": round(float(error.mean()), 3),
        "p99.9": round(float(np.percentile(error, 99.9)), 1),
        "max": int(error.max()),
        "tone_worst": round(quality.tone.worst, 2),
        "tone_spread": round(quality.tone.spread, 2),
        "seams": round(quality.artifacts.seams or 0.0, 3),
        "findings": [finding.name for finding in find_faults(quality)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=ROOT.parent / "shared" / "images" / "kodak")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        bundle = export_vae("demo", out=Path(temporary) / "demo", verify=False)
        with VAE(bundle.path, max_memory=1 << 50) as vae:
            for name, photo in pictures(args.photos).items():
                latent = vae.encode(photo[None])
                (whole,) = vae.decode(latent)
                by_rows, share = decode_by_rows(bundle.path, latent)
                image = decode_in_tiles(lambda part: vae.decode(part, output="float"), latent)
                (tiled,) = to_levels(image)
                rows = {**row(whole, by_rows), "differ": float((by_rows != whole).mean()), "memory": share}
                results[name] = {"size": list(whole.shape[:2]), "rows": rows, "blended": row(whole, tiled)}
                print(name, results[name], flush=True)
                if args.picture and len(results) == 1:
                    show(whole, by_rows, tiled).save(args.picture)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


def decode_by_rows(bundle: Path, latent: Any) -> tuple[Photo, float]:
    """The image in the least memory, and this as a share of what the whole graph takes."""
    with VAE(bundle, max_memory=1 << 50) as vae:
        whole = vae.plan(*(side * vae.latent.factor for side in latent.shape[2:]))["decoder"]
    with VAE(bundle, max_memory=whole.least) as vae:
        (image,) = vae.decode(latent)
    return image, round(whole.least / whole.bytes, 3)


def show(whole: Photo, *others: Photo) -> Image.Image:
    """The picture, and behind it 16 times the difference of each of the others."""
    differences = [(128 + 16 * (o.astype(np.int16) - whole)).clip(0, 255).astype(np.uint8) for o in others]
    both = Image.fromarray(np.concatenate([whole, *differences], axis=1))
    return both.resize((both.width // 4, both.height // 4), Image.Resampling.BOX)


if __name__ == "__main__":
    main()
