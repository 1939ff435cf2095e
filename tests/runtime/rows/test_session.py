"""A VAE with a limit of memory: the result of the whole graph, and what it says of memory that is short."""

from __future__ import annotations

import itertools
import logging
import pickle
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given as given_by
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vaedeploy.bundle import Bundle
from vaedeploy.errors import BackendError, InputError, MemoryLimitError, SizeError
from vaedeploy.runtime import VAE, onnxruntime_cpu
from vaedeploy.runtime.failures import failures_explained
from vaedeploy.runtime.rows.budget import Budget
from vaedeploy.runtime.rows.half import RowsHalf
from vaedeploy.runtime.rows.plan import Plan
from vaedeploy.runtime.rows.session import BoundedRunner
from vaedeploy.runtime.rows.store import Workspace
from vaedeploy.values.kinds import PARTS, Part

FACTOR, CHANNELS = 4, 4

MIB = 2**20


@pytest.fixture
def whole(tiny_vae_bundle: Bundle) -> Iterator[VAE]:
    with VAE(tiny_vae_bundle.path, "onnxruntime-cpu") as vae:
        yield vae


def least(vae: VAE, rows: int, columns: int, part: Any, batch: int = 1) -> int:
    return vae.plan(rows * FACTOR, columns * FACTOR, batch)[part].least


def latents(batch: int, rows: int, columns: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((batch, CHANNELS, rows, columns)).astype(np.float32)


def far(one: NDArray[Any], other: NDArray[Any]) -> float:
    difference = np.linalg.norm(one.astype(np.float64) - other)
    return float(difference / np.linalg.norm(other.astype(np.float64)))


@pytest.mark.parametrize("size", [(1, 96, 64), (2, 61, 130)])
def test_by_rows_is_the_whole(whole: VAE, size: tuple[int, int, int]) -> None:
    batch, rows, columns = size
    given = latents(*size)
    wanted = {output: whole.decode(given, output=output) for output in ("float", "uint8")}  # type: ignore[arg-type]
    results = []
    for more in (0, 1 << 20):
        with VAE(whole.path, "onnxruntime-cpu", max_memory=least(whole, rows, columns, "decoder") + more) as vae:
            assert vae.plan(rows * FACTOR, columns * FACTOR, batch)["decoder"].way == "rows"
            results.append(vae.decode(given, output="float"))
            assert far(results[-1], wanted["float"]) < 1e-6
            levels = vae.decode(given).astype(int)
            assert np.abs(levels - wanted["uint8"]).max() <= 1
            out = np.zeros_like(wanted["uint8"])
            assert vae.decode(given, out=out) is out
            assert np.array_equal(out, levels)
    assert np.array_equal(*results)


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 1, 900), (1, 900, 1), (3, 2, 7)])
def test_extreme_sizes(whole: VAE, tiny_vae_bundle: Bundle, size: tuple[int, int, int]) -> None:
    half = RowsHalf(tiny_vae_bundle, "decoder")
    given = latents(*size)
    results = []
    for budget in (0, 1 << 40):
        plan = half.plan(*size[1:], budget)
        image, levels, finite = half.run(plan, ["image", "image_u8", "finite"], given)
        assert finite.all()
        assert np.abs(levels.astype(int) - whole.decode(given)).max() <= 1
        results.append(image)
    assert far(results[0], whole.decode(given, output="float")) < 2e-6
    assert np.array_equal(*results)


