"""Compare what decodes and encodes on a CPU: time, peak memory and error, each peer in a process of its own, in turns.

    python benchmarks/peers.py --work DIR [--sizes 256 512] [--rounds 5] [--peers NAME ...] [--python PEER=FILE ...]
        [--optimum DIR] [--json FILE]
    python benchmarks/peers.py --show [--picture FILE.svg]      # what --json has, as tables and as a picture

The weights are those of the full-size architecture with seed 0, and every peer has them. The peers:

torch-fp32, torch-bf16: PyTorch, eager. compile-fp32, compile-bf16: with torch.compile. bf16 has channels last.
onnxruntime: the portable graph, as PyTorch's exporter writes it, in ONNX Runtime with its defaults.
optimum: the graph that optimum-onnx exports, in the same way.
openvino-optimum-fp32, openvino-optimum-bf16: that graph in OpenVINO.
vaedeploy: this package, onnxruntime-cpu. vaedeploy-openvino-fp32, vaedeploy-openvino-bf16: by OpenVINO.

--work: a folder for the bundle, the weights and the references in float64, which are made once. --optimum: the folder
that ``export_optimum.py`` wrote; without it its peers are left out. --python: the Python of a peer's environment, such
as optimum=ENV/bin/python; this one where none is given. Peers that are not installed are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

PARTS = ("decoder", "encoder")

PEERS = (
    "torch-fp32",
    "torch-bf16",
    "compile-fp32",
    "compile-bf16",
    "onnxruntime",
    "optimum",
    "openvino-optimum-fp32",
    "openvino-optimum-bf16",
    "vaedeploy",
    "vaedeploy-openvino-fp32",
    "vaedeploy-openvino-bf16",
)

PACKAGES = ("torch", "onnxruntime", "openvino", "optimum-onnx")

RESULTS = Path(__file__).parent / "results" / "peers.json"

MODEL = ("mse840k", "random:0")

SCALE = 0.18215
"""Of the latents of that VAE, which the graphs of a bundle apply."""


def resident() -> tuple[float, float]:
    """Resident memory now, and its peak since it was last reset, in MB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(status[key].split()[0]) / 1000 for key in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


# What a peer's process does


def open_torch(peer: str, part: str, work: Path) -> Callable[[np.ndarray], np.ndarray]:
    import torch

    from vaedeploy.source import load_reference

    half = getattr(load_reference(*MODEL), part).eval()
    dtype = torch.bfloat16 if peer.endswith("bf16") else torch.float32
    half = half.to(dtype)
    if dtype == torch.bfloat16:
        half = half.to(memory_format=torch.channels_last)
    if peer.startswith("compile"):
        half = torch.compile(half, dynamic=False)

    def run(value: np.ndarray) -> np.ndarray:
        given = torch.from_numpy(value).to(dtype)
        if dtype == torch.bfloat16:
            given = given.to(memory_format=torch.channels_last)
        with torch.inference_mode():
            output = half(given)
        return (output[0] if isinstance(output, tuple) else output).float().numpy()

    return run


def open_onnxruntime(graph: Path) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names, first = [value.name for value in session.get_outputs()], session.get_inputs()[0].name
    return lambda value: session.run(names[:1], {first: value})[0]


def open_openvino(graph: Path, precision: str) -> Callable[[np.ndarray], np.ndarray]:
    from vaedeploy.runtime import openvino

    core = openvino.load_library().Core()
    hint = {"INFERENCE_PRECISION_HINT": openvino.TYPES[precision]}  # type: ignore[index]
    request = core.compile_model(core.read_model(graph), "CPU", hint).create_infer_request()

    def run(value: np.ndarray) -> np.ndarray:
        return np.array(request.infer({0: value})[0])

    return run


def open_vaedeploy(peer: str, part: str, bundle: Path) -> Callable[[np.ndarray], np.ndarray]:
    from vaedeploy.runtime import VAE

    _, _, precision = peer.rpartition("-openvino-")
    vae = VAE(bundle, "openvino", precision=precision) if precision != peer else VAE(bundle, "onnxruntime-cpu")
    if part == "encoder":
        vae.encode(np.zeros((1, 3, 64, 64), np.float32))  # which loads the graph, as opening the other peers does
        return vae.encode
    vae.decode(np.zeros((1, 4, 8, 8), np.float32))
    return lambda value: vae.decode(value, output="float")


def open_peer(peer: str, part: str, work: Path, optimum: Path | None) -> Callable[[np.ndarray], np.ndarray]:
    if peer.startswith(("torch", "compile")):
        return open_torch(peer, part, work)
    if peer.startswith("vaedeploy"):
        return open_vaedeploy(peer, part, work / "bundle")
    if peer == "onnxruntime":
        return open_onnxruntime(work / "bundle" / f"{part}.onnx")
    if optimum is None:
        raise FileNotFoundError("--optimum is not given")
    graph = optimum / f"optimum-{part}.onnx"
    return open_onnxruntime(graph) if peer == "optimum" else open_openvino(graph, peer.rpartition("-")[2])


