"""What ``vaedeploy cache`` does beside the encoder: CPU time of reading a photograph and bringing it to size, and the
time of finding pictures, which one process does for the whole data set.

python benchmarks/reading.py
"""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from vaedeploy.images.files import image_from_bytes
from vaedeploy.images.headers import image_size
from vaedeploy.images.photos import load_photos
from vaedeploy.images.sizing import Sizing, fitted
from vaedeploy.pipeline.cache.sources import find_pictures
from vaedeploy.values.latent import SizeRule

SIZES = {"1.2 megapixels": (1280, 960), "12 megapixels": (4000, 3000)}

FILES = 2000

ROUNDS = 15


def cpu(call: Callable[[], object]) -> float:
    """Milliseconds of CPU, the median."""
    taken = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        call()
        taken.append(time.process_time() - begun)
    return statistics.median(taken) * 1e3


def main() -> None:
    photo = Image.fromarray(np.asarray(load_photos()[0]))
    sizing = Sizing(SizeRule(8), buckets=1024)
    for name, size in SIZES.items():
        file = io.BytesIO()
        photo.resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=90)
        data = file.getvalue()
        pixels = image_from_bytes(data, name, most=10**9)
        fit = sizing.fit(name, pixels.shape[:2])
        decoding = cpu(lambda data=data: image_from_bytes(data, "", most=10**9))
        resizing = cpu(lambda pixels=pixels, fit=fit: fitted(pixels, fit))
        print(f"{name}, JPEG: {decoding:.1f} ms to decode, {resizing:.1f} ms to resize to {fit.size}")
    with tempfile.TemporaryDirectory() as folder:
        for number in range(FILES):
            (Path(folder) / f"{number}.jpg").write_bytes(data if number == 0 else data[:65536])
        begun = time.perf_counter()
        for picture in find_pictures(Path(folder), Path(folder) / "none", ""):
            with Path(picture.path).open("rb") as opened:
                image_size(opened, picture.key)
        print(f"finding: {(time.perf_counter() - begun) / FILES * 1e6:.0f} microseconds a picture on a local disk")


if __name__ == "__main__":
    main()
