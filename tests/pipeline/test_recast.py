"""Caches as trainers read them, each by the reader's own rules, and compared with what the VAE itself computes."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import content, data_set, picture
from tiny_bundle import encoder_weights, tiny_bundle

import vaedeploy as vd
from vaedeploy.errors import InputError, LatentError, OutputError
from vaedeploy.images.files import read_image
from vaedeploy.images.latent_cache import LatentCache
from vaedeploy.images.latents import read_latent
from vaedeploy.pipeline.kohya import _others

SCALE, SHIFT = (0.18, 2.0, -1.5, 0.5), (0.5, 0.0, -3.0, 1.0)

SIZES = ((64, 64), (48, 80), (80, 48))
"""All three are among the buckets of 64 x 64 pixels in steps of 16."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tiny``, whose scale and shift are not trivial, ``photos`` (6, and one that is cropped), and ``latents``."""
    return make(tmp_path_factory.mktemp("exported"), 4, SCALE, SHIFT)


def make(folder: Path, channels: int, scale: Any, shift: Any) -> Path:
    bundle = tiny_bundle(folder / "tiny", factor=8, channels=channels, scale=scale, shift=shift)
    data_set(folder / "photos", 6, sizes=SIZES)
    picture(folder / "photos/wide.one.png", 50, 120)
    options: dict[str, Any] = {"buckets": 64, "step": 16, "flip": True, "dtype": "float32", "shard": 2}
    vd.cache_latents(bundle, folder / "photos", folder / "latents", **options).check()
    return folder


