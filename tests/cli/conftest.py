"""A tiny bundle."""

from __future__ import annotations

import pytest
from tiny_bundle import tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("tiny") / "tiny").path
