"""A VAE called for long: from many threads at once, with each result compared, and with the memory that it leaves.

python benchmarks/reliability.py threads build/demo
python benchmarks/reliability.py memory build/demo
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from vaedeploy.runtime import VAE
from vaedeploy.system.heap import trim_heap

SIDE = 64
"""Height and width of the images, in pixels."""

DIFFERENT = 16
"""How many different images and latents there are."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["threads", "memory"])
    parser.add_argument("bundle", type=Path, help="a bundle's folder")
    parser.add_argument("--threads", type=int, default=64, help="how many threads call at once [64]")
    parser.add_argument("--calls", type=int, help="calls a thread, [700] of threads and [5000] of memory")
    options = parser.parse_args()
    with VAE(options.bundle, "onnxruntime-cpu", threads=1) as vae:
        if options.what == "threads":
            threads(vae, options.threads, options.calls or 700)
        else:
            memory(vae, options.calls or 5000)


def inputs(vae: VAE) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    images = list(rng.integers(0, 256, (DIFFERENT, 1, SIDE, SIDE, 3), np.uint8))
    side = SIDE // vae.latent.factor
    return images, list(rng.standard_normal((DIFFERENT, 1, vae.latent.channels, side, side), np.float32))


def threads(vae: VAE, count: int, calls: int) -> None:
    images, latents = inputs(vae)
    encoded, decoded = [vae.encode(image) for image in images], [vae.decode(latent) for latent in latents]

    def work(thread: int) -> int:
        wrong = 0
        for call in range(calls):
            which = (7 * thread + call) % DIFFERENT
            if (thread + call) % 2:
                wrong += not np.array_equal(vae.encode(images[which]), encoded[which])
            else:
                wrong += not np.array_equal(vae.decode(latents[which]), decoded[which])
        return wrong

    started = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        wrong = sum(pool.map(work, range(count)))
    took = time.perf_counter() - started
    print(f"{count} threads x {calls} calls at {SIDE}x{SIDE}: {wrong} results differ ({took:.0f} s)")


def memory(vae: VAE, calls: int) -> None:
    images, latents = inputs(vae)
    at = {calls // 10, calls // 2, calls}
    for call in range(1, calls + 1):
        vae.encode(images[call % DIFFERENT], sample=True, seed=call)
        vae.decode(latents[call % DIFFERENT])
        if call in at:
            trim_heap()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            print(f"after {call:,} encodes and decodes at {SIDE}x{SIDE}: {pages * 4096 / 2**20:.1f} MiB resident")


if __name__ == "__main__":
    main()