def serve_peer(peer: str, part: str, work: Path, optimum: Path | None) -> None:
    """Answer each line of stdin, a size, with a line of JSON. The first answer says what the peer is."""
    run = open_peer(peer, part, work, optimum)
    # PyTorch's modules and optimum's graphs know nothing of the latent's scale.
    scale = np.float32(SCALE if peer.startswith(("torch", "compile")) or "optimum" in peer else 1)
    packages = {}
    for package in PACKAGES:
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            continue
    print(json.dumps({"versions": packages, "loaded MB": resident()[0]}), flush=True)
    for line in sys.stdin:
        size = int(line)
        data = np.load(work / f"{part}-{size}.npz")
        value, expected = data["input"], data.get("output")
        value = value / scale if part == "decoder" else value
        before = resident()[0]
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        start, cpu = time.perf_counter(), time.process_time()
        found = run(value)
        told: dict[str, Any] = {"s": time.perf_counter() - start, "CPU s": time.process_time() - cpu}
        told |= {"peak MB": resident()[1], "before MB": before}
        if expected is not None:
            if part == "encoder":
                found = found[:, : expected.shape[1]] * scale  # optimum's graph has the variance behind the mean
            told["relative L2"] = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
        print(json.dumps(told), flush=True)


# What asks them


class Peer:
    """A peer's process."""

    def __init__(self, name: str, part: str, args: argparse.Namespace, python: str) -> None:
        command = [python, __file__, "--work", str(args.work), "--serve", name, part]
        if args.optimum is not None:
            command += ["--optimum", str(args.optimum)]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        self.told = self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise OSError(self._process.stderr.read().strip().splitlines()[-1])

    def run(self, size: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{size}\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def prepare(args: argparse.Namespace) -> None:
    """Make the bundle, and the inputs of every cell with PyTorch's outputs in float64."""
    import vaedeploy as vd
    from vaedeploy.images.photos import crop_batch, load_photos
    from vaedeploy.images.pixels import to_float
    from vaedeploy.source import load_reference
    from vaedeploy.verify.reference import compute_golden
    from vaedeploy.verify.shapes import Shape

    args.work.mkdir(parents=True, exist_ok=True)
    bundle = args.work / "bundle"
    if not bundle.exists():
        vd.export_vae(MODEL[0], weights=MODEL[1], out=bundle, forms=["openvino"], verify=False)
    missing = [size for size in args.sizes if not (args.work / f"decoder-{size}.npz").exists()]
    if not missing:
        return
    reference = load_reference(*MODEL)
    photos = load_photos()
    for size in missing:
        photo = crop_batch(photos, 1, size, size)
        if size <= args.judge:
            shape = Shape("one", 1, size, size, round_trip=False)
            (case,) = compute_golden(reference, photos, [shape], lambda *_: None)
            photo, mean = case.photo, case.latents["latent_mean"].astype(np.float32)
            np.savez(args.work / f"encoder-{size}.npz", input=to_float(photo), output=case.latents["latent_mean"])
            np.savez(args.work / f"decoder-{size}.npz", input=mean, output=case.image)
        else:
            with vd.VAE(bundle, "onnxruntime-cpu") as vae:
                mean = vae.encode(photo)
            np.savez(args.work / f"encoder-{size}.npz", input=to_float(photo))
            np.savez(args.work / f"decoder-{size}.npz", input=mean)


def measure(part: str, size: int, args: argparse.Namespace, pythons: dict[str, str]) -> dict[str, Any]:
    peers, cell = [], {}
    for name in args.peers:
        try:
            peers.append(Peer(name, part, args, pythons.get(name, sys.executable)))
        except OSError as error:
            print(f"{name} is left out: {error}", flush=True)
    firsts = {peer.name: peer.run(size) for peer in peers}
    rounds: dict[str, list[dict[str, Any]]] = {peer.name: [] for peer in peers}
    for turn in range(args.rounds):
        for peer in peers[:: -1 if turn % 2 else 1]:
            rounds[peer.name].append(peer.run(size))
    for peer in peers:
        told = rounds[peer.name]
        cell[peer.name] = {
            "s": statistics.median(row["s"] for row in told),
            "first over later": firsts[peer.name]["s"] / statistics.median(row["s"] for row in told),
            "peak MB": max(row["peak MB"] for row in (firsts[peer.name], *told)),
            "relative L2": firsts[peer.name].get("relative L2"),
            "versions": peer.told["versions"],
            "load": os.getloadavg()[0],
        }
        for other in ("torch-bf16", "onnxruntime", "torch-fp32"):
            if other in rounds:
                ratios = [a["s"] / b["s"] for a, b in zip(told, rounds[other], strict=True)]
                cell[peer.name][f"over {other}"] = [statistics.median(ratios), min(ratios), max(ratios)]
        peer.close()
        print(part, size, peer.name, cell[peer.name], flush=True)
    return cell


# What is shown of it

TITLES = {
    "torch-fp32": "PyTorch",
    "compile-fp32": "PyTorch, compiled",
    "onnxruntime": "ONNX Runtime",
    "optimum": "optimum-onnx",
    "openvino-optimum-fp32": "OpenVINO on optimum's graph",
    "vaedeploy": "**vaedeploy**, ONNX Runtime",
    "vaedeploy-openvino-fp32": "**vaedeploy**, OpenVINO",
    "torch-bf16": "PyTorch, bf16",
    "compile-bf16": "PyTorch, compiled, bf16",
    "openvino-optimum-bf16": "OpenVINO on optimum's graph, bf16",
    "vaedeploy-openvino-bf16": "**vaedeploy**, OpenVINO, bf16",
}


def tables(results: dict[str, Any]) -> str:
    """Markdown: for each CPU and half, a row for each peer with its seconds, and their ratio to PyTorch's where it ran
    beside it.
    """
    lines = []
    for cpu, told in results.items():
        for part in PARTS:
            cells = dict(sorted(told.get(part, {}).items(), key=lambda item: int(item[0])))
            if not cells:
                continue
            heads = [f"{size}×{size}, s | over PyTorch's | peak, GB" for size in cells]
            lines += [f"{part.capitalize()}, {cpu}:", "", f"| | {' | '.join(heads)} | relative L2 |"]
            lines.append("|" + "---|" * (3 * len(cells) + 2))
            for name, title in TITLES.items():
                if not any(name in cell for cell in cells.values()):
                    continue
                errors = [cell[name]["relative L2"] for cell in cells.values() if cell.get(name, {}).get("relative L2")]
                row = [_entry(cell.get(name)) for cell in cells.values()]
                lines.append(f"| {title} | {' | '.join(row)} | {f'{max(errors):.1e}' if errors else ''} |")
            lines.append("")
    return "\n".join(lines)


def _entry(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return " | | "
    ratio = "{:.2f} ({:.2f} to {:.2f})".format(*cell["over torch-fp32"]) if "over torch-fp32" in cell else ""
    return f"{cell['s']:.2f} | {ratio} | {cell['peak MB'] / 1000:.2f}"


def picture(results: dict[str, Any], path: Path, size: str = "512") -> None:
    """Bars of the decoder's seconds at one size on the first CPU, as SVG."""
    cell = next(iter(results.values()))["decoder"][size]
    rows = [(title.replace("*", ""), cell[name]["s"]) for name, title in TITLES.items() if name in cell]
    longest, height = max(seconds for _, seconds in rows), 26
    bars = []
    for index, (title, seconds) in enumerate(rows):
        y, width, own = index * height, 360 * seconds / longest, title.startswith("vaedeploy")
        bars.append(
            f'<text x="258" y="{y + 17}" text-anchor="end">{title}</text>'
            f'<rect x="266" y="{y + 4}" width="{width:.1f}" height="18" fill="{"#1a7f5a" if own else "#9aa5b1"}"/>'
            f'<text x="{272 + width:.1f}" y="{y + 17}">{seconds:.1f} s</text>'
        )
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 690 {len(rows) * height}" font-family="sans-serif" '
        f'font-size="13" fill="#334"><rect width="100%" height="100%" fill="#fff"/>{"".join(bars)}</svg>\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--sizes", nargs="+", type=int, default=[256, 512, 1024])
    parser.add_argument("--judge", type=int, default=512, help="the largest size with a reference in float64")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument("--python", nargs="+", default=[], metavar="PEER=FILE")
    parser.add_argument("--optimum", type=Path)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)  # this process is a peer's
    args = parser.parse_args()
    if args.serve:
        serve_peer(*args.serve, args.work, args.optimum)
        return
    if args.show:
        results = json.loads(args.json.read_text())
        print(tables(results))
        if args.picture is not None:
            picture(results, args.picture)
        return
    if args.work is None:
        parser.error("--work is needed")
    from vaedeploy.system.machine import cpu_flags, cpu_name, usable_cores

    prepare(args)
    pythons = dict(text.split("=", 1) for text in args.python)
    results = json.loads(args.json.read_text()) if args.json.exists() else {}
    flags = sorted(flag for flag in cpu_flags() if "bf16" in flag or flag in ("avx2", "avx512f"))
    kind = results.setdefault(cpu_name(), {})
    kind["machine"] = {"cores": usable_cores(), "instructions": flags, "python": sys.version.split()[0]}
    for part in args.parts:
        for size in args.sizes:
            kind.setdefault(part, {}).setdefault(str(size), {}).update(measure(part, size, args, pythons))
            args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
