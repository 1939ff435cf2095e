"""Opens files as strangers make them, one kind of file a run, and prints what is no answer.

    python tests/support/fuzz.py onnx --cases 500

An answer is a result, or one of vaedeploy's own errors, within 20 s and 4 GB. Every case is drawn from the seed and its
number: ``--first 17 --cases 1`` runs number 17 again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import traceback
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mutations
import numpy as np
import onnx
from engine_files import claim_engine
from PIL import Image, ImageCms
from tiny_bundle import tiny_bundle
from upsamplers import upsampler

from vaedeploy.bundle import Bundle
from vaedeploy.bundle.calibration import decode_calibration
from vaedeploy.bundle.golden import decode_golden
from vaedeploy.cli import main
from vaedeploy.engines.plan import plan_builds, plan_rebuilds
from vaedeploy.engines.profile import profiles
from vaedeploy.errors import ExportError, VaedeployError
from vaedeploy.images.files import read_image
from vaedeploy.images.latents import read_latent
from vaedeploy.pipeline.codec import decode_files
from vaedeploy.pipeline.optimize import optimize_onnx
from vaedeploy.runtime import VAE

SECONDS = 20
"""A case that takes longer hangs."""

MEMORY = 4 * 2**30
"""Bytes that a case may take, beside what the process has when it begins."""

Case = Callable[[random.Random], list[Callable[[], object]]]
"""Makes a case, and gives the calls that are to answer it."""


class Hang(BaseException):
    """A case took longer than ``SECONDS``. No handler of exceptions may take it for an error of a library."""


def command(*words: object) -> Callable[[], object]:
    def run() -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                main([str(word) for word in words])
            except SystemExit as ended:
                if ended.code not in (0, 1, 2, 3):
                    raise AssertionError(f"the exit code is {ended.code}") from ended

    return run


def manifests(folder: Path) -> Case:
    """Bundles whose ``bundle.json`` is changed, and what a bundle keeps for verification and calibration."""
    bundle = tiny_bundle(folder / "bundle")
    told = claim_engine(bundle)
    told.pop("seal", None)  # which would refuse every change before it is read
    known = {*told["files"], "bundle.json"}
    calibration = {"largest_side": 512, "maxima": {"encoder": {"image": 1.0, "latent": None}}}
    golden = {
        "__metadata__": {"vae_identity": "1" * 64, "cases": '[{"name": "a", "latents": ["b"], "round_trip": true}]'},
        "a.photo": {"dtype": "U8", "shape": [1, 1, 1, 3], "data_offsets": [0, 3]},
    }

    def case(draw: random.Random) -> list[Callable[[], object]]:
        if draw.random() < 0.1:
            return [lambda: decode_calibration(mutations.text(mutations.changed(calibration, draw)).encode())]
        if draw.random() < 0.1:
            data = mutations.safetensors(mutations.changed(golden, draw), bytes(64))
            return [lambda: decode_golden(data, "1" * 64)]
        data = mutations.text(mutations.changed(told, draw)).encode("utf-8", "surrogatepass")
        if draw.random() < 0.1:
            data = mutations.damaged(data, draw)
        for path in bundle.path.rglob("*"):
            if path.is_file() and path.relative_to(bundle.path).as_posix() not in known:
                path.unlink()
        (bundle.path / "bundle.json").write_bytes(data)

        def run() -> None:
            with VAE(bundle.path, "onnxruntime-cpu", verify_hashes=False) as vae:
                vae.decode(np.zeros((1, min(vae.latent.channels, 8), 2, 2), np.float32))
                vae.encode(np.zeros((8, 8, 3), np.uint8), pad=True)

        def plan() -> None:
            opened = Bundle.open(bundle.path, verify_hashes=False)
            plan_rebuilds(opened)
            for name in opened.manifest.engines:
                opened.manifest.build_command(opened.path, name)

        inspections = [
            command("inspect", bundle.path, *more) for more in ((), ("--json",), ("--check",), ("--layers",))
        ]
        return [*inspections, run, plan]

    return case


def profile_files(folder: Path) -> Case:
    """Profiles of GPUs."""
    good = {
        "gpu": "A GPU",
        "compute_capability": "8.9",
        "memory_gib": 24,
        "backend": "tensorrt-rtx",
        "precision": "fp16",
        "cuda_graphs": True,
        "options": {"tf32": False, "optimization_level": 3, "hardware_compatibility": "none"},
        "shapes": {
            "small": {"height": 64, "width": 64},
            "any": {"batch": [1, 1, 2], "height": [64, 128, 256], "width": 64},
        },
    }

    def toml(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{json.dumps(str(key))} = {toml(item)}" for key, item in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(toml, value)) + "]"
        return mutations.text(value)

    def case(draw: random.Random) -> list[Callable[[], object]]:
        table = mutations.changed(good, draw)
        lines = (
            "\n".join(f"{json.dumps(str(k))} = {toml(v)}" for k, v in table.items()) if isinstance(table, dict) else ""
        )
        data = lines.encode("utf-8", "surrogatepass")
        (folder / "mine.toml").write_bytes(mutations.damaged(data, draw) if draw.random() < 0.3 else data)

        def read() -> None:
            profiles(folder)["mine"].of_factor(8)

        return [read, lambda: plan_builds(["mine"], folder=folder), command("profiles", "--profiles", folder)]

    return case


def latents(folder: Path) -> Case:
    """Latent files."""
    vae = VAE(tiny_bundle(folder / "bundle").path)
    spec = '{"channels": 2, "factor": 4, "scale": [1.0, 2.0], "shift": 0.0, "sampled": true}'
    header = {
        "__metadata__": {"vaedeploy.identity": "0" * 64, "vaedeploy.latent": spec, "vaedeploy.size": "[8, 8]"},
        "latent": {"dtype": "F32", "shape": [1, 2, 2, 2], "data_offsets": [0, 32]},
    }

    def case(draw: random.Random) -> list[Callable[[], object]]:
        changed = mutations.changed(header, draw)
        if draw.random() < 0.4:
            changed = json.loads(json.dumps(header))
            key = draw.choice(("vaedeploy.latent", "vaedeploy.size"))
            document = json.loads(changed["__metadata__"][key])
            changed["__metadata__"][key] = mutations.text(mutations.changed(document, draw))
        data = mutations.safetensors(changed, draw.randbytes(32) if draw.random() < 0.2 else bytes(32))
        path = folder / "latent.safetensors"
        path.write_bytes(mutations.damaged(data, draw) if draw.random() < 0.3 else data)
        return [lambda: read_latent(path), lambda: decode_files(vae, path, folder / "image.png")]

    return case


def images(folder: Path) -> Case:
    """Images of every format that is read."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 4), np.uint8)
    pixels[..., 3] = 255
    colour, opaque = Image.fromarray(pixels[..., :3]), Image.fromarray(pixels)
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    made = []
    for image, form, options in (
        (colour, "PNG", {"icc_profile": profile, "exif": exif}),
        (opaque, "PNG", {}),
        (deep, "PNG", {}),
        (colour.quantize(16), "PNG", {"transparency": 3}),
        (colour, "JPEG", {"icc_profile": profile, "exif": exif}),
        (colour.convert("CMYK"), "JPEG", {}),
        (colour, "MPO", {"save_all": True, "append_images": [colour]}),
        (opaque, "WEBP", {"lossless": True}),
        (colour, "GIF", {"save_all": True, "append_images": [colour]}),
        (opaque, "TIFF", {"compression": "tiff_lzw"}),
        (deep, "TIFF", {}),
        (colour, "BMP", {}),
        (colour, "PPM", {}),
        (colour, "JPEG2000", {}),
        (colour, "AVIF", {}),
    ):
        data = io.BytesIO()
        image.save(data, form, **options)
        made.append((form, data.getvalue()))

    def case(draw: random.Random) -> list[Callable[[], object]]:
        form, data = draw.choice(made)
        data = _png(data, draw) if form == "PNG" and draw.random() < 0.7 else mutations.damaged(data, draw)
        path = folder / f"image.{form.lower()}"
        path.write_bytes(data)
        return [lambda: read_image(path)]

    return case


