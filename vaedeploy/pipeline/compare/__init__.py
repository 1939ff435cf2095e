"""Several VAEs side by side: which is truest and fastest, and which decodes whose latents: ``compare_bundles``."""

from __future__ import annotations

from vaedeploy.pipeline.compare.bundles import compare_bundles
from vaedeploy.pipeline.compare.result import Comparison, Reconstruction, Speed, Summary, Swap, Transform

__all__ = ["Comparison", "Reconstruction", "Speed", "Summary", "Swap", "Transform", "compare_bundles"]
