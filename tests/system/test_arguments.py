"""One name where a list of names belongs: every public function that takes a list refuses it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_bundle import tiny_bundle

import vaedeploy as vd
from vaedeploy.pipeline.bench import bench_bundle
from vaedeploy.pipeline.optimize import optimize_onnx
from vaedeploy.system.arguments import as_list


def test_a_list_is_what_can_be_gone_through() -> None:
    assert as_list("names", ("a", "b")) == ["a", "b"]
    assert as_list("names", iter([1])) == [1]
    assert as_list("names", ()) == []


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("rtx4090", "names is a string; give a list: ['rtx4090']"),
        (b"rtx", "names is a string; give a list: [b'rtx']"),
        (Path("demo"), f"names is a path; give a list: [{Path('demo')!r}]"),
        (None, "names is None; give a list"),
        (7, "names is 7; give a list"),
    ],
)
def test_one_name_is_no_list(given: Any, told: str) -> None:
    with pytest.raises(vd.InputError) as refused:
        as_list("names", given)
    assert str(refused.value) == told


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda bundle: vd.build_engines(bundle, profiles="rtx4090"), "profiles"),
        (lambda bundle: vd.export_vae("demo", out=bundle.parent / "new", profiles="rtx4090"), "profiles"),
        (lambda bundle: vd.compare_bundles(str(bundle), "photos"), "bundles"),
        (lambda bundle: bench_bundle(bundle, backends="onnxruntime-cpu"), "backends"),
        (lambda bundle: optimize_onnx(bundle / "decoder.onnx", bundle.parent / "a.onnx", inputs="a"), "inputs"),
    ],
    ids=["build", "export", "compare", "bench", "optimize"],
)
def test_one_name_where_a_list_belongs(call: Callable[[Path], object], name: str, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "tiny").path
    with pytest.raises(vd.InputError, match=f"^{name} is a string; give a list: "):
        call(bundle)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