def _png(data: bytes, draw: random.Random) -> bytes:
    """A PNG file with its chunks changed, and their checksums right."""
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    index = draw.randrange(len(chunks))
    kind, body = chunks[index]
    what = draw.randrange(5)
    if what == 0 and kind == b"IHDR":
        body = struct.pack(">IIBBBBB", *(draw.choice((0, 1, 20, 9000, 2**31 - 1)) for _ in "wh"), 8, 2, 0, 0, 0)
        chunks[index] = kind, body
    elif what == 1:
        del chunks[index]
    elif what == 2:
        chunks.insert(index, draw.choice(chunks))
    elif what == 3:
        chunks[index] = draw.choice((b"tRNS", b"iCCP", b"eXIf", b"zTXt", b"acTL", b"PLTE", b"iTXt")), body
    else:
        chunks[index] = kind, mutations.damaged(body, draw)
    parts = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks]
    return data[:8] + b"".join(parts)


def graphs(folder: Path) -> Case:
    """Anybody's ONNX graphs."""
    models = [onnx.load(upsampler(folder / "first.onnx", kept=10**9))]
    models.append(onnx.load(tiny_bundle(folder / "bundle").graph("decoder")))

    def case(draw: random.Random) -> list[Callable[[], object]]:
        path, data = folder / "in.onnx", mutations.changed_graph(draw.choice(models), draw).SerializeToString()
        path.write_bytes(mutations.damaged(data, draw) if draw.random() < 0.1 else data)
        target, precision = draw.choice((("onnxruntime", None), ("onnxruntime", "fp16"), ("tensorrt", "bf16")))

        def optimize() -> None:
            optimize_onnx(path, folder / "out.onnx", target=target, precision=precision, force=True)

        return [optimize]

    return case


KINDS = {"manifest": manifests, "profile": profile_files, "latent": latents, "image": images, "onnx": graphs}


def fault(call: Callable[[], object]) -> str | None:
    """What is wrong with how ``call`` ended; None for an answer."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        call()
    except VaedeployError as error:
        return str(error) if isinstance(error, ExportError) and "a fault of vaedeploy" in str(error) else None
    except (Exception, Hang) as error:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if "/vaedeploy/" in frame.filename]
        place = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
        return f"{type(error).__name__} at {place}: {str(error)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None


def _hang(*_: object) -> None:
    raise Hang(f"longer than {SECONDS} s")


def fuzz(kind: str, first: int, cases: int, seed: int) -> int:
    """Run the cases, print their faults, and return how many there were."""
    warnings.simplefilter("ignore")
    logging.disable()
    signal.signal(signal.SIGALRM, _hang)
    folder = Path(tempfile.mkdtemp(prefix="vaedeploy-fuzz-"))
    faults = 0
    try:
        case = KINDS[kind](folder)
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
        for number in range(first, first + cases):
            sys.stderr.write(f"{kind} {number}\n")  # the last line names a case that ends the process
            for call in case(random.Random(f"{kind} {seed} {number}")):
                if told := fault(call):
                    sys.stdout.write(f"{kind} {number}: {told!r}\n")
                    sys.stdout.flush()
                    faults += 1
                    break
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return faults


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sys.exit(min(1, fuzz(options.kind, options.first, options.cases, options.seed)))