def raw_moments(made: Path, key: str, mirrored: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """What the encoder's convolution gives a picture of its bucket's size, without scale and shift, in float64."""
    pixels = read_image(made / "photos" / key).astype(np.float64) / 127.5 - 1
    pixels = pixels[:, ::-1] if mirrored else pixels
    height, width, _ = pixels.shape
    patches = pixels.reshape(height // 8, 8, width // 8, 8, 3)
    spec = LatentCache(made / "latents").info.latent
    moments = np.einsum("hiwjc,ocij->ohw", patches, encoder_weights(spec))
    return moments[: spec.channels], np.exp(moments[spec.channels :])


def is_sample(latent: np.ndarray, mean: np.ndarray, std: np.ndarray) -> bool:
    """Whether (latent - mean) / std is standard noise."""
    noise = (latent - mean) / std
    # Of 192 numbers, the deviation is off by 0.05 and the mean by 0.07, each taken four times and more.
    return abs(noise.std() - 1) < 0.25 and abs(noise.mean()) < 0.3


def scaled(values: np.ndarray) -> np.ndarray:
    return (values - np.reshape(SHIFT, (-1, 1, 1))) * np.reshape(SCALE, (-1, 1, 1))


# --------------------------------------------------------------------------------------------------------------- kohya

KOHYA = {
    "kohya-sd": ("_sd.npz", 4, 0.18215, 0.0),
    "kohya-sdxl": ("_sdxl.npz", 4, 0.13025, 0.0),
    "kohya-sd3": ("_sd3.npz", 16, 1.5305, 0.0609),
    "kohya-flux": ("_flux.npz", 16, 0.3611, 0.1159),
}
"""Form -> suffix, and channels, scale and shift that sd-scripts' trainers have of their own."""


@pytest.fixture(scope="module", params=list(KOHYA))
def kohya(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A form, and what ``made`` is, of a VAE of its contract."""
    return request.param, make(tmp_path_factory.mktemp(request.param), *KOHYA[request.param][1:])


def kohya_reads(form: str, picture: Path, bucket: tuple[int, int]) -> dict[str, np.ndarray]:
    """The arrays that sd-scripts looks for in the file beside a picture, by the size of the latent of its bucket."""
    height, width = read_image(picture).shape[:2]
    ending = f"_{bucket[0] // 8}x{bucket[1] // 8}" if form in ("kohya-sd3", "kohya-flux") else ""
    with np.load(picture.with_name(f"{picture.stem}_{width:04d}x{height:04d}{KOHYA[form][0]}")) as file:
        read = {name: file[name + ending] for name in ("latents", "latents_flipped", "original_size", "crop_ltrb")}
    assert read["latents"].dtype == read["latents_flipped"].dtype == np.float32
    assert read["original_size"].tolist() == [width, height]
    assert read["crop_ltrb"].shape == (4,)
    return read


def kohya_trains_on(form: str, latents: np.ndarray) -> np.ndarray:
    """What the diffusion model is given: SD's and SDXL's trainers multiply, SD3's subtracts and multiplies, and FLUX's
    takes them as they are, since its VAE does so when it encodes.
    """
    _, _, scale, shift = KOHYA[form]
    return latents if form == "kohya-flux" else (latents - shift) * scale


def test_kohyas_latents(kohya: tuple[Any, Path]) -> None:
    form, made = kohya
    _, _, scale, shift = KOHYA[form]
    written = vd.recast_cache(made / "latents", made / "photos", form)
    assert len(written) == 7
    for path in sorted(made.glob("photos/**/0*.png")):
        key, bucket = path.relative_to(made / "photos").as_posix(), read_image(path).shape[:2]
        read = kohya_reads(form, path, bucket)
        for name, mirrored in (("latents", False), ("latents_flipped", True)):
            mean, std = raw_moments(made, key, mirrored)
            assert read[name].shape == mean.shape
            assert is_sample(kohya_trains_on(form, read[name]), (mean - shift) * scale, std * scale)
        height, width = bucket
        assert read["crop_ltrb"].tolist() == [0, 0, width, height]
    for path in written:
        path.unlink()


def test_kohyas_mean(kohya: tuple[Any, Path], tmp_path: Path) -> None:
    form, made = kohya
    _, _, scale, shift = KOHYA[form]
    (tmp_path / "000.png").write_bytes((made / "photos/000.png").read_bytes())
    vd.recast_cache(made / "latents", tmp_path, form, sample=False)
    read = kohya_trains_on(form, kohya_reads(form, tmp_path / "000.png", (64, 64))["latents"])
    wanted = (raw_moments(made, "000.png")[0] - shift) * scale
    np.testing.assert_allclose(read, wanted, atol=1e-5)  # float32, of numbers of about 1


def test_kohyas_crop(kohya: tuple[Any, Path], tmp_path: Path) -> None:
    """120 x 50 goes to the bucket 96 x 32, or 80 x 48, ..., and does not fill it when it is made to fit into it."""
    form, made = kohya
    (tmp_path / "wide.one.png").write_bytes((made / "photos/wide.one.png").read_bytes())
    vd.recast_cache(made / "latents", tmp_path, form)
    latent = LatentCache(made / "latents")["wide.one.png"]
    height, width = latent.size
    read = kohya_reads(form, tmp_path / "wide.one.png", latent.size)
    assert read["latents"].shape == (KOHYA[form][1], height // 8, width // 8)
    left, top, right, bottom = read["crop_ltrb"]
    assert (right - left) / (bottom - top) == pytest.approx(120 / 50)
    assert (right - left == width) or (bottom - top == height)
    assert (left, top) == ((width - (right - left)) // 2, (height - (bottom - top)) // 2)


def test_kohyas_files_of_several_sizes(kohya: tuple[Any, Path], tmp_path: Path) -> None:
    """SD3's and FLUX's trainers read those of one size, and keep the others. A broken file is replaced."""
    form, made = kohya
    vd.cache_latents(made / "tiny", made / "photos", tmp_path / "small", size=(32, 32)).check()
    (place,) = [path for path in vd.recast_cache(tmp_path / "small", tmp_path, form) if path.name.startswith("000")]
    with np.load(place) as file:
        small = dict(file)
    for _ in range(2):
        vd.recast_cache(made / "latents", tmp_path, form)
        with np.load(place) as file:
            both = dict(file)
        if form in ("kohya-sd3", "kohya-flux"):
            assert {name.rpartition("_")[2] for name in both} == {"4x4", "8x8"}
            assert all(np.array_equal(both[name], array) for name, array in small.items())
        else:
            assert both["latents"].shape[1:] == (8, 8)
    for broken in (b"", b"no archive", b"PK\x03\x04", b"\x93NUMPY\x01\x00"):
        place.write_bytes(broken)
        vd.recast_cache(made / "latents", tmp_path, form)
        with np.load(place) as file:
            assert len(file.files) == 4


def test_kohyas_contracts(kohya: tuple[Any, Path], tmp_path: Path) -> None:
    """sd-scripts would train on latents of another contract without a word."""
    form, made = kohya
    _, channels, scale, shift = KOHYA[form]
    for other in KOHYA.keys() - {form}:
        words = f"{other} is for latents of {KOHYA[other][1]} channels, factor 8, scale {KOHYA[other][2]} and shift "
        told = f"those of tiny have {channels} channels, factor 8, scale {scale} and shift {shift}. Give --to {form}"
        with pytest.raises(InputError, match=f"^{words}.*{told}$"):
            vd.recast_cache(made / "latents", tmp_path / "out", other)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------------- webdataset


def webdataset_reads(path: Path) -> list[dict[str, Any]]:
    """The samples of a tar file: neighbours whose names are equal up to the first dot behind the last slash."""
    samples: list[dict[str, Any]] = []
    with tarfile.open(path) as tar:
        for member in tar:
            folder, _, name = member.name.rpartition("/")
            key, _, kind = name.partition(".")
            file = tar.extractfile(member)
            assert file is not None
            if not samples or samples[-1]["__key__"] != f"{folder}/{key}":
                samples.append({"__key__": f"{folder}/{key}"})
            assert kind not in samples[-1]
            load = np.load if kind.endswith("npy") else json.load
            samples[-1][kind] = load(io.BytesIO(file.read()))
    return samples


def test_webdatasets_latents_are_those_of_the_diffusion_model(made: Path, tmp_path: Path) -> None:
    written = vd.recast_cache(made / "latents", tmp_path, "webdataset")
    assert [path.name for path in written] == [f"{number:06}.tar" for number in range(len(written))]
    keys = []
    for path in written:
        samples = webdataset_reads(path)
        assert len({sample["npy"].shape for sample in samples}) == 1
        for sample in samples:
            about = sample["json"]
            keys.append(about["key"])
            assert about["latent"]["scale"] == list(SCALE)
            assert about["raw"] is False
            if about["key"] != "wide.one.png":
                mean, std = raw_moments(made, about["key"])
                assert is_sample(sample["npy"], scaled(mean), std * np.reshape(np.abs(SCALE), (-1, 1, 1)))
                assert tuple(about["original"]) == read_image(made / "photos" / about["key"]).shape[:2]
    assert sorted(keys) == sorted(LatentCache(made / "latents").keys)


# --------------------------------------------------------------------------------------------------------------- files


def test_files_are_those_of_encode(vaedeploy: Any, made: Path, tmp_path: Path) -> None:
    picture, encoded = made / "photos/000.png", tmp_path / "000.safetensors"
    assert vaedeploy("encode", made / "tiny", picture, "-o", encoded).code == 0
    vd.recast_cache(made / "latents", tmp_path / "out", "files", sample=False)
    assert (tmp_path / "out/000.png.safetensors").read_bytes() == encoded.read_bytes()
    np.testing.assert_allclose(read_latent(encoded).latent[0], scaled(raw_moments(made, "000.png")[0]), atol=1e-5)
    vd.recast_cache(made / "latents", tmp_path / "samples", "files")
    mean, std = raw_moments(made, "000.png")
    sample = read_latent(tmp_path / "samples/000.png.safetensors").latent[0]
    assert is_sample(sample, scaled(mean), std * np.reshape(np.abs(SCALE), (-1, 1, 1)))


def test_files_of_mirrored_pictures(vaedeploy: Any, made: Path, tmp_path: Path) -> None:
    assert len(vd.recast_cache(made / "latents", tmp_path, "files", sample=False)) == 14
    mirrored = read_latent(tmp_path / "000.png.flipped.safetensors").latent[0]
    np.testing.assert_allclose(mirrored, scaled(raw_moments(made, "000.png", mirrored=True)[0]), atol=1e-5)
    ended = vaedeploy("recast", made / "latents", "--to", "files", "-o", tmp_path / "again")
    assert ended.code == 0
    assert "14 files written" in ended.err


# ----------------------------------------------------------------------------------------------------------------- all


@pytest.mark.parametrize("form", ["webdataset", "files"])
def test_the_same_again(form: Any, made: Path, tmp_path: Path) -> None:
    is_the_same_again(form, made, tmp_path)


def test_kohyas_the_same_again(kohya: tuple[Any, Path], tmp_path: Path) -> None:
    is_the_same_again(*kohya, tmp_path)


def is_the_same_again(form: Any, made: Path, tmp_path: Path) -> None:
    for name in "aba":
        vd.recast_cache(LatentCache(made / "latents"), tmp_path / name, form)
    vd.recast_cache(made / "latents", tmp_path / "c", form, seed=1)
    assert content(tmp_path / "a") == content(tmp_path / "b") != content(tmp_path / "c")


def test_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="form is 'mds'; it must be one of kohya-sd, kohya-sdxl, kohya-sd3, kohya-"):
        vd.recast_cache(made / "latents", tmp_path, "mds")  # type: ignore[arg-type]
    tiny_bundle(tmp_path / "sd", factor=8, channels=4, scale=0.18215)
    vd.cache_latents(tmp_path / "sd", made / "photos", tmp_path / "own")
    with pytest.raises(InputError, match="keeps the sizes of pictures, and kohya's sd-scripts reads latents of its"):
        vd.recast_cache(tmp_path / "own", tmp_path / "out", "kohya-sd")
    with pytest.raises(InputError, match=r"have 4 channels, factor 8, scale 0\.18,2\.0,-1\.5,0\.5 and shift 0\.5,.*$"):
        vd.recast_cache(made / "latents", tmp_path / "out", "kohya-sd")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot make the folder .*file"):
        vd.recast_cache(made / "latents", tmp_path / "file", "files")


@pytest.mark.parametrize(
    ("names", "form", "name"),
    [(("a.png", "a.jpg"), "kohya-sd", "a_0064x0064_sd.npz"), (("a.b.png", "a_b.png"), "webdataset", "a_b_png")],
)
def test_names_that_would_be_equal(names: tuple[str, str], form: Any, name: str, tmp_path: Path) -> None:
    for each in names:
        picture(tmp_path / "photos" / each, 64, 64)
    tiny_bundle(tmp_path / "sd", factor=8, channels=4, scale=0.18215)
    vd.cache_latents(tmp_path / "sd", tmp_path / "photos", tmp_path / "latents", size=(64, 64)).check()
    with pytest.raises(InputError, match=f"would both be written as {name}; rename one"):
        vd.recast_cache(tmp_path / "latents", tmp_path / "out", form)
    assert len(vd.recast_cache(tmp_path / "latents", tmp_path / "out", "files")) == 2


def test_keys_that_leave_the_folder(made: Path, tmp_path: Path) -> None:
    """An index may come from a stranger."""
    index = (made / "latents/index.json").read_text().replace("more/001.png", "../../01.png")
    (tmp_path / "shards").symlink_to(made / "latents/shards")
    (tmp_path / "index.json").write_text(index)
    with pytest.raises(LatentError, match=r"has a picture '\.\./\.\./01\.png', whose file would be outside"):
        vd.recast_cache(tmp_path, tmp_path / "out", "files")


@pytest.mark.parametrize("fault", ["compressed", "encrypted"])
def test_a_damaged_file_of_kohyas_counts_as_none(fault: str, tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", latents_8x8=np.arange(256.0))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    if fault == "compressed":
        data[80:200] = bytes(255 - byte for byte in data[80:200])
    else:
        data[6] |= 1
        data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.npz").write_bytes(data)
    assert _others(tmp_path / "a.npz", "_4x4") == {}
