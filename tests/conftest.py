"""What every test shares: bundles that are made once for a run, Ctrl-C for child processes, properties without a clock,
and the command line run in this process.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from command_line import Ended

    from vaedeploy.bundle import Bundle
    from vaedeploy.values.reference import Reference

with suppress(ImportError):  # tests/gpu runs where it is not installed
    import hypothesis

    # Every run of CI has the same examples: what fails there fails here as well. By hand, others are searched:
    # pytest --hypothesis-profile search. A busy machine must not fail a property.
    hypothesis.settings.register_profile("fixed", deadline=None, derandomize=True)
    hypothesis.settings.register_profile("search", deadline=None, max_examples=2000, print_blob=True)
    hypothesis.settings.load_profile("fixed")

# A shell starts `pytest &` with SIGINT ignored, and child processes inherit that: Ctrl-C would not reach them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

WORKER = os.environ.get("PYTEST_XDIST_WORKER")
"""The name of this process among pytest-xdist's workers, such as gw0; None without them."""

# Each worker has its share of the cores. PyTorch and ONNX Runtime would take all of them, in every worker.
if WORKER and hasattr(os, "sched_setaffinity"):
    cores, workers = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.sched_setaffinity(0, cores[int(WORKER.removeprefix("gw")) :: workers] or cores)

# Helpers have assertions as well; pytest is to say of them what it says of those in tests.
pytest.register_assert_rewrite(*(path.stem for path in Path(__file__).with_name("support").glob("*.py")))

Once = Callable[[str, Callable[[Path], object]], Path]


SLOW = {"demo_bundle", "demo_mse_bundle", "full_size_bundle", "inflated_bundle", "tiny_bf16_bundle", "tiny_fp16_bundle"}
"""Fixtures that take many seconds to make."""


def pytest_addoption(parser: pytest.Parser) -> None:
    help = "also run the tests marked full, and verify models of full size at every shape, up to 512x512"
    parser.addoption("--full", action="store_true", help=help)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What needs a slow fixture is slow. One worker begins with full size, while the other does other things."""
    needs = {item: set(getattr(item, "fixturenames", ())) & SLOW for item in items}
    for item in items:
        if needs[item]:
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("full") and not config.getoption("--full"):
            item.add_marker(pytest.mark.skip(reason="takes long; a smaller one is run instead: make test-full"))
    if WORKER:
        items.sort(key=lambda item: "full_size_bundle" not in needs[item])


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """``made_once(name, make)``: the folder ``name``, which ``make`` filled, once for all processes of this run.

    With pytest-xdist each worker has its own session fixtures: what takes seconds to make is shared in this way.
    """
    top = tmp_path_factory.getbasetemp()
    if WORKER:
        top = top.parent

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = top / "once" / name, top / "once" / f"{name}.done"
        folder.parent.mkdir(exist_ok=True)
        lock = nullcontext()
        if WORKER:
            from filelock import FileLock

            lock = FileLock(top / "once" / f"{name}.lock")
        with lock:
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # what a worker left that failed
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return made


def exported(made_once: Once, place: str, vae: str | Reference, **options: object) -> Bundle:
    """A bundle at ``place``, a folder and the bundle's name, made once."""
    from vaedeploy.bundle import Bundle
    from vaedeploy.pipeline.export import export_vae

    folder, _, name = place.partition("/")
    top = made_once(f"{folder} {name}", lambda folder: export_vae(vae, out=folder / name, **options))
    return Bundle.open(top / name)


def verify_smaller(patch: pytest.MonkeyPatch) -> None:
    """Verify at 256x256 in the place of 512x512, which takes five sixths of the time."""
    from vaedeploy.verify.shapes import Shape, verification_shapes

    def shapes(factor: int) -> tuple[Shape, ...]:
        return (*verification_shapes(factor)[:-1], Shape("large", 1, 256, 256, False))

    for verb in ("export", "verify"):
        patch.setattr(f"vaedeploy.pipeline.{verb}.verification_shapes", shapes)


