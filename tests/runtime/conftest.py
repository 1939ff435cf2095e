"""Tiny bundles, and the runtime opened on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from engine_files import DECODER, ENCODER
from host_gpu import HostDevice, HostPlan, Opened, stand_in
from tiny_bundle import tiny_bundle

from vaedeploy.bundle import Bundle
from vaedeploy.runtime import VAE
from vaedeploy.runtime.engine import EngineSession
from vaedeploy.runtime.routes import Half


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("float") / "tiny")


@pytest.fixture(scope="module")
def bytes_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same weights, with an encoder that takes uint8."""
    return tiny_bundle(tmp_path_factory.mktemp("uint8") / "tiny", image_input="uint8")


@pytest.fixture(scope="module")
def vae(bundle: Bundle) -> Iterator[VAE]:
    with VAE(bundle.path) as opened:
        yield opened


@pytest.fixture(scope="module")
def bytes_vae(bytes_bundle: Bundle) -> Iterator[VAE]:
    with VAE(bytes_bundle.path) as opened:
        yield opened


@pytest.fixture
def opened(engine_bundle: Bundle) -> Callable[..., Opened]:
    def open_half(part: str = "decoder", graphs: str = "recorded") -> Opened:
        device, plans = HostDevice(), {}
        name = DECODER if part == "decoder" else ENCODER

        def load(name: str) -> HostPlan:
            return plans.setdefault(name, HostPlan(engine_bundle, name, graphs))

        half = Half(engine_bundle, part, "tensorrt-rtx", (name,))  # type: ignore[arg-type]
        return Opened(EngineSession(half, device, load), device, plans)

    return open_half


@pytest.fixture
def expected(engine_bundle: Bundle) -> VAE:
    return VAE(engine_bundle.path, "onnxruntime-cpu")


@pytest.fixture
def gpu(engine_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> HostDevice:
    """This machine, as if it had the GPU that the engines are for."""
    return stand_in(engine_bundle, monkeypatch)
