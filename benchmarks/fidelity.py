"""Measure which faults ``vaedeploy.quality`` finds on photographs, and how long its metrics take.

    python benchmarks/fidelity.py [--detectors] [--clean] [--time] [--vae NAME [--weights SRC]]
        [--photos DIR] [--every N] [--json FILE]

``--detectors`` puts each fault of tests/support/faults.py into the photographs at rising strength. It counts in how
many photographs the fault is found and in how many it is the first finding, and says whether the metric ranks the
strengths.
``--clean`` compares photographs, and synthetic images with gradients or real periodic texture, with themselves and with
a copy that has noise of one level. Each finding is a false alarm.
``--time`` times ``measure_quality`` on eight photographs, median of five turns, in seconds.
``--vae`` compares what the VAE's graphs of each precision make of kodim15's and kodim16's latents with PyTorch in
float64, and PyTorch's image with the photograph. Half precision is emulated.
``--every N`` uses only each N-th photograph for ``--detectors``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

import faults  # noqa: E402

from vaedeploy.images.files import read_image  # noqa: E402
from vaedeploy.quality import LIMITS, Quality, find_faults, measure_quality  # noqa: E402


def detection(photos: dict[str, faults.Picture]) -> list[dict[str, Any]]:
    rows = []
    for detector in faults.DETECTORS:
        values: dict[str, list[float]] = {name: [] for name in photos}
        for strength in detector.strengths:
            told = first = 0
            others: dict[str, int] = {}
            for name, photo in photos.items():
                quality = measure_quality(photo, detector.inject(photo, strength), tile=faults.TILE)
                values[name].append(float(attrgetter(detector.metric)(quality)))
                words = [finding.name for finding in find_faults(quality)]
                told += detector.word in words
                first += words[:1] == [detector.word]
                for word in set(words) - {detector.word}:
                    others[word] = others.get(word, 0) + 1
            column = [found[-1] for found in values.values()]
            rows.append(
                {"fault": detector.fault, "word": detector.word, "strength": strength, "unit": detector.unit}
                | {"told": told, "first": first, "of": len(photos), "others": others, "metric": detector.metric}
                | {"lowest": min(column), "median": statistics.median(column), "highest": max(column)}
            )
            spread = f"{min(column):.3g} / {statistics.median(column):.3g} / {max(column):.3g}"
            print(
                f"{detector.fault:22} {strength:6g} {detector.unit:12} {detector.word:15} told {told:2}, "
                f"first {first:2} of {len(photos)}; {spread}; others {others}",
                flush=True,
            )
        ranked = [name for name, found in values.items() if is_ranked(found)]
        print(f"{detector.fault:22} ranked in {len(ranked)}; not in {sorted(set(photos) - set(ranked))}", flush=True)
        rows[-1]["ranked"] = len(ranked)
    return rows


def is_ranked(values: list[float]) -> bool:
    steps = np.diff(values)
    return bool((steps > 0).all() or (steps < 0).all())


def clean(photos: dict[str, faults.Picture]) -> list[dict[str, Any]]:
    rows = []
    for name, picture in (photos | faults.synthetic_pictures()).items():
        for kind, candidate in (("itself", picture), ("noise of one level", faults.rounding_noise(picture))):
            found = find_faults(measure_quality(picture, candidate, tile=faults.TILE))
            rows.append({"picture": name, "beside": kind, "findings": [finding.words for finding in found]})
    alarms = [row for row in rows if row["findings"]]
    print(f"clean: {len(rows)} pairs, {len(alarms)} false alarms", *alarms, sep="\n")
    return rows


def duration(photos: dict[str, faults.Picture]) -> dict[str, Any]:
    eight = list(photos.values())[:8]
    pairs = [(photo, faults.rounding_noise(photo)) for photo in eight]
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        for reference, candidate in pairs:
            measure_quality(reference, candidate, tile=faults.TILE)
        seconds.append(time.perf_counter() - started)
    found = {"photographs": len(eight), "median_s": statistics.median(seconds), "all_s": seconds}
    print(f"time: {len(eight)} photographs in {found['median_s']:.1f} s ({min(seconds):.1f} to {max(seconds):.1f})")
    return found | {"cores": os.cpu_count(), "load": os.getloadavg()[0]}


def graphs(name: str, weights: str | None, photos: dict[str, faults.Picture]) -> list[dict[str, Any]]:
    import onnx_ir as ir

    from vaedeploy.bundle.graphs import FORMS
    from vaedeploy.images.pixels import to_levels
    from vaedeploy.numerics.emulation import save_emulating
    from vaedeploy.pipeline.export import export_vae
    from vaedeploy.runtime.onnxruntime_cpu import Session
    from vaedeploy.source import load_reference
    from vaedeploy.verify.reference import compute_golden
    from vaedeploy.verify.shapes import Shape

    reference = load_reference(name, weights)
    rows, cases = [], {}
    for key in ("kodim15", "kodim16"):
        height, width, _ = photos[key].shape
        (cases[key],) = compute_golden(reference, [photos[key]], [Shape(key, 1, height, width, False)])
        true = to_levels(cases[key].image)[0]
        rows.append(judged(f"{name}, PyTorch beside the photograph", key, measure_quality(photos[key], true)))
    with tempfile.TemporaryDirectory() as temporary:
        for precision, forms in FORMS.items():
            bundle = export_vae(reference, out=Path(temporary) / precision, precision=precision, verify=False)
            form = list(forms)[-1]
            graph = bundle.path / bundle.manifest.graphs["decoder"][form]
            if precision != "fp32":
                save_emulating(ir.load(graph), graph := Path(temporary) / f"emulated.{precision}.onnx")
            session = Session(graph)
            for key, case in cases.items():
                latent = next(iter(case.latents.values()))
                (image,) = session.run(["image"], {session.inputs[0]: latent})
                quality = measure_quality(to_levels(case.image)[0], image[0])
                rows.append(judged(f"{name}, {precision} graph beside PyTorch", key, quality))
    return rows


def judged(what: str, picture: str, quality: Quality) -> dict[str, Any]:
    findings = [finding.words for finding in find_faults(quality)]
    print(f"{what}, {picture}: {findings}", quality.error, quality.color, quality.detail, quality.artifacts, flush=True)
    return {"what": what, "picture": picture, "findings": findings, "quality": msgspec.to_builtins(quality)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for what in ("detectors", "clean", "time"):
        parser.add_argument(f"--{what}", action="store_true")
    parser.add_argument("--vae")
    parser.add_argument("--weights", help="such as random:0, for the VAE's architecture alone")
    parser.add_argument("--photos", type=Path, default=ROOT.parent / "shared" / "images" / "kodak")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    photos = {path.stem: read_image(path) for path in sorted(args.photos.glob("*.png"))}
    results: dict[str, Any] = {"limits": len(LIMITS)}
    if args.time:
        results["time"] = duration(photos)
    if args.clean:
        results["clean"] = clean(photos)
    if args.detectors:
        results["detectors"] = detection({name: photos[name] for name in list(photos)[:: args.every]})
    if args.vae:
        results["vae"] = graphs(args.vae, args.weights, photos)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
