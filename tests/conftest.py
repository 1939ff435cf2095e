"""What every test shares: properties without a clock, and the command line run in this process."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import hypothesis
import pytest

# A busy machine must not fail a property.
hypothesis.settings.register_profile("vaedeploy", deadline=None)
hypothesis.settings.load_profile("vaedeploy")


@dataclass(frozen=True)
class Ended:
    """How a command line ended: its exit code, stdout and stderr."""

    code: int
    out: str
    err: str


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