@pytest.fixture
def verified_smaller(monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config) -> None:
    """For tests of what is done with a verification, and not of what it finds. ``--full`` verifies at every shape."""
    if not pytestconfig.getoption("--full"):
        verify_smaller(monkeypatch)


@pytest.fixture(scope="session")
def tiny_graphs(made_once: Once) -> Path:
    """A folder with encoder.onnx and decoder.onnx, weights within, as ``tiny_reference()`` is traced: torch takes
    seconds for each."""
    import onnx_ir as ir

    from vaedeploy.graph.trace import trace_graph
    from vaedeploy.testing.tiny import tiny_reference
    from vaedeploy.values.kinds import PARTS

    def make(folder: Path) -> None:
        for part in PARTS:
            ir.save(trace_graph(tiny_reference(), part).model, folder / f"{part}.onnx")

    return made_once("tiny-graphs", make)


@pytest.fixture(scope="session")
def tiny_vae() -> Reference:
    """A tiny VAE with a scale and a shift for each channel."""
    from vaedeploy.testing.tiny import tiny_reference

    return tiny_reference(scale=(0.3, 2.0, -1.5, 0.1), shift=(0.5, 0.0, -3.0, 1.0))


def exported_tiny(made_once: Once, place: str, vae: Reference, **options: object) -> Bundle:
    """As ``exported``, verified at smaller shapes: the demo VAE is verified at all of them."""
    with pytest.MonkeyPatch.context() as patch:
        verify_smaller(patch)
        return exported(made_once, place, vae, **options)


@pytest.fixture(scope="session")
def tiny_vae_bundle(tiny_vae: Reference, made_once: Once) -> Bundle:
    """A verified bundle of it."""
    return exported_tiny(made_once, "fp32/tiny", tiny_vae)


@pytest.fixture(scope="session")
def tiny_fp16_bundle(tiny_vae: Reference, made_once: Once) -> Bundle:
    """As above, in fp16."""
    return exported_tiny(made_once, "fp16/tiny", tiny_vae, precision="fp16")


@pytest.fixture(scope="session")
def tiny_bf16_bundle(tiny_vae: Reference, made_once: Once) -> Bundle:
    """As above, in bf16."""
    return exported_tiny(made_once, "bf16/tiny", tiny_vae, precision="bf16")


@pytest.fixture(scope="session")
def fused_bundle(tiny_vae: Reference, made_once: Once) -> Bundle:
    """As above, with the form for ONNX Runtime's CUDA provider, and not verified."""
    return exported(made_once, "fused/tiny", tiny_vae, precision="fp16", forms=["onnxruntime-cuda"], verify=False)


@pytest.fixture(scope="session")
def engine_bundle(profile_folder: Path, made_once: Once) -> Bundle:
    """The tiny bundle with engines, built by TensorRT-RTX."""
    from tiny_bundle import tiny_bundle

    from vaedeploy.bundle import Bundle
    from vaedeploy.pipeline.build import build_engines

    def make(folder: Path) -> None:
        build_engines(tiny_bundle(folder / "tiny"), ["mine"], folder=profile_folder)

    return Bundle.open(made_once("engines", make) / "tiny")


@pytest.fixture
def built(engine_bundle: Bundle, tmp_path: Path) -> Bundle:
    """A copy of it, to be changed."""
    from vaedeploy.bundle import Bundle

    return Bundle.open(shutil.copytree(engine_bundle.path, tmp_path / "tiny"))


