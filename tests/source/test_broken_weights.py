"""Weights files, configs and lists of parts that are wrong in drawn ways end in a message, and bring nothing about.

VAEDEPLOY_FUZZ_CASES says how many there are altogether, and VAEDEPLOY_FUZZ_SEED which: make fuzz.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import random
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from broken_weights import broken, broken_config, broken_index, whole
from checkpoints import TINY, config_of, folder
from watched import memory_limit, no_hang, what_runs

from vaedeploy.errors import VaedeployError
from vaedeploy.source import load_reference
from vaedeploy.source.network import tensor_shapes
from vaedeploy.source.preset import architectures

CASES = int(os.environ.get("VAEDEPLOY_FUZZ_CASES", "600")) // 5
"""Of each of the five kinds."""

SEED = os.environ.get("VAEDEPLOY_FUZZ_SEED", "0")


def write_safetensors(place: Path, rng: random.Random) -> None:
    (place / "diffusion_pytorch_model.safetensors").write_bytes(broken("safetensors", rng))


def write_zip(place: Path, rng: random.Random) -> None:
    (place / "diffusion_pytorch_model.bin").write_bytes(broken("zip", rng))


def write_legacy(place: Path, rng: random.Random) -> None:
    (place / "diffusion_pytorch_model.bin").write_bytes(broken("legacy", rng))


def write_config(place: Path, rng: random.Random) -> None:
    (place / "diffusion_pytorch_model.safetensors").write_bytes(whole("safetensors"))
    (place / "config.json").write_bytes(broken_config(rng))


def write_index(place: Path, rng: random.Random) -> None:
    part = "diffusion_pytorch_model-00001-of-00001.safetensors"
    (place / part).write_bytes(whole("safetensors"))
    (place / "diffusion_pytorch_model.safetensors.index.json").write_bytes(broken_index(rng, part))


KINDS: dict[str, Callable[[Path, random.Random], None]] = {
    "safetensors": write_safetensors,
    "zip": write_zip,
    "legacy": write_legacy,
    "config": write_config,
    "index": write_index,
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a config, after files of each kind were read once, which imports and compiles what that takes."""
    made = tmp_path / "own"
    for number, write in enumerate(KINDS.values()):
        shutil.rmtree(made, ignore_errors=True)
        folder(made, config_of(TINY, scaling_factor=0.5), {})
        (made / "diffusion_pytorch_model.safetensors").unlink()
        write(made, random.Random(number))
        with contextlib.suppress(VaedeployError):
            load_reference(made)
    for architecture in architectures().values():  # what fits no config is compared with all of them
        tensor_shapes(architecture)
    codecs.lookup("cp437")  # names in an archive without a mark
    shutil.rmtree(made)
    folder(made, config_of(TINY, scaling_factor=0.5), {})
    (made / "diffusion_pytorch_model.safetensors").unlink()
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_broken_files_end_in_a_message(place: Path, kind: str) -> None:
    config = (place / "config.json").read_bytes()
    faults, messages = [], set()
    for number in range(CASES):
        (place / "config.json").write_bytes(config)
        KINDS[kind](place, random.Random(f"{kind} {SEED} {number}"))
        failure: BaseException | None = None
        with what_runs() as ran, no_hang(), memory_limit():
            try:
                load_reference(place)
            except BaseException as error:
                failure = error
        faults += [f"{kind} {number}: {event}" for event in ran]
        if isinstance(failure, VaedeployError):
            messages.add(str(failure))
            if not str(failure).isprintable() or len(str(failure)) > 3000:
                faults.append(f"{kind} {number}: {str(failure)!r:.300}")
        elif failure is not None:
            faults.append(f"{kind} {number}: {''.join(traceback.format_exception(failure))[-900:]}")
    assert not faults, f"{len(faults)} of {CASES}:\n" + "\n".join(faults[:5])
    assert len(messages) >= min(CASES // 10, 20), "most cases should be refused, and for several reasons"
