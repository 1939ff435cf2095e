"""Files of graphs: those that are none, places that cannot be written to, and a source that is never changed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from upsamplers import digests, upsampler

from vaedeploy.errors import InputError, OutputError
from vaedeploy.pipeline.optimize import optimize_onnx
from vaedeploy.system.lock import lock

# ------------------------------------------------------------------------------------------------------ bad graphs


def test_files_that_are_no_graphs(tmp_path):
    def refused(path: Path) -> str:
        with pytest.raises(InputError) as error:
            optimize_onnx(path, tmp_path / "out.onnx")
        assert not list(tmp_path.glob("*out*"))
        return str(error.value)

    (tmp_path / "text.onnx").write_text("this is no graph")
    (tmp_path / "empty.onnx").touch()
    short = upsampler(tmp_path / "short.onnx")
    data = tmp_path / "short.onnx.data"
    size = data.stat().st_size
    os.truncate(data, size - 8)
    lost = upsampler(tmp_path / "lost.onnx")
    (tmp_path / "lost.onnx.data").unlink()
    broken = upsampler(tmp_path / "broken.onnx", extra=[helper.make_node("Relu", ["nowhere"], ["image"], "relu")])

    assert refused(tmp_path / "none.onnx") == f"there is no file {tmp_path / 'none.onnx'}"
    assert refused(tmp_path) == f"{tmp_path} is a folder; give the .onnx file in it"
    assert refused(tmp_path / "text.onnx").startswith(
        f"{tmp_path / 'text.onnx'} is not an ONNX file, or a damaged one: "
    )
    assert refused(tmp_path / "empty.onnx") == f"{tmp_path / 'empty.onnx'} is not an ONNX file: it holds no graph"
    assert f"and there is no {tmp_path / 'lost.onnx.data'}. Put it there" in refused(lost)
    assert f"is too short: it has {size - 8} bytes, and second ends at {size}" in refused(short)
    assert refused(broken).startswith(f"{broken} is not a valid ONNX model: ")
    old = upsampler(tmp_path / "old.onnx", opset=12)
    assert refused(old).startswith(f"{old} has opset 12; 13 to {onnx.defs.onnx_opset_version()} are taken. Export it ")


@pytest.mark.parametrize(
    ("dtype", "options", "message"),
    [
        (np.float16, {"precision": "fp32"}, "is fp16 and cannot become fp32: what was rounded away does not come back"),
        (np.float16, {"precision": "bf16", "target": "tensorrt"}, "is fp16 and cannot become bf16"),
        (np.float32, {"precision": "bf16"}, "ONNX Runtime has no bfloat16 convolution: bf16 is for --target tensorrt"),
        (np.float32, {"precision": "fp8"}, "precision is 'fp8'; it must be one of fp32, fp16, bf16"),
        (
            np.float32,
            {"target": "tpu"},
            "target is 'tpu'; it must be one of onnxruntime, onnxruntime-cuda, openvino, tensorrt",
        ),
        (
            np.float32,
            {"target": "openvino", "precision": "fp16"},
            "--target openvino is for fp32 graphs: OpenVINO lowers",
        ),
        (np.float64, {}, "computes in float64; export it in float32"),
    ],
)
def test_what_cannot_be_made(tmp_path, dtype, options, message):
    with pytest.raises(InputError) as error:
        optimize_onnx(upsampler(tmp_path / "in.onnx", dtype=dtype), tmp_path / "out.onnx", **options)
    assert message in str(error.value)


# --------------------------------------------------------------------------------------------------- where it goes


def test_what_is_there_stays_without_force(tmp_path):
    source, out = upsampler(tmp_path / "in.onnx"), tmp_path / "out.onnx"
    for taken in (out, tmp_path / "out.onnx.data"):
        taken.write_text("mine")
        with pytest.raises(OutputError) as error:
            optimize_onnx(source, out)
        assert (
            str(error.value)
            == f"{taken} is there already. Replace it with --force (force=True in Python), or give another name with -o"
        )
        assert taken.read_text() == "mine"
        taken.unlink()
    optimize_onnx(source, out)
    first = digests(tmp_path)
    optimize_onnx(source, out, target="tensorrt", force=True)
    assert set(digests(tmp_path)) == set(first)
    assert digests(tmp_path)["out.onnx"] != first["out.onnx"]


@pytest.mark.parametrize("out", ["in.onnx", "in.onnx.data", "link.onnx", "weights"])
def test_the_source_is_never_written_to(tmp_path, out):
    source = upsampler(tmp_path / "in.onnx")
    (tmp_path / "link.onnx").symlink_to("in.onnx")
    if out == "weights":  # another graph whose weights are where ours would go
        source = tmp_path / "renamed.onnx"
        (tmp_path / "in.onnx").rename(source)
        out = "in.onnx"
    before = digests(tmp_path) if out != "in.onnx" or source.name == "in.onnx" else None
    told = (
        "is the graph that is read" if out in ("in.onnx", "link.onnx") and source.name == "in.onnx" else "belongs to .*"
    )
    with pytest.raises(OutputError, match=rf"{told}, which is never written over. Choose another name with -o"):
        optimize_onnx(source, tmp_path / out, force=True)
    assert before is None or digests(tmp_path) == before


def test_places_that_cannot_be_written_to(tmp_path):
    source = upsampler(tmp_path / "in.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(OutputError, match=r"folder\.onnx: it is there and is not a file"):
        optimize_onnx(source, tmp_path / "folder.onnx", force=True)
    with pytest.raises(
        OutputError, match=r"No such file or directory\. Make its folder first, or choose another place"
    ):
        optimize_onnx(source, tmp_path / "nowhere" / "out.onnx")
    with (
        lock(tmp_path / ".out.onnx.lock"),
        pytest.raises(OutputError, match="another process is writing it now"),
    ):
        optimize_onnx(source, tmp_path / "out.onnx")


def test_nothing_half_written_is_left(tmp_path):
    source = upsampler(tmp_path / "in.onnx", gain=1e7)
    killed = tmp_path / ".out.onnx.0123456789ab.tmp"
    killed.mkdir()
    (killed / "out.onnx").touch()
    with pytest.raises(InputError, match="beyond float16's range"):
        optimize_onnx(source, tmp_path / "out.onnx", precision="fp16")
    assert set(digests(tmp_path)) == {"in.onnx", "in.onnx.data"}
