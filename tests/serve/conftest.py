"""A server of a tiny VAE, which several tests use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Serving, serving
from tiny_bundle import tiny_bundle

from vaedeploy.runtime import VAE


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two channels of latents, a factor of 4."""
    return tiny_bundle(tmp_path_factory.mktemp("tiny") / "tiny").path


@pytest.fixture(scope="module")
def vae(bundle: Path) -> Iterator[VAE]:
    with VAE(bundle) as vae:
        yield vae


@pytest.fixture(scope="module")
def server(vae: VAE) -> Iterator[Serving]:
    with serving({"tiny": vae}, max_body=2_000_000) as server:
        yield server