@pytest.fixture(scope="session")
def profile_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a profile ``mine`` for the tiny bundle."""
    from engine_files import SIZES, write_profile

    made = tmp_path_factory.mktemp("profiles")
    write_profile(made, precision='"fp32"', shapes=SIZES)
    return made


@pytest.fixture(scope="session")
def demo_bundle(made_once: Once) -> Bundle:
    """A verified bundle of the demo VAE. Tests that change it take a copy."""
    return exported(made_once, "fp32/demo", "demo")


@pytest.fixture(scope="session")
def inflated_bundle(made_once: Once) -> Bundle:
    """A verified bundle of the demo VAE in fp16, with weights that overflow there unless they are scaled."""
    from itertools import cycle

    from vaedeploy.source import load_reference
    from vaedeploy.testing.inflation import INFLATIONS, inflate

    vae = load_reference("demo")
    for half in (vae.encoder, vae.decoder):
        inflate(half, *map(cycle, INFLATIONS["2^17 everywhere"]))
    return exported(made_once, "inflated/demo", vae, precision="fp16")


@pytest.fixture(scope="session")
def small_vae(made_once: Once) -> Path:
    """A diffusers folder with a small VAE of factor 8."""
    import torch
    from diffusers import AutoencoderKL

    def make(folder: Path) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            vae = AutoencoderKL(
                block_out_channels=(8,) * 4,
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                norm_num_groups=2,
                scaling_factor=0.5,
            )
        vae.save_pretrained(folder)

    return made_once("small", make)


@pytest.fixture(scope="session")
def demo_mse_bundle(made_once: Once) -> Bundle:
    """An unverified bundle of the demo VAE's second decoder: a swap to it is verified in test_swap.py."""
    return exported(made_once, "fp32/demo-mse", "demo-mse", verify=False)


@pytest.fixture(scope="session")
def full_size_bundle(made_once: Once, pytestconfig: pytest.Config) -> Bundle:
    """The architecture of the SD VAEs with seeded weights, verified, with engines for one profile.

    Without ``--full`` it is verified at 256x256 at most, which takes a quarter of what 512x512 does; the demo VAE is
    verified at 512x512.
    """
    from vaedeploy.bundle import Bundle, edit_bundle
    from vaedeploy.bundle.golden import NAME, encode_golden
    from vaedeploy.images.photos import load_photos
    from vaedeploy.pipeline.export import FRESH, REPORT, export_vae
    from vaedeploy.source import load_reference
    from vaedeploy.system.progress import silent
    from vaedeploy.verify.graphs import verify_graphs
    from vaedeploy.verify.reference import compute_golden
    from vaedeploy.verify.report import summary
    from vaedeploy.verify.shapes import Shape

    def make(folder: Path) -> None:
        reference = load_reference("mse840k", "random:0")
        full = pytestconfig.getoption("--full")
        bundle = export_vae(reference, out=folder / "mse840k", verify=full, profiles=["rtx4090"])
        if full:
            return
        shapes = [Shape("odd", 3, 72, 88, True), Shape("large", 1, 256, 256, False)]
        cases = compute_golden(reference, load_photos(), shapes)
        report = verify_graphs(bundle.manifest, bundle.path, cases, FRESH, None, silent)
        with edit_bundle(bundle) as edit:
            files = {NAME: encode_golden(cases, bundle.manifest.vae.identity), REPORT: report.to_json()}
            edit.put(verification=summary(report), files=files)

    return Bundle.open(made_once("full size", make) / "mse840k")


@pytest.fixture
def unconfigured() -> Iterator[None]:
    """For tests of commands, which configure logging and warnings: both are as they were afterwards."""
    root, own = logging.getLogger(), logging.getLogger("vaedeploy")
    before = root.handlers[:], root.level, own.level, warnings.showwarning
    yield
    root.handlers[:], warnings.showwarning = before[0], before[3]
    root.setLevel(before[1])
    own.setLevel(before[2])


@pytest.fixture
def vaedeploy(capsys: pytest.CaptureFixture[str], unconfigured: None) -> Callable[..., Ended]:
    """Run ``vaedeploy`` with these arguments in this process."""
    from command_line import Ended

    from vaedeploy.cli import main

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ended(ended.value.code, captured.out, captured.err)

    return run