@settings(max_examples=8)
@given_by(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    batch=st.integers(1, 2),
    part=st.sampled_from(PARTS),
    budget=st.integers(0, 1 << 28),
    on_disk=st.booleans(),
)
def test_any_size_within_any_budget_has_the_same_bits(
    tiny_vae_bundle: Bundle,
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    columns: int,
    batch: int,
    part: Part,
    budget: int,
    on_disk: bool,
) -> None:
    workspace = Workspace(tmp_path_factory.getbasetemp()) if on_disk else None
    half = RowsHalf(tiny_vae_bundle, part, threads=1, workspace=workspace)
    if part == "decoder":
        given = latents(batch, rows, columns)
    else:
        shape = batch, 3, rows * FACTOR, columns * FACTOR
        given = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    session = onnxruntime_cpu.Session(tiny_vae_bundle.graph(part, "onnxruntime"), threads=1)
    output = half.table.outputs[0]
    (wanted,) = session.run([output], {half.table.input: given})
    (most,), (some,) = (half.run(half.plan(rows, columns, size), [output], given) for size in (1 << 40, budget))
    assert np.array_equal(most, some)
    assert far(most, wanted) < 2e-6


def test_an_encoder_by_rows_is_the_whole(whole: VAE) -> None:
    image = np.random.default_rng(1).integers(0, 256, (2, 64 * FACTOR, 70 * FACTOR, 3), np.uint8)
    with VAE(whole.path, "onnxruntime-cpu", max_memory=least(whole, 64, 70, "encoder", 2)) as vae:
        assert vae.plan(64 * FACTOR, 70 * FACTOR, 2)["encoder"].way == "rows"
        assert far(vae.encode(image), whole.encode(image)) < 1e-6
        sampled = [each.encode(image, sample=True, seed=3) for each in (vae, whole)]
        assert far(*sampled) < 1e-6


def test_what_fits_runs_whole_with_the_same_bits(whole: VAE) -> None:
    given = latents(2, 8, 8)
    with VAE(whole.path, "onnxruntime-cpu", max_memory=1 << 34) as vae:
        plan = vae.plan(8 * FACTOR, 8 * FACTOR, 2)["decoder"]
        assert (plan.way, plan.again) == ("untiled", 0.0)
        assert np.array_equal(vae.decode(given, output="float"), whole.decode(given, output="float"))


def test_a_limit_below_the_least_is_refused_with_the_least(whole: VAE) -> None:
    needed = least(whole, 96, 64, "decoder")
    message = (
        rf"^max_memory is 1,048,576 bytes, and the decoder takes at least {needed:,} for an image of 384x256 "
        r"\(height x width\). Give that many or more, or a smaller image$"
    )
    with VAE(whole.path, "onnxruntime-cpu", max_memory=MIB) as vae:
        with pytest.raises(MemoryLimitError, match=message):
            vae.decode(latents(1, 96, 64))
        plan = vae.plan(384, 256)["decoder"]
        assert (plan.way, plan.fits, plan.bytes, plan.least) == ("rows", False, needed, needed)


@pytest.mark.parametrize("size", [(1, 1), (1, 30_000)])
def test_rows_that_save_nothing_are_not_taken(whole: VAE, size: tuple[int, int]) -> None:
    """A small picture, and one that is one row high: strips are as wide as the picture."""
    height, width = (side * FACTOR for side in size)
    with VAE(whole.path, "onnxruntime-cpu", max_memory=MIB) as vae:
        plan = vae.plan(height, width)["decoder"]
        assert (plan.way, plan.bytes, plan.fits) == ("untiled", plan.least, False)
        with pytest.raises(MemoryLimitError, match=rf"takes at least {plan.least:,} for an image of {height}x{width} "):
            vae.decode(latents(1, *size))
    with VAE(whole.path, "onnxruntime-cpu", max_memory=plan.least) as vae:
        assert vae.plan(height, width)["decoder"].fits


@pytest.mark.parametrize("size", [("8", 8), (8.0, 8), (None, 8)])
def test_a_plan_is_of_whole_numbers(whole: VAE, size: Any) -> None:
    with pytest.raises(SizeError, match=r"^size is .*; it must be two whole numbers of pixels$"):
        whole.plan(*size)


def test_pixels_that_overflow_have_a_plan(whole: VAE) -> None:
    plans = whole.plan(1 << 70, 1 << 70)
    assert all(plan.bytes > 1 << 70 and not plan.fits for plan in plans.values())


