"""What every test shares: properties without a clock, and the command line run in this process."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vaedeploy.bundle import Bundle

with suppress(ImportError):  # tests/gpu runs where it is not installed
    import hypothesis

    # A busy machine must not fail a property.
    hypothesis.settings.register_profile("vaedeploy", deadline=None)
    hypothesis.settings.load_profile("vaedeploy")


@dataclass(frozen=True)
class Ended:
    """How a command line ended: its exit code, stdout and stderr."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A verified bundle of the demo VAE. Tests that change it take a copy."""
    from vaedeploy.pipeline import export_vae

    return export_vae("demo", out=tmp_path_factory.mktemp("demo") / "demo")


@pytest.fixture(scope="session")
def full_size_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The architecture of the SD VAEs with seeded weights: a verified bundle with engines for one profile."""
    from vaedeploy.pipeline import export_vae

    out = tmp_path_factory.mktemp("full-size") / "mse840k"
    return export_vae("mse840k", weights="random:0", out=out, profiles=["rtx4090"])


@pytest.fixture
def vaedeploy(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Ended]]:
    """Run ``vaedeploy`` with these arguments in this process."""
    from vaedeploy.cli import main

    root, own = logging.getLogger(), logging.getLogger("vaedeploy")
    before = root.handlers[:], root.level, own.level, warnings.showwarning

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ended(ended.value.code, captured.out, captured.err)

    yield run
    root.handlers[:], warnings.showwarning = before[0], before[3]
    root.setLevel(before[1])
    own.setLevel(before[2])
