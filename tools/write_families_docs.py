"""Write docs/families.md: the classes that are loaded, and what was measured of each at full size.

python tools/write_families_docs.py

The figures are those of benchmarks/results/families.json, which benchmarks/families.py makes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

from vaedeploy.source.families import FAMILIES, REFUSED
from vaedeploy.source.preset import presets
from vaedeploy.values.kinds import Precision
from vaedeploy.verify.limits import bound_of

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "families.md"
RESULTS = ROOT / "benchmarks" / "results" / "families.json"

HEAD = """# Families of VAEs

A family is a class of diffusers' autoencoders that vaedeploy loads by its `config.json`.
[weights.md](weights.md) says which files are read, and [architecture.md](architecture.md) how to add a family.
`python tools/write_families_docs.py` writes this page.

## What is loaded

Latents are as the diffusion model sees them: channels at a part of the image's size.
"""

REFUSALS = """
These classes are refused, and the message says what to do. What has an encoder and a decoder for images can always be
given as two modules of your own, `vaedeploy.Reference`.
"""

FIGURES = """
## Figures

Each architecture was measured at its full size with seeded weights, on one CPU ({cpu};
PyTorch {torch}, ONNX Runtime {onnxruntime}, diffusers {diffusers}). No published weights were at hand, so the errors
in half precision say how the architecture behaves, and not how one model does. No engine was run.

```bash
python benchmarks/families.py --work build/families
```

### Export and verification

Operations are those of one image of 512x512 (2 for each multiplication with addition), encoder and decoder. The export
is in fp32, with its verification against float64 at six sizes up to 512x512; the time is that of the processor, both
cores together. Errors are the worst relative L2 over all cases and both halves. fp16 is the worse of the graph and of
its emulation, bf16 is emulated. The limits are {limits}.
"""

TRIPS = """
What `kandinsky22` is off is that of one round trip, at 64x64. Its encoder is off by 1.3e-6 there and its decoder by
1.1e-6, and the decoder, whose norms read the latent too, makes five times as much of the encoder's error: computed in
float64 from that latent, the image is off by 6.4e-6. PyTorch in float32 is off by 1.2e-5 in that round trip, and
further than the graphs in every other:

```bash
python benchmarks/round_trips.py kandinsky22 --bundle build/families/kandinsky22
```
"""

RULES = """
### What the rewrites do

How often each rule fires in the encoder and the decoder, and the share of the decoder's operations that the fold of
upsampling removes. In fp16, `rescale` counts the tensors that would overflow.

`Resize` counts the enlargements of the decoder. The fold fires on each of x2 that a 3x3 convolution reads. Where it
does not fire, there is none: `kandinsky22` and `kvae-2d` enlarge the latent by 1, 2, 4 and 8 for their norms, which 1x1
convolutions read; `stable-cascade` upsamples by transposed convolutions; `hunyuanimage` convolves the small image, and
lays four channels of the result out as 2x2 pixels. Its shortcut does so with the channels of the small image, each
repeated, so that the four pixels are of different channels: that is no upsampling of an image.
"""

SPEED = """
### Speed on a CPU

The time of the rewritten graph over that of the graph as PyTorch exports it, and over PyTorch eager, all in float32 at
{size}x{size}: medians of {rounds} ratios, with the lowest and the highest. The three took turns in one process. Where
no rule fires, both graphs are the same, and the ratio shows the noise.
"""

ENGINES = """
### Engines

TensorRT-RTX {rtx} engines in fp16 for the {count} ranges of sizes of profile `{profile}`: their size, the time of the
build, and the scratch memory that the builder states for 1024x1024 and at most. They were built without a GPU, while
the machine had other work, and have not been run.
"""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def loaded() -> str:
    rows = []
    for name in FAMILIES:
        own = [preset for preset in presets().values() if preset.config.class_name == name]
        latents = dict.fromkeys(f"{p.latent_shape.channels} at 1/{p.latent_shape.factor}" for p in own)
        named = ", ".join(f"`{preset.name}`" for preset in own)
        rows.append([f"`{name}`", named or "–", ", ".join(latents) or "–"])
    return table(["class", "presets", "latents"], rows)


def refused() -> str:
    reasons = dict.fromkeys(REFUSED.values())
    return table(
        ["classes", "why"],
        [[", ".join(f"`{name}`" for name, why in REFUSED.items() if why == reason), reason] for reason in reasons],
    )


def exports(results: dict[str, Any]) -> str:
    rows = []
    for vae, found in results.items():
        halves = [found["graphs"][part] for part in ("encoder", "decoder")]
        export, lower = found["export"], found.get("precisions", {})
        rows.append([
            f"`{vae}`",
            f"{sum(half['parameters'] for half in halves) / 1e6:.1f} M",
            " + ".join(f"{half['TFLOP']['before']:.2f}" for half in halves),
            f"{export['CPU s']:.0f} s",
            f"{export['peak resident MB'] / 1000:.1f} GB",
            error(export, "onnxruntime"),
            *(error(lower.get(precision, {}), "") for precision in ("fp16", "bf16")),
        ])  # fmt: skip
    header = ["VAE", "parameters", "TFLOP", "CPU time", "peak memory", "fp32", "fp16", "bf16"]
    return table(header, rows)


def error(report: dict[str, Any], form: str) -> str:
    """The worst relative L2 of a report's forms: of one alone, or of all that compute in half precision."""
    forms = report.get("relative L2", {})
    chosen = [
        e for name, e in forms.items() if (name == form if form else "emulated" in name or fp16_alone(name, forms))
    ]
    missed = " (misses the limit)" if report.get("failures") else ""
    return f"{max(chosen):.1e}{missed}" if chosen else "–"


