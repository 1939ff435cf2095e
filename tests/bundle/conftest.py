"""A tiny bundle."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_bundle import tiny_bundle

from vaedeploy.bundle import Bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path / "tiny")