def test_an_array_that_no_memory_holds(whole: VAE) -> None:
    latent = np.broadcast_to(np.float32(0), (1, CHANNELS, 1 << 24, 1 << 24))
    image = np.broadcast_to(np.uint8(0), (1 << 24, 1 << 24, 3))
    for call in (partial(whole.decode, latent), partial(whole.encode, image)):
        with pytest.raises(BackendError, match=r"^Unable to allocate .*\. Give a smaller batch or size$"):
            call()


def test_a_whole_graph_that_finds_no_memory_is_computed_by_rows(
    tiny_vae_bundle: Bundle, whole: VAE, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given = latents(2, 20, 30)
    wanted = whole.decode(given, output="float")

    def fail(*arguments: Any) -> None:
        with failures_explained("ONNX Runtime", tiny_vae_bundle.graph("decoder", "onnxruntime"), {}):
            raise RuntimeError(words)

    monkeypatch.setattr(onnxruntime_cpu.Session, "run", fail)
    with VAE(tiny_vae_bundle.path, "onnxruntime-cpu") as vae:
        words = "bad allocation: Failed to allocate memory for requested buffer of size 1"
        assert vae.plan(20 * FACTOR, 30 * FACTOR)["decoder"].way == "untiled"
        assert far(vae.decode(given, output="float"), wanted) < 1e-6
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "Failed to allocate memory" in caplog.text
        assert "It is computed by rows instead" in caplog.text
        words = "another failure"
        with pytest.raises(BackendError, match=words):
            vae.decode(given)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "4G", True])
def test_what_is_no_number_of_bytes_is_refused(whole: VAE, wrong: Any) -> None:
    with pytest.raises(InputError, match=r"^max_memory is .*; it must be a "):
        VAE(whole.path, max_memory=wrong)


@pytest.mark.parametrize(
    ("slip", "hint"),
    [
        (6, "6 bytes, and nothing is computed in so few. Did you mean 6_000_000_000?"),
        (512, "512 bytes, and nothing is computed in so few. Did you mean 512_000_000?"),
        (600_000, "600,000 bytes, and nothing is computed in so few. Give 1,048,576 or more"),
    ],
)
def test_a_limit_without_its_unit_is_refused_with_what_was_meant(whole: VAE, slip: int, hint: str) -> None:
    with pytest.raises(InputError) as told:
        VAE(whole.path, max_memory=slip)
    assert str(told.value) == f"max_memory is {hint}"


def test_a_workspace_is_a_path(whole: VAE) -> None:
    with pytest.raises(InputError, match=r"^workspace is 5; it must be the path of a folder \(str or Path\), or None$"):
        VAE(whole.path, workspace=5)  # type: ignore[arg-type]


def test_numbers_that_are_not_finite_are_told(
    tiny_vae_bundle: Bundle, whole: VAE, caplog: pytest.LogCaptureFixture
) -> None:
    given = latents(2, 96, 64)
    given[1, :, 50, 3] = 3e38  # in one strip of one item
    needed = least(whole, 96, 64, "decoder")
    with VAE(tiny_vae_bundle.path, "onnxruntime-cpu", max_memory=needed, on_nan="raise") as vae:
        with pytest.raises(BackendError, match="decode gave NaN or infinity in item 1 of a batch of 2"):
            vae.decode(given)
        with caplog.at_level(logging.INFO, "vaedeploy"):
            vae.decode(given[:1])
    assert not caplog.records  # said once, by the first call


def test_it_is_said_once(tiny_vae_bundle: Bundle, whole: VAE, caplog: pytest.LogCaptureFixture) -> None:
    needed = least(whole, 64, 96, "decoder")
    logged = caplog.at_level(logging.INFO, "vaedeploy.runtime.rows")
    with logged, VAE(tiny_vae_bundle.path, "onnxruntime-cpu", max_memory=needed) as vae:
        for _ in range(2):
            vae.decode(latents(1, 64, 96))
    (record,) = caplog.records
    assert record.getMessage().startswith("the decoder of 256x384 runs by rows: ")


