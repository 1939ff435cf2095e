"""Caches of latents on the command line."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
from data_sets import content, data_set, picture

from vaedeploy.images.latent_cache import LatentCache
from vaedeploy.system.installs import install_command


@pytest.fixture
def photos(tmp_path):
    return data_set(tmp_path / "photos", 3)


def test_a_cache_and_what_a_trainer_reads(vaedeploy, bundle, photos, tmp_path):
    out = tmp_path / "latents"
    ended = vaedeploy("cache", bundle, photos, "-o", out, "--buckets", 32, "--flip", "--dtype", "float32")
    assert (ended.code, ended.out) == (0, f"{out}\n")
    assert "3 pictures in 3 shards, 3 of them made now; 0 pictures failed\n" in ended.err
    assert LatentCache(out).info.flip
    again = vaedeploy("cache", bundle, photos, "-o", out, "--buckets", 32, "--flip", "--dtype", "float32")
    assert "0 of them made now" in again.err
    ended = vaedeploy("recast", out, "--to", "files", "-o", tmp_path / "files")
    assert (ended.code, ended.out) == (0, f"{tmp_path / 'files'}\n")
    assert "6 files written" in ended.err
    assert vaedeploy("decode", bundle, tmp_path / "files/000.png.safetensors", "-o", tmp_path / "a.png").code == 0


def test_failures_are_told_and_the_others_encoded(vaedeploy, bundle, photos, tmp_path):
    (photos / "bad.png").write_bytes(b"no picture")
    ended = vaedeploy("cache", bundle, photos, "-o", tmp_path / "latents", "--no-resize", "--json")
    assert ended.code == 2
    assert "1 of 4 pictures failed" in ended.err
    (photos / "000.png").rename(tmp_path / "one.png")
    (tmp_path / "list.txt").write_text("one.png\ntwo.png\n")
    one = vaedeploy("cache", bundle, tmp_path / "list.txt", "-o", tmp_path / "one", "--no-resize")
    assert "1 picture in 1 shard, 1 of them made now; 1 picture failed\n" in one.err
    document = json.loads(ended.out)
    assert (document["pictures"], document["shards"], document["made"]) == (3, 3, 3)
    assert [failure["key"] for failure in document["failures"]] == ["bad.png"]
    assert document["identity"] == "1" * 64
    assert len(LatentCache(tmp_path / "latents")) == 3


def test_a_background(vaedeploy, bundle, tmp_path):
    picture(tmp_path / "photos/a.png", mode="RGBA")
    command = ("cache", bundle, tmp_path / "photos", "--size", "16x16", "--background")
    for name, color in (("name", "white"), ("number", "#FFFFFF")):
        assert vaedeploy(*command, color, "-o", tmp_path / name).code == 0
    assert content(tmp_path / "name") == content(tmp_path / "number")
    ended = vaedeploy(*command, "glass", "-o", tmp_path / "none")
    assert ended.code == 2
    assert "'glass' is not a colour; give a name, such as white, or #RRGGBB\n" in ended.err
    ended = vaedeploy(*command, "fff", "-o", tmp_path / "none")
    assert ended.err.endswith("or #RRGGBB. Did you mean '#fff'?\n")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ((), "Give one of --buckets, --size and --no-resize."),
        (("--size", "16x16", "--no-resize"), "Give one of --buckets, --size and --no-resize."),
        (("--size", "16x16", "--bucket-step", 8), "--bucket-step needs --buckets."),
        (("--size", "15x16"), "size is 15x16, but both must be multiples of 4"),
    ],
)
def test_usage(options, reason, vaedeploy, bundle, photos, tmp_path):
    ended = vaedeploy("cache", bundle, photos, "-o", tmp_path / "latents", *options)
    assert (ended.code, ended.out) == (2, "")
    assert reason in ended.err
    assert not (tmp_path / "latents").exists()


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_ray_that_is_not_installed(vaedeploy, bundle, photos, tmp_path):
    ended = vaedeploy("cache", bundle, photos, "-o", tmp_path / "latents", "--size", "16x16", "--ray")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == (
        f"Error: cache needs ray, of the extra [ray], which is not installed. Run: {install_command('ray')}\n"
    )
    assert not (tmp_path / "latents").exists()
