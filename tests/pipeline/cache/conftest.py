"""A tiny bundle, and a tiny data set."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_sets import data_set
from tiny_bundle import tiny_bundle

from vaedeploy.bundle import Bundle


@pytest.fixture(scope="package")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Factor 4, 2 channels."""
    return tiny_bundle(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="package")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 pictures of three sizes."""
    return data_set(tmp_path_factory.mktemp("photos"), 12)
