"""The model card that ``vaedeploy push`` writes beside a bundle: README.md of the hub repository."""

from __future__ import annotations

import json
import re

from vaedeploy.bundle import Bundle
from vaedeploy.system.text import printable
from vaedeploy.values.latent import COLORS, LatentSpec, numbers_text
from vaedeploy.values.words import counted
from vaedeploy.verify.words import METRIC_WORDS, amount, name_of

MARK = "<!-- vaedeploy push wrote this card, and writes it anew. Remove this line to keep what you write. -->"

LICENCES = {"MIT": "mit", "Apache-2.0": "apache-2.0"}
"""Licences of weights, as bundles name them -> as the hub does."""


def model_card(bundle: Bundle, repository: str) -> str:
    """The card of a bundle that is pushed to ``repository``, in Markdown with the hub's front matter."""
    manifest = bundle.manifest
    vae = manifest.vae
    rows = [
        ("VAE", f"{vae.name} ({vae.architecture})"),
        ("identity", f"`{vae.identity}`"),
        ("licence of the weights", vae.licence or "not known"),
        ("latent", _contract(manifest.latent)),
        ("precision", manifest.precision),
        ("verified", _verification(bundle)),
        *(("engine", name) for name in sorted(manifest.engines)),
    ]
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows)
    return f"""---
{_front_matter(vae.licence)}
---
{MARK}

# {_cell(vae.name)}

The VAE of a diffusion model as a bundle of vaedeploy: ONNX graphs, the outputs that they were compared with, and a
manifest with the sha256 of every file.

| | |
|---|---|
{table}

```bash
pip install "vaedeploy[cpu,hub]"
```

```python
import vaedeploy as vd

with vd.VAE("hf://{repository}", identity="{vae.identity}") as vae:
    latent = vae.encode(photo)  # (H, W, {manifest.latent.image_channels}) uint8
    image = vae.decode(latent)
```

To pin the files too, write the commit after the name: `hf://{repository}@COMMIT`.
"""


def _front_matter(licence: str | None) -> str:
    lines = ["library_name: vaedeploy", "tags:", "- vae", "- onnx"]
    if licence in LICENCES:
        lines.append(f"license: {LICENCES[licence]}")
    elif licence and licence != "not known":
        name = re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-.")
        lines += ["license: other", f"license_name: {json.dumps(name)}"]
    return "\n".join(lines)


def _contract(latent: LatentSpec) -> str:
    kind = "a distribution" if latent.sampled else "no distribution"
    return (
        f"{counted(latent.channels, 'channel')} at 1/{latent.factor} of the size of {COLORS[latent.image_channels]} "
        f"images, {kind}; (z - shift) * scale with scale {numbers_text(latent.scale)} and shift "
        f"{numbers_text(latent.shift)}"
    )


def _verification(bundle: Bundle) -> str:
    verification = bundle.manifest.verification
    if verification is None:
        return "no"
    worst = ", ".join(
        f"{name_of(metric)} {amount(metric, value)}"
        for metric, value in verification.worst.items()
        if metric in METRIC_WORDS
    )
    state = "yes" if verification.passed else "FAILED"
    cases = counted(verification.cases, "case")
    return f"{state}: {cases} on {verification.backend} against {verification.reference}; at worst: {worst}"


def _cell(text: str) -> str:
    return printable(text).replace("|", "\\|").replace("<", "&lt;")
