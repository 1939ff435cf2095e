"""What a caller has set in PyTorch reaches neither weights nor references nor graphs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from checkpoints import compvis, write_safetensors
from golden_cases import SHAPES, scaled_reference

from vaedeploy.graph.trace import trace_graph
from vaedeploy.images.photos import load_photos
from vaedeploy.source import load_reference
from vaedeploy.source.network import random_tensors
from vaedeploy.source.preset import get_preset
from vaedeploy.system.torch_state import plain_torch
from vaedeploy.values.reference import Reference
from vaedeploy.verify.reference import compute_golden


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float16)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")  # it has no numbers, and a GPU need not be here
    try:
        yield
    finally:
        torch.set_default_device(None)


SETTINGS: dict[str, Callable[[], tuple[AbstractContextManager[object], ...]]] = {
    "dtype, device": lambda: (default_dtype(), default_device()),
    "inference mode, autocast": lambda: (torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)),
}


@pytest.fixture(scope="module")
def reference() -> Reference:
    return scaled_reference()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Any:
    tensors = random_tensors(get_preset("demo").config, 0)
    return write_safetensors(compvis(tensors), tmp_path_factory.mktemp("weights") / "vae.safetensors")


def made(reference: Reference, file: Any) -> dict[str, Any]:
    graph = trace_graph(reference, "decoder").model
    (case, *_) = compute_golden(reference, load_photos(), SHAPES[:1])
    return {
        "from a file": load_reference("demo", file).identity,
        "from a seed": load_reference("demo", "random:0").identity,
        "graph": ir.serde.serialize_model(graph).SerializeToString(),
        "image": case.image.tobytes(),
        "latents": {name: np.asarray(value).tobytes() for name, value in case.latents.items()},
    }


@pytest.fixture(scope="module")
def expected(reference: Reference, file: Any) -> dict[str, Any]:
    return made(reference, file)


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_of_the_process_change_nothing(
    setting: str, reference: Reference, file: Any, expected: dict[str, Any]
) -> None:
    with ExitStack() as stack:
        for context in SETTINGS[setting]():
            stack.enter_context(context)
        assert made(reference, file) == expected


def test_weights_that_were_loaded_in_inference_mode_can_be_trained(file: Any) -> None:
    with torch.inference_mode():
        loaded = load_reference("demo", file)
    assert not any(weight.is_inference() for weight in loaded.decoder.state_dict().values())


def test_settings_are_the_callers_again() -> None:
    with default_dtype(), torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        with contextlib.suppress(KeyError), plain_torch():
            assert (torch.get_default_dtype(), torch.is_autocast_enabled("cpu")) == (torch.float32, False)
            assert not torch.is_inference_mode_enabled()
            raise KeyError
        assert (torch.get_default_dtype(), torch.is_autocast_enabled("cpu")) == (torch.float16, True)
        assert torch.is_inference_mode_enabled()
