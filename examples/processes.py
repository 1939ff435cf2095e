"""A folder of pictures, encoded by several processes: each opens the bundle once, and they share the cores.

    python examples/processes.py mse840k photos latents --processes 4

One process and several threads do the same in less memory; processes are for work beside the VAE that holds Python's
lock, such as reading pictures.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from functools import partial
from pathlib import Path

from PIL import Image
from safetensors.numpy import save_file

import vaedeploy as vd


def start(bundle: str, threads: int) -> None:
    global vae
    vae = vd.VAE(bundle, threads=threads)


def encode(picture: Path, folder: Path) -> Path:
    image = Image.open(picture)
    out = folder / f"{picture.stem}.safetensors"
    # As vaedeploy encode does, so that vaedeploy decode knows the size before padding, and a latent of another VAE.
    metadata = {
        "vaedeploy.identity": vae.manifest.vae.identity,
        "vaedeploy.size": json.dumps([image.height, image.width]),
    }
    save_file({"latent": vae.encode(image, pad=True)}, out, metadata)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("pictures", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    options.out.mkdir(exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // options.processes)
    # spawn: a forked process would have a copy of ONNX Runtime's threads, which do not run there.
    context = multiprocessing.get_context("spawn")
    with context.Pool(options.processes, start, (options.bundle, threads)) as pool:
        pictures = sorted(options.pictures.iterdir())
        for out in pool.imap(partial(encode, folder=options.out), pictures):
            print(out)


if __name__ == "__main__":
    main()
