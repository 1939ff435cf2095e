"""What every test shares: properties without a clock, and the command line run in this process."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from command_line import Ended

if TYPE_CHECKING:
    from vaedeploy.bundle import Bundle
    from vaedeploy.values.reference import Reference

with suppress(ImportError):  # tests/gpu runs where it is not installed
    import hypothesis

    # A busy machine must not fail a property.
    hypothesis.settings.register_profile("vaedeploy", deadline=None)
    hypothesis.settings.load_profile("vaedeploy")


@pytest.fixture(scope="session")
def tiny_graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with encoder.onnx and decoder.onnx, weights within, as ``tiny_reference()`` is traced: torch takes
    seconds for each."""
    import onnx_ir as ir
    from tiny_modules import tiny_reference

    from vaedeploy.graph.trace import trace_graph
    from vaedeploy.values.kinds import PARTS

    folder = tmp_path_factory.mktemp("tiny-graphs")
    for part in PARTS:
        ir.save(trace_graph(tiny_reference(), part).model, folder / f"{part}.onnx")
    return folder


@pytest.fixture(scope="session")
def tiny_vae() -> Reference:
    """A tiny VAE with a scale and a shift for each channel."""
    from tiny_modules import tiny_reference

    return tiny_reference(scale=(0.3, 2.0, -1.5, 0.1), shift=(0.5, 0.0, -3.0, 1.0))


@pytest.fixture(scope="session")
def tiny_vae_bundle(tiny_vae: Reference, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A verified bundle of it."""
    from vaedeploy.pipeline.export import export_vae

    return export_vae(tiny_vae, out=tmp_path_factory.mktemp("fp32") / "tiny")


@pytest.fixture(scope="session")
def tiny_fp16_bundle(tiny_vae: Reference, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """As above, in fp16."""
    from vaedeploy.pipeline.export import export_vae

    return export_vae(tiny_vae, out=tmp_path_factory.mktemp("fp16") / "tiny", precision="fp16")


@pytest.fixture(scope="session")
def tiny_bf16_bundle(tiny_vae: Reference, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """As above, in bf16."""
    from vaedeploy.pipeline.export import export_vae

    return export_vae(tiny_vae, out=tmp_path_factory.mktemp("bf16") / "tiny", precision="bf16")


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A verified bundle of the demo VAE. Tests that change it take a copy."""
    from vaedeploy.pipeline.export import export_vae

    return export_vae("demo", out=tmp_path_factory.mktemp("demo") / "demo")


@pytest.fixture(scope="session")
def demo_fp16_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A verified bundle of the demo VAE in fp16."""
    from vaedeploy.pipeline.export import export_vae

    return export_vae("demo", out=tmp_path_factory.mktemp("demo-fp16") / "demo", precision="fp16")


@pytest.fixture(scope="session")
def inflated_bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """As above, of the demo VAE with weights that overflow there: one for each of ``INFLATIONS``."""
    from itertools import cycle

    from inflation import INFLATIONS, inflate

    from vaedeploy.pipeline.export import export_vae
    from vaedeploy.source import load_reference

    made = {}
    for name, factors in INFLATIONS.items():
        vae = load_reference("demo")
        for half in (vae.encoder, vae.decoder):
            inflate(half, *map(cycle, factors))
        made[name] = export_vae(vae, out=tmp_path_factory.mktemp("inflated") / "demo", precision="fp16")
    return made


@pytest.fixture(scope="session")
def small_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with a small VAE of factor 8."""
    import torch
    from diffusers import AutoencoderKL

    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKL(
            block_out_channels=(8,) * 4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=2,
            scaling_factor=0.5,
        )
    path = tmp_path_factory.mktemp("weights") / "small"
    vae.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def demo_mse_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An unverified bundle of the demo VAE's second decoder: a swap to it is verified in test_swap.py."""
    from vaedeploy.pipeline.export import export_vae

    return export_vae("demo-mse", out=tmp_path_factory.mktemp("demo-mse") / "demo-mse", verify=False)


@pytest.fixture(scope="session")
def full_size_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The architecture of the SD VAEs with seeded weights: a verified bundle with engines for one profile."""
    from vaedeploy.pipeline.export import export_vae

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
