"""Small VAEs as checkpoints and folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import CONTRACT, DEMO, TINY, config_of, folder
from safetensors.torch import save_file
from torch import Tensor

from vaedeploy.source import load_reference
from vaedeploy.source.network import random_tensors


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Hundreds of small tensors a test: waking torch's thread pool for each takes longer than all of the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return random_tensors(DEMO.config, seed=0)


@pytest.fixture(scope="module")
def expected(tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The identity that every form of the same weights must have."""
    file = tmp_path_factory.mktemp("expected") / "vae.safetensors"
    save_file(tensors, file)
    return load_reference("demo", file, **CONTRACT).identity


@pytest.fixture
def photo() -> Tensor:
    return torch.rand((2, 3, 40, 64), generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def own(tmp_path: Path) -> Any:
    """Writes a small VAE of its own, with these changes to its config.json."""
    weights = random_tensors(TINY, seed=0)

    def write(**changes: Any) -> Path:
        return folder(tmp_path / "own", config_of(TINY, **changes), weights)

    return write
