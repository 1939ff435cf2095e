"""Data sets to caches: what is made, made again, refused and told."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from data_sets import content, data_set, picture
from PIL import Image
from tiny_bundle import tiny_bundle

import vaedeploy as vd
from vaedeploy.bundle import Bundle
from vaedeploy.errors import BackendError, BundleError, InputError, OutputError
from vaedeploy.images.files import read_image
from vaedeploy.images.sizing import Sizing, fitted
from vaedeploy.pipeline.cache import shards
from vaedeploy.pipeline.cache.workers import shared
from vaedeploy.system.lock import lock
from vaedeploy.system.machine import usable_cores
from vaedeploy.system.memory import free_memory
from vaedeploy.values.latent import SizeRule


def failures(folder: Path) -> dict[str, str]:
    lines = (folder / "failed.jsonl").read_text().splitlines()
    return {failure["key"]: failure["reason"] for failure in map(json.loads, lines)}


# ------------------------------------------------------------------------------------------------------- what is made


def test_buckets(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    cached = vd.cache_latents(bundle, photos, tmp_path / "latents", buckets=32, dtype="float32")
    cached.check()
    cache = vd.LatentCache(cached.path)
    sizing = Sizing(SizeRule(4), buckets=32)
    with vd.VAE(bundle.path) as vae:
        for latent in cache:
            pixels = read_image(photos / latent.key)
            fit = sizing.fit(latent.key, pixels.shape[:2])
            assert (latent.original, latent.resized, latent.crop, latent.size) == (
                fit.original,
                fit.resized,
                fit.crop,
                fit.size,
            )
            mean, std = vae.encode_moments(fitted(pixels, fit))
            np.testing.assert_array_equal([latent.mean, latent.std], [mean[0], std[0]])
    assert len(cache.buckets) == 3


def test_pictures_that_keep_their_size_are_padded(bundle: Bundle, tmp_path: Path) -> None:
    path = picture(tmp_path / "photos/a.png", 17, 23)
    vd.cache_latents(bundle, tmp_path / "photos", tmp_path / "latents", dtype="float32").check()
    latent = vd.LatentCache(tmp_path / "latents")["a.png"]
    assert (latent.size, latent.mean.shape) == ((17, 23), (2, 5, 6))
    with vd.VAE(bundle.path) as vae:
        np.testing.assert_array_equal(latent.mean, vae.encode(read_image(path), pad=True)[0])


def test_a_vae_without_a_distribution(photos: Path, tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "tiny", sampled=False)
    vd.cache_latents(tmp_path / "tiny", photos, tmp_path / "latents", size=(16, 16), flip=True).check()
    latent = vd.LatentCache(tmp_path / "latents")[0]
    assert latent.std is None
    assert latent.sample(0) is latent.mean
    assert latent.flipped is not None
    assert latent.sample(0, flipped=True) is latent.flipped[0]


def test_opacity_is_kept_by_a_vae_that_has_it(tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "tiny", image_channels=4)
    picture(tmp_path / "photos/a.png", mode="RGBA")
    picture(tmp_path / "photos/b.png", mode="RGB")
    vd.cache_latents(tmp_path / "tiny", tmp_path / "photos", tmp_path / "latents", size=(16, 16)).check()
    with pytest.raises(
        InputError, match=r"^background is for VAEs of RGB images, and images have opacity here; leave it out$"
    ):
        vd.cache_latents(tmp_path / "tiny", tmp_path / "photos", tmp_path / "latents", background=(0, 0, 0))


# ------------------------------------------------------------------------------------------- again, and beside another


def test_a_second_run_does_nothing(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "latents"
    assert vd.cache_latents(bundle, photos, out, size=(16, 16), shard=5).made == 3
    before = {path: path.stat().st_mtime_ns for path in (out / "shards").iterdir()}
    assert vd.cache_latents(bundle, photos, out, size=(16, 16), shard=5).made == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "shards").iterdir()} == before


def test_bytes_do_not_depend_on_where_things_are(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "copy")  # with the times of files
    vd.cache_latents(bundle, photos, tmp_path / "a", buckets=32, shard=2)
    vd.cache_latents(bundle, tmp_path / "copy", tmp_path / "deep/er", buckets=32, shard=2, options={"threads": 1})
    assert content(tmp_path / "a") == content(tmp_path / "deep/er")


def test_a_changed_picture_is_encoded_again(bundle: Bundle, tmp_path: Path) -> None:
    photos, out = data_set(tmp_path / "photos", 6), tmp_path / "latents"
    vd.cache_latents(bundle, photos, out, dtype="float32", shard=1)
    picture(photos / "000.png", seed=99)
    os.utime(photos / "000.png", ns=(0, 5))
    assert vd.cache_latents(bundle, photos, out, dtype="float32", shard=1).made == 1
    with vd.VAE(bundle.path) as vae:
        wanted = vae.encode(read_image(photos / "000.png"))[0]
    np.testing.assert_array_equal(vd.LatentCache(out)["000.png"].mean, wanted)


def test_a_picture_that_changes_in_between_fails_and_is_encoded_by_the_next_run(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out = data_set(tmp_path / "photos", 2), tmp_path / "latents"
    make = shards.make_shard

    def change_first(*arguments: object) -> bool:
        os.utime(photos / "000.png", ns=(0, 7))
        return make(*arguments)

    monkeypatch.setattr("vaedeploy.pipeline.cache.make_shard", change_first)
    assert vd.cache_latents(bundle, photos, out, size=(16, 16)).pictures == 1
    assert failures(out) == {"000.png": "000.png has changed since this run began. Run the command again"}
    assert vd.cache_latents(bundle, photos, out, size=(16, 16)).failures == ()


@pytest.mark.parametrize("fault", ["truncated", "empty"])
def test_a_broken_shard_is_made_again(fault: str, bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "latents"
    vd.cache_latents(bundle, photos, out, size=(16, 16))
    whole = content(out)
    (shard,) = (out / "shards").iterdir()
    shard.write_bytes(shard.read_bytes()[:-1] if fault == "truncated" else b"")
    assert vd.cache_latents(bundle, photos, out, size=(16, 16)).made == 1
    assert content(out) == whole


def test_a_bundle_gets_no_cache(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    place = shutil.copytree(bundle.path, tmp_path / "bundle")
    with pytest.raises(OutputError, match="is a bundle, and another file would damage it"):
        vd.cache_latents(bundle, photos, place, size=(16, 16))
    vd.cache_latents(bundle, photos, tmp_path / "latents", size=(16, 16))
    with pytest.raises(OutputError, match="is a bundle, and another file would damage it"):
        vd.recast_cache(tmp_path / "latents", place, "files")
    Bundle.open(place).check()


def test_a_lack_of_memory_is_no_fault_of_a_picture(
    bundle: Bundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard would name the picture as broken for ever."""

    def lacking(image: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("PIL.ImageFile.ImageFile.load", lacking)
        with pytest.raises(BackendError, match="there is not enough memory to decode"):
            vd.cache_latents(bundle, photos, tmp_path / "latents", size=(16, 16))
    assert vd.cache_latents(bundle, photos, tmp_path / "latents", size=(16, 16)).failures == ()


def test_a_disk_that_fails_for_a_moment_is_no_fault_of_a_picture(
    bundle: Bundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard would name the picture as failed for ever."""

    def failing(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr("vaedeploy.pipeline.cache.sources.handle_bytes", failing)
        with pytest.raises(BackendError, match="cannot be read now: Input/output error"):
            vd.cache_latents(bundle, photos, tmp_path / "latents", size=(16, 16))
    assert vd.cache_latents(bundle, photos, tmp_path / "latents", size=(16, 16)).failures == ()


def test_other_options_and_another_vae_are_refused(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "latents"
    vd.cache_latents(bundle, photos, out, size=(16, 16))
    whole = content(out)
    with pytest.raises(OutputError, match="of other options: dtype is float16 there and float32 here, flip is False"):
        vd.cache_latents(bundle, photos, out, size=(16, 16), dtype="float32", flip=True)
    other = tiny_bundle(tmp_path / "other", channels=3)
    with pytest.raises(OutputError, match=r"of other options: latent channels is 2 there and 3 here\. Choose another"):
        vd.cache_latents(other, photos, out, size=(16, 16))
    (tmp_path / "empty").mkdir()
    with pytest.raises(OutputError, match="background is none there and"):  # before pictures are looked for
        vd.cache_latents(bundle, tmp_path / "empty", out, size=(16, 16), background=(0, 0, 0))
    assert content(out) == whole


def test_a_shard_that_another_job_has_is_waited_for(
    bundle: Bundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other job has the shard when this one comes to it, and is stopped then."""
    out = tmp_path / "latents"
    vd.cache_latents(bundle, photos, out, size=(16, 16))
    whole = content(out)
    (shard,) = (out / "shards").iterdir()
    shard.unlink()
    held = lock(shard.with_name(f".{shard.name}.lock"))
    assert held.__enter__()
    looks = []

    def look(*arguments: object) -> bool:
        looks.append(shards.is_free(*arguments))
        if len(looks) == 2:
            held.__exit__(None, None, None)
        return looks[-1]

    monkeypatch.setattr("vaedeploy.pipeline.cache.is_free", look)
    vd.cache_latents(bundle, photos, out, size=(16, 16))
    assert looks == [False, False, True]
    assert content(out) == whole


def test_what_killed_jobs_left_is_removed(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "latents"
    (out / "shards").mkdir(parents=True)
    left = [out / "shards" / f".a.safetensors.{'0' * 12}.tmp", out / "shards/.a.safetensors.lock", out / ".x.lock"]
    for path in left:
        path.touch()
    vd.cache_latents(bundle, photos, out, size=(16, 16))
    assert not any(path.exists() for path in left)


def test_a_full_disk_is_told_and_gone_on_from(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    out = tmp_path / "latents"
    signal = pytest.importorskip("signal")
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
        with pytest.raises(OutputError, match="File too large"):
            vd.cache_latents(bundle, photos, out, size=(64, 64), shard=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(content(out)) == ["cache.json"]
    assert vd.cache_latents(bundle, photos, out, size=(64, 64), shard=4).made == 3


# ------------------------------------------------------------------------------------------------------ what cannot be


def bad_pictures(folder: Path) -> dict[str, str]:
    """Pictures that fail, and what is said of each."""
    whole = picture(folder / "good.png").read_bytes()
    (folder / "truncated.png").write_bytes(whole[:-900])
    (folder / "cut.png").write_bytes(whole[:20])
    (folder / "empty.jpg").touch()
    (folder / "words.jpg").write_text("no picture")
    picture(folder / "glass.png", mode="RGBA")
    (folder / "painted.psd").write_bytes(b"8BPS" + bytes(40))
    (folder / "camera.CR3").write_bytes(b"\0\0\0\x18ftypcrx " + bytes(40))
    Image.new("L", (16, 16)).save(folder / "preview.tif", tiffinfo={254: 1})
    (folder / "preview.tif").rename(folder / "camera.nef")
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    (folder / "new.jxl").write_bytes(b"\xff\x0a" + bytes(9))
    return {
        "camera.CR3": "camera.CR3 is not an image",
        "camera.nef": "camera.nef begins with a small preview of its picture",
        "cut.png": "cut.png cannot be decoded, it is truncated or broken",
        "empty.jpg": "empty.jpg is empty (0 bytes)",
        "glass.png": "Set it with --background, such as --background white, or flatten the picture first",
        "new.jxl": "install pillow-jxl-plugin",
        "painted.psd": "painted.psd is not an image",
        "phone.heic": "install pillow-heif",
        "truncated.png": "truncated.png cannot be decoded, it is truncated or broken",
        "words.jpg": "words.jpg is not an image",
    }


def test_each_picture_that_fails_is_named(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaedeploy.images.plugins.plugin_formats", list)
    monkeypatch.setattr("vaedeploy.images.files.plugin_formats", list)
    reasons = bad_pictures(tmp_path / "photos")
    cached = vd.cache_latents(bundle, tmp_path / "photos", tmp_path / "latents", size=(16, 16))
    assert vd.LatentCache(cached.path).keys == ["good.png"]
    told = failures(cached.path)
    assert list(told) == sorted(reasons)
    for key, reason in reasons.items():
        assert reason in told[key]
    with pytest.raises(InputError, match=r"10 of 11 pictures failed; .*failed\.jsonl has the reason of each"):
        cached.check()
    again = vd.cache_latents(bundle, tmp_path / "photos", tmp_path / "latents", size=(16, 16))
    assert (again.made, again.failures) == (0, cached.failures)


def test_any_number_of_threads_that_read_gives_the_same_bytes(bundle: Bundle, tmp_path: Path) -> None:
    photos = data_set(tmp_path / "photos", 20)
    bad_pictures(photos)
    for threads in (1, 8):
        vd.cache_latents(bundle, photos, tmp_path / str(threads), size=(16, 16), options={"threads": threads})
    assert content(tmp_path / "1") == content(tmp_path / "8")
    assert len(vd.LatentCache(tmp_path / "8")) == 21


def test_every_picture_that_can_be_read_is(bundle: Bundle, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    picture(photos / "a.jpg", mode="CMYK")
    picture(photos / "a.png")
    picture(photos / "A.PNG")
    picture(photos / "a/b/c.webp")
    picture(photos / "grey.tif", mode="L")
    Image.new("RGBA", (40, 24), (1, 2, 3, 255)).save(photos / "opaque.png")
    picture(photos / "named.jpg").rename(photos / "without_a_suffix")
    picture(photos / "other.png").rename(photos / "other.jpg")
    Image.fromarray(np.full((24, 40), 40000, np.uint16)).save(photos / "deep.png")
    frames = [Image.new("RGB", (40, 24), color) for color in ("red", "blue")]
    frames[0].save(photos / "moves.gif", save_all=True, append_images=frames[1:])
    for name in ("a.txt", "notes.json", ".hidden.png", "Thumbs.db"):
        (photos / name).write_bytes(b"no picture")
    vd.cache_latents(bundle, photos, tmp_path / "latents", size=(16, 16)).check()
    keys = ["A.PNG", "a.jpg", "a.png", "a/b/c.webp", "deep.png", "grey.tif", "moves.gif", "opaque.png", "other.jpg"]
    assert vd.LatentCache(tmp_path / "latents").keys == [*keys, "without_a_suffix"]


def test_transparent_pictures_are_flattened_on_a_background(bundle: Bundle, tmp_path: Path) -> None:
    Image.new("RGBA", (40, 24), (255, 0, 0, 0)).save(picture(tmp_path / "photos/a.png"))
    out = tmp_path / "latents"
    vd.cache_latents(bundle, tmp_path / "photos", out, dtype="float32", background=(10, 20, 30)).check()
    with vd.VAE(bundle.path) as vae:
        wanted = vae.encode(np.broadcast_to(np.array([10, 20, 30], np.uint8), (24, 40, 3)))[0]
    np.testing.assert_array_equal(vd.LatentCache(out)["a.png"].mean, wanted)


def test_a_latent_that_does_not_fit_its_type_fails(photos: Path, tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "tiny", gain=1e9, sampled=False)
    cached = vd.cache_latents(tmp_path / "tiny", photos, tmp_path / "latents", size=(16, 16))
    assert len(cached.failures) == 12
    assert "has NaN, infinity, or a number that float16 does not hold" in cached.failures[0].reason
    assert len(vd.LatentCache(tmp_path / "latents")) == 0


@pytest.mark.parametrize(
    ("source", "options", "reason"),
    [
        ("nothing", {}, "^there is no file or folder .*nothing$"),
        ("empty", {}, "there is no picture in .*empty"),
        ("file.bin", {}, "is not a source of pictures: give a folder, a list of files"),
        ("empty", {"workers": 0}, "workers is 0; it must be 1 or more"),
        ("empty", {"shard": True}, "shard is True; it must be 1 or more"),
        ("empty", {"dtype": "int8"}, "dtype is 'int8'; it must be one of float16, bfloat16, float32"),
        ("empty", {"size": (15, 16)}, "size is 15x16, but both must be multiples of 4"),
    ],
)
def test_refused(source: str, options: dict[str, object], reason: str, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.bin").touch()
    with pytest.raises(InputError, match=reason):
        vd.cache_latents(bundle, tmp_path / source, tmp_path / "latents", **options)
    assert not (tmp_path / "latents").exists()


def test_places_that_cannot_be_written_to(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write to .*file: Not a directory"):
        vd.cache_latents(bundle, photos, tmp_path / "file")
    (tmp_path / "latents/shards").mkdir(parents=True)
    (tmp_path / "latents/shards/a.safetensors").touch()
    with pytest.raises(OutputError, match=r"has shards, such as a\.safetensors, and no cache\.json"):
        vd.cache_latents(bundle, photos, tmp_path / "latents")


def test_another_vae_in_the_bundles_place_is_refused(photos: Path, tmp_path: Path) -> None:
    """It comes between the reading of the bundle and the first shard."""
    first = tiny_bundle(tmp_path / "tiny")
    manifest = msgspec.structs.replace(
        first.manifest, vae=msgspec.structs.replace(first.manifest.vae, identity="2" * 64)
    )
    held = Bundle(first.path, manifest)
    with pytest.raises(BundleError, match="2222"):
        vd.cache_latents(held, photos, tmp_path / "latents", size=(16, 16))


def test_workers_share_cores_and_memory() -> None:
    assert shared({"max_memory": 10_000_001, "identity": "a"}, 2) == {
        "threads": max(1, usable_cores() // 2),
        "max_memory": 5_000_000,
        "identity": "a",
    }
    assert shared({"threads": 3, "max_memory": 2**20}, 2)["threads"] == 3
    free = free_memory()
    if free is not None:
        share = shared({"max_memory": None}, 4)["max_memory"]
        assert share == pytest.approx(free * 0.7 / 4, rel=0.2)  # others take memory in between
