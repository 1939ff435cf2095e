"""Graphs on disk."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tiny_bundle import tiny_bundle

from vaedeploy.graph.graph import content_sha256, load_graph, map_linked_weights, save_form
from vaedeploy.values.kinds import PARTS


@pytest.mark.parametrize("part", PARTS)
def test_weights_in_a_file_of_two_names(tmp_path: Path, part: str) -> None:
    """onnx_ir refuses them; a copy by ``cp -al`` has nothing else."""
    path = tiny_bundle(tmp_path / "tiny").path / f"{part}.onnx"
    before = load_graph(path, part)
    expected = content_sha256(before)
    os.link(f"{path}.data", tmp_path / "second name")
    with pytest.raises(ValueError, match="multiple hard links"):
        ir.load(path).graph.initializers["weights"].const_value.numpy()
    after = load_graph(path, part)
    assert content_sha256(after) == expected
    save_form(after, tmp_path / "tiny" / "new.onnx", shared=False)
    for name, value in load_graph(tmp_path / "tiny" / "new.onnx", part).model.graph.initializers.items():
        np.testing.assert_array_equal(
            value.const_value.numpy(), after.model.graph.initializers[name].const_value.numpy()
        )


def test_weights_elsewhere_stay_refused(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path / "tiny").path / "decoder.onnx"
    os.link(f"{path}.data", tmp_path / "secret")
    graph = ir.load(path)
    graph.graph.initializers["weights"].const_value = ir.ExternalTensor(
        "../secret", 0, 64, ir.DataType.FLOAT, shape=ir.Shape([16]), name="weights", base_dir=path.parent
    )
    map_linked_weights(graph)
    with pytest.raises(ValueError, match="outside the base directory"):
        graph.graph.initializers["weights"].const_value.numpy()
