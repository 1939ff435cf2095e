"""Where the repository is, and the photographs that some tests want beside it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The top of the repository."""

KODAK = ROOT.parent / "shared" / "images" / "kodak"
"""Photographs that are not part of the repository; tests that need them are skipped where they are not there."""