@pytest.mark.parametrize("limit", [MIB, None])
def test_a_bundle_without_this_form_runs_whole(
    limit: int | None, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    from tiny_bundle import tiny_bundle

    bundle = tiny_bundle(tmp_path / "old")
    with VAE(bundle.path, "onnxruntime-cpu", max_memory=limit) as vae:
        channels, factor = vae.limits.channels, vae.limits.factor
        for _ in range(2):
            assert vae.decode(np.zeros((1, channels, 2, 2), np.float32)).shape == (1, 2 * factor, 2 * factor, 3)
        told = [record.getMessage() for record in caplog.records]
        assert told == [
            f"calls may take more than max_memory: the decoder of bundle {bundle.path} cannot be computed by rows. "
            f"If an older vaedeploy made it, export it again: {bundle.manifest.export_command(bundle.path)}"
        ] * (limit is not None)
        with pytest.raises(
            BackendError, match=r"cannot be computed by rows\. If an older vaedeploy made it, export it"
        ):
            vae.plan(2 * factor, 2 * factor)


def test_a_bundle_without_rewrites_is_not_to_be_exported_again_like_that(tmp_path: Path) -> None:
    from tiny_bundle import tiny_bundle

    made = tiny_bundle(tmp_path / "plain")
    plain = Bundle(made.path, msgspec.structs.replace(made.manifest, rewrites={}))
    assert RowsHalf(plain, "decoder").missing == (
        f"the decoder of bundle {made.path} cannot be computed by rows, since it was exported with --no-rewrite. "
        "Export it again without that option"
    )


def test_a_workspace_holds_what_memory_does_not(tiny_vae_bundle: Bundle, tmp_path: Path) -> None:
    given, size = latents(2, 96, 256), (96 * FACTOR, 256 * FACTOR)
    found = []
    for workspace in (None, tmp_path):
        opened = partial(VAE, tiny_vae_bundle.path, "onnxruntime-cpu", workspace=workspace)
        with opened(max_memory=MIB) as vae:
            least = vae.plan(*size)["decoder"].least
        with opened(max_memory=least) as vae:
            plan = vae.plan(*size)["decoder"]
            assert (plan.bytes, plan.way, plan.disk > 0) == (least, "rows", workspace is not None)
            found.append((least, vae.decode(given, output="float")))
    (without, first), (within, second) = found
    assert within < without
    assert np.array_equal(first, second)
    assert not list(tmp_path.iterdir())


def test_calls_share_the_memory(tiny_vae_bundle: Bundle, whole: VAE) -> None:
    """With memory for one call alone, others wait; all give the same."""
    given = latents(1, 96, 64)
    wanted = whole.decode(given)
    with VAE(tiny_vae_bundle.path, "onnxruntime-cpu", max_memory=least(whole, 96, 64, "decoder")) as vae:
        found: list[NDArray[Any]] = []
        threads = [threading.Thread(target=lambda: found.append(vae.decode(given))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 3
    assert all(np.abs(levels.astype(int) - wanted).max() <= 1 for levels in found)


def test_progress_is_told(tiny_vae_bundle: Bundle, whole: VAE) -> None:
    told: list[tuple[str, float, float]] = []
    needed = least(whole, 96, 64, "decoder")
    with VAE(
        tiny_vae_bundle.path, "onnxruntime-cpu", max_memory=needed, progress=lambda *told_of: told.append(told_of)
    ) as vae:
        vae.decode(latents(2, 96, 64))
    assert {(what, total) for what, _, total in told} == {("The decoder, 384x256 by rows", 2)}
    done = [amount for _, amount, _ in told]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0.0, 2)
    assert len(done) > 20


def test_the_limit_goes_with_a_pickle(tiny_vae_bundle: Bundle) -> None:
    with VAE(tiny_vae_bundle.path, "onnxruntime-cpu", max_memory=1_234_567) as vae:
        copy = pickle.loads(pickle.dumps(vae))
    with copy, pytest.raises(InputError, match="max_memory is 1,234,567 bytes"):
        copy.decode(latents(1, 96, 64))


def test_a_budget_gives_no_more_than_it_has() -> None:
    budget = Budget(100 * MIB)
    order: list[str] = []

    def second() -> None:
        with budget.take(lambda left, alone: 80 * MIB if left >= 80 * MIB else None):
            order.append("second")

    with budget.take(lambda left, alone: 60 * MIB):
        thread = threading.Thread(target=second)
        thread.start()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    seen: list[tuple[int, bool]] = []

    def choose(left: int, alone: bool) -> int:
        seen.append((left, alone))
        return 5

    for free in (1000, 10):
        shared = Budget(None, partial(int, free))
        with shared.take(choose), shared.take(choose):
            pass
    assert seen == [(700, True), (695, False), (7, True), (2, False)]


def test_what_is_free_is_not_asked_for_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    free = itertools.count(1000, 1000)
    budget = Budget(None, lambda: asked.append(next(free)) or asked[-1])

    def left(kept: int = 0) -> int:
        seen: list[int] = []
        with budget.take(lambda left, alone: seen.append(left) or 5, kept):
            pass
        return seen[0]

    monkeypatch.setattr("vaedeploy.runtime.rows.budget.FRESH", 3600)
    assert (left(), left(), asked) == (700, 700, [1000])
    # What was kept since is no longer free.
    assert (left(kept=500), left(kept=500), asked) == (1750, 1750, [1000, 2000])
    budget.forked()
    monkeypatch.setattr("vaedeploy.runtime.rows.budget.FRESH", 0)
    assert (left(), left(), asked) == (2100, 2800, [1000, 2000, 3000, 4000])


def test_memory_that_was_kept_for_a_call_counts_as_free() -> None:
    seen: list[int] = []

    def choose(left: int, alone: bool) -> int:
        seen.append(left)
        return 5

    for most in (None, MIB):
        with Budget(most, partial(int, 1000)).take(choose, kept=500):
            pass
    assert seen == [1050, MIB]


def test_what_a_call_kept_does_not_make_the_next_one_run_by_rows(tiny_vae_bundle: Bundle) -> None:
    with VAE(tiny_vae_bundle.path, "onnxruntime-cpu", keep_memory=True) as vae:
        runner = vae._dispatch._runner(vae._dispatch._candidates[0], "decoder")
        assert isinstance(runner, BoundedRunner)
        whole = vae.plan(96, 64)["decoder"].bytes
        runner._budget._free = lambda: whole * 2
        vae.decode(latents(1, 96, 64))
        runner._budget._free = lambda: whole  # the other half is what was kept
        assert vae.plan(96, 64)["decoder"].way == "untiled"


def test_a_call_that_runs_when_its_vae_is_closed_ends(whole: VAE) -> None:
    """It reads the weights of its pieces until then."""
    given, told = latents(1, 60, 40), []

    def close(what: str, done: float, total: float) -> None:
        told.append(done)
        vae.close()

    vae = VAE(whole.path, "onnxruntime-cpu", max_memory=least(whole, 60, 40, "decoder"), progress=close)
    np.testing.assert_array_equal(vae.decode(given), whole.decode(given))
    assert len(told) > 2
    with pytest.raises(InputError, match="this VAE is closed"):
        vae.decode(given)


def test_plans_that_another_thread_forgets(tiny_vae_bundle: Bundle) -> None:
    class Forgotten(dict[tuple[int, int, int], Plan]):
        def __setitem__(self, key: tuple[int, int, int], plan: Plan) -> None:
            """They are cleared at once."""

    half = RowsHalf(tiny_vae_bundle, "decoder")
    half._plans = Forgotten()
    assert half.plan(20, 20, 0).bytes > 0