def fp16_alone(name: str, forms: dict[str, float]) -> bool:
    """Whether the form is that of ONNX Runtime in fp16; in bf16 it stays in float32."""
    return name == "onnxruntime" and "onnxruntime, emulated fp16" in forms


def rules(results: dict[str, Any]) -> str:
    names = ("fold_padding", "fold_upsampling", "split_means", "chunk_attention")
    rows = []
    for vae, found in results.items():
        encoder, decoder = (found["graphs"][part] for part in ("encoder", "decoder"))
        scaled = sum(rules.get("rescale", 0) for rules in found["precisions"]["fp16"]["rules"].values())
        before, after = (decoder["TFLOP"][when] for when in ("before", "after"))
        rows.append([
            f"`{vae}`",
            *(f"{encoder['rules'][name]} + {decoder['rules'][name]}" for name in names),
            str(decoder["Resize"]),
            f"{1 - after / before:.0%}",
            str(scaled),
        ])  # fmt: skip
    header = ["VAE", *(f"`{name}`" for name in names), "`Resize`", "removed", "`rescale`, fp16"]
    return table(header, rows)


def speed(results: dict[str, Any]) -> str:
    rows = []
    for vae, found in results.items():
        for part in ("encoder", "decoder"):
            ratios = [found["speed"][part][f"over {other}"] for other in ("portable", "PyTorch eager")]
            texts = [f"{r['median']:.2f} ({r['lowest']:.2f} to {r['highest']:.2f})" for r in ratios]
            rows.append([f"`{vae}`", part, f"{found['speed'][part]['onnxruntime']['s']:.2f} s", *texts])
    return table(["VAE", "half", "rewritten", "over the plain export", "over PyTorch eager"], rows)


def engines(results: dict[str, Any]) -> str:
    rows = []
    for vae, found in results.items():
        for name, built in found["builds"].items():
            if not isinstance(built, dict) or name == "made with":
                continue
            part, capability = name.split()
            if "failed" in built:
                rows.append([f"`{vae}`", part, capability, built["failed"], "", "", ""])
                continue
            scratch = built["activation_bytes"]
            rows.append([
                f"`{vae}`",
                part,
                capability,
                f"{built['engine_bytes'] / 1e6:.0f} MB",
                f"{built['seconds']:.1f} s",
                f"{scratch['1024'] / 1e9:.2f} GB",
                f"{max(scratch.values()) / 1e9:.2f} GB",
            ])  # fmt: skip
    return table(["VAE", "half", "for", "engine", "build", "at 1024x1024", "at most"], rows)


def render() -> str:
    """The text of the page."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    one = next(iter(results.values()))
    made = one["export"]["made with"]
    limits = ", ".join(f"{bound_of(precision, 'rel_l2'):g} in {precision}" for precision in get_args(Precision))
    shapes = next(built["shapes"] for built in one["builds"].values() if isinstance(built, dict) and "shapes" in built)
    engine_text = ENGINES.format(rtx=one["builds"]["tensorrt-rtx"], profile=one["builds"]["profile"], count=shapes)
    return "".join([
        HEAD,
        loaded(),
        REFUSALS,
        refused(),
        FIGURES.format(cpu=made["CPU"], limits=limits, **{n: made[n] for n in ("torch", "onnxruntime", "diffusers")}),
        exports(results),
        TRIPS,
        RULES,
        rules(results),
        SPEED.format(size=one["speed"]["size"], rounds=one["speed"]["rounds"]),
        speed(results),
        engine_text,
        engines(results),
    ])  # fmt: skip


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
