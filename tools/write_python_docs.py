"""Write docs/python.md: a heading for each public name, which the site fills with its docstring (make docs).

python tools/write_python_docs.py
"""

from __future__ import annotations

from pathlib import Path

import vaedeploy as vd

PAGE = Path(__file__).parents[1] / "docs" / "python.md"

HEAD = """# Python

Every public name of `vaedeploy`, with its docstring; `help(vd.VAE)` prints the same. In a checkout this page has only
the names, which `python tools/write_python_docs.py` writes: `make docs` fills it.

```python
import vaedeploy as vd
```

`vaedeploy.quality`, `vaedeploy.testing` and `vaedeploy.adapters.diffusers` are public as well:
[fidelity.md](fidelity.md), [parity in CI](howto-parity.md) and
[pipelines of diffusers](services.md#in-a-pipeline-of-diffusers) describe them.
"""


def render() -> str:
    """The text of the page."""
    names = [name for name in vd.__all__ if not name.startswith("_")]
    problems = [name for name in names if name.endswith(("Error", "Warning"))]
    kinds = {
        "Functions": [name for name in names if name.islower()],
        "Classes": [name for name in names if not name.islower() and name not in problems],
        "Errors and warnings": problems,
    }
    sections = [
        f"\n## {kind}\n" + "".join(f"\n::: vaedeploy.{name}\n" for name in found) for kind, found in kinds.items()
    ]
    return HEAD + "".join(sections)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
