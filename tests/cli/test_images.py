"""Pictures and latents on the command line: encoded and decoded, alone and by the folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_bundle import tiny_bundle

from vaedeploy.errors import MemoryLimitError
from vaedeploy.images.files import read_image
from vaedeploy.images.latents import LatentFile, read_latent, write_latent
from vaedeploy.pipeline.codec import decode_files, encode_files
from vaedeploy.runtime import VAE
from vaedeploy.system.progress import UNMEASURED
from vaedeploy.values.latent import LatentSpec


def photo(path: Path, height: int = 16, width: int = 24, seed: int = 0) -> Path:
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


# ----------------------------------------------------------------------------------------------- encode and decode


def test_encode_then_decode_is_what_the_runtime_gives(vaedeploy, bundle, tmp_path):
    picture = photo(tmp_path / "a.png")
    latent, decoded = tmp_path / "a.safetensors", tmp_path / "decoded.png"
    ended = vaedeploy("encode", bundle, picture, "-o", latent)
    assert (ended.code, ended.out) == (0, f"{latent}\n")
    assert ended.err.startswith("Encoding a.png, 16x24 ...\nEncoding a.png, 16x24: done in ")
    assert vaedeploy("decode", bundle, latent, "-o", decoded).out == f"{decoded}\n"
    with VAE(bundle) as vae:
        expected = vae.encode(read_image(picture))
        np.testing.assert_array_equal(read_latent(latent).latent, expected)
        np.testing.assert_array_equal(read_image(decoded), vae.decode(expected)[0])
        assert read_latent(latent).vae_identity == vae.manifest.vae.identity


def test_what_takes_more_than_max_memory_is_told_with_its_file(tiny_vae_bundle, tmp_path):
    picture, latent = photo(tmp_path / "a.png", 384, 256), tmp_path / "a.safetensors"
    with VAE(tiny_vae_bundle.path, "onnxruntime-cpu") as vae:
        encode_files(vae, picture, latent, sample=False, seed=None, pad=False).check()
    with VAE(tiny_vae_bundle.path, "onnxruntime-cpu", max_memory=2**20) as vae:
        with pytest.raises(MemoryLimitError, match=rf"^{re.escape(str(picture))}: max_memory is 1,048,576 bytes"):
            encode_files(vae, picture, tmp_path / "b.safetensors", sample=False, seed=None, pad=False)
        with pytest.raises(MemoryLimitError, match=rf"^{re.escape(str(latent))}: max_memory is 1,048,576 bytes"):
            decode_files(vae, latent, tmp_path / "b.png")
    assert not [*tmp_path.glob("b.*")]


def test_each_file_of_a_folder_is_told_with_its_size_while_it_is_computed(bundle, tmp_path):
    for name, height in (("a.png", 16), ("b.png", 18)):
        photo(tmp_path / "in" / name, height)
    said: list[tuple[str, float, float]] = []

    def tell(*step):
        said.append(step)

    with VAE(bundle) as vae:
        encode_files(vae, tmp_path / "in", tmp_path / "out", sample=False, seed=None, pad=True, progress=tell).check()
        decode_files(vae, tmp_path / "out", tmp_path / "images", progress=tell).check()
    for doing, folder, suffix in (("Encoding", "in", "png"), ("Decoding", "out", "safetensors")):
        first, second = (
            [(f"{file}.{suffix}, {size}", done, UNMEASURED) for done in (0, UNMEASURED)]
            for file, size in (("a", "16x24"), ("b", "18x24"))
        )
        none, one, both = ((f"{doing} {tmp_path / folder}", done, 2) for done in range(3))
        assert said[:7] == [none, *first, one, *second, both]
        del said[:7]


def test_a_size_that_is_not_a_multiple_is_refused_without_pad(vaedeploy, bundle, tmp_path):
    ended = vaedeploy("encode", bundle, photo(tmp_path / "a.png", 17, 24), "-o", tmp_path / "a.safetensors")
    assert (ended.code, ended.out) == (2, "")
    told = f"Error: {tmp_path / 'a.png'}: image is 17x24 (height x width), but both must be multiples of 4"
    assert told in ended.err
    assert not (tmp_path / "a.safetensors").exists()


def test_padding_is_cut_off_again(vaedeploy, bundle, tmp_path):
    picture, latent = photo(tmp_path / "a.png", 17, 23), tmp_path / "a.safetensors"
    assert vaedeploy("encode", bundle, picture, "-o", latent, "--pad").code == 0
    assert vaedeploy("decode", bundle, latent, "-o", tmp_path / "b.png").code == 0
    assert read_image(tmp_path / "b.png").shape == (17, 23, 3)


def test_a_seed_draws_the_same_again(vaedeploy, bundle, tmp_path):
    picture = photo(tmp_path / "a.png")
    drawn = {}
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        out = tmp_path / f"{name}.safetensors"
        assert vaedeploy("encode", bundle, picture, "-o", out, "--sample", "--seed", seed).code == 0
        drawn[name] = read_latent(out).latent
    np.testing.assert_array_equal(drawn["one"], drawn["again"])
    assert not np.array_equal(drawn["one"], drawn["two"])


def test_a_folder_goes_on_after_a_failure(vaedeploy, bundle, tmp_path):
    pictures, latents, decoded = tmp_path / "pictures", tmp_path / "latents", tmp_path / "decoded"
    for number, name in enumerate(("a.png", "b.PNG", "c.png")):
        photo(pictures / name, 17 if name == "c.png" else 16, seed=number)
    (pictures / "broken.jpg").write_bytes(b"not a picture")
    (pictures / "notes.txt").write_text("neither")
    ended = vaedeploy("encode", bundle, pictures, "-o", latents)
    assert ended.code == 2
    assert ended.out == f"{latents / 'a.safetensors'}\n{latents / 'b.safetensors'}\n"
    told = ended.err.partition("Error: ")[2].splitlines()
    assert told[0] == "2 of 4 files failed; the others are written:"
    assert told[1].startswith(f"  {pictures / 'broken.jpg'} ")
    assert told[2].startswith(f"  {pictures / 'c.png'}: image is 17x24")
    assert sorted(p.name for p in latents.iterdir()) == ["a.safetensors", "b.safetensors"]
    assert vaedeploy("decode", bundle, latents, "-o", decoded).code == 0
    assert sorted(p.name for p in decoded.iterdir()) == ["a.png", "b.png"]


def test_names_from_strangers_are_shown_and_not_obeyed(vaedeploy, bundle, tmp_path):
    """One that is not UTF-8 used to end a whole folder with a traceback; an escape sequence reached the terminal."""
    pictures = tmp_path / "pictures"
    for name in (b"\xff\xfe.png", b"\x1b[31m.png"):
        photo(pictures / os.fsdecode(name))
    (pictures / os.fsdecode(b"\xff.txt")).touch()
    ended = vaedeploy("encode", bundle, pictures, "-o", tmp_path / "latents")
    assert (ended.code, ended.out.splitlines()) == (
        0,
        [str(tmp_path / "latents" / name) for name in ("\\x1b[31m.safetensors", "\\xff\\xfe.safetensors")],
    )
    assert f"Warning: left out of {pictures}: 1 .txt file (\\xff.txt)\n" in ended.err


@pytest.mark.filterwarnings("default")
def test_words_of_a_latent_s_metadata_are_shown_and_not_obeyed(vaedeploy, bundle, tmp_path):
    latent = tmp_path / "a.safetensors"
    spec = LatentSpec(channels=2, factor=4, scale=1.0)
    write_latent(latent, LatentFile(np.zeros((1, 2, 2, 2), np.float32), "\x1b[31m", "\x1b]0;title\x07", spec))
    ended = vaedeploy("decode", bundle, latent, "-o", tmp_path / "a.png")
    assert ended.code == 0
    assert "Warning: \\x1b]0;title\\x07 (\\x1b[31m) made the latent" in ended.err


def test_names_that_are_not_utf8_in_a_comparison(vaedeploy, bundle, tmp_path):
    other = tiny_bundle(tmp_path / "other", seed=1).path
    photo(tmp_path / "pictures" / os.fsdecode(b"\xff.png"), 32, 32)
    ended = vaedeploy("compare", bundle, other, "--images", tmp_path / "pictures", "-o", tmp_path / "page", "--json")
    assert ended.code == 0
    assert '"\\\\xff"' in ended.out
    assert "\\xff" in (tmp_path / "page" / "index.html").read_text()


def test_a_folder_of_failures_leaves_no_folder(vaedeploy, bundle, tmp_path):
    pictures = tmp_path / "pictures"
    photo(pictures / "a.png", 17, 23)
    ended = vaedeploy("encode", bundle, pictures, "-o", tmp_path / "latents")
    assert (ended.code, ended.out) == (2, "")
    assert "Error: 1 of 1 file failed:\n" in ended.err
    assert not (tmp_path / "latents").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["encode", "{bundle}", "empty", "-o", "out"],
            "Error: there is nothing to convert in empty: no file there ends",
        ),
        (
            ["encode", "{bundle}", "twins", "-o", "out"],
            "Error: a.jpg and a.png would both be written to out/a.safetensors",
        ),
        (
            ["encode", "{bundle}", "a.png", "-o", "empty"],
            "Error: empty is a folder and a.png is not: name the file to write, empty/a.safetensors",
        ),
        (["encode", "{bundle}", "a.png", "-o", "{bundle}"], "is a bundle, and another file would damage it. Choose"),
        (["encode", "{bundle}", "a.png", "-o", "{bundle}/a.safetensors"], "is a bundle, and another file would damage"),
        (
            ["encode", "{bundle}", "a.png", "-o", "a.png"],
            "Error: cannot write a latent to a.png: give a name that ends",
        ),
        (["encode", "{bundle}", "twice", "-o", "a.png"], "Error: cannot make the folder a.png: a file is where a"),
        (["decode", "{bundle}", "one.safetensors", "-o", "empty"], "name the file to write, empty/one.png"),
        (
            ["decode", "{bundle}", "one.safetensors", "-o", "a.xyz"],
            "Error: cannot write a picture to a.xyz: give a name that ends in one of .png, ",
        ),
        (
            ["encode", "{bundle}", "twice", "-o", "all.safetensors"],
            "Error: twice is a folder, and all.safetensors is a file's name: give a folder",
        ),
        (["encode", "{bundle}", "none.png", "-o", "empty"], "Error: there is no file or folder none.png\n"),
        (["encode", "{bundle}", "b.png", "-o", "empty"], "no file or folder b.png; the nearest is a.png\n"),
        (
            ["encode", "{bundle}", "https://example.com/a.png", "-o", "empty"],
            "Error: https://example.com/a.png is an address, and vaedeploy reads files; download it first\n",
        ),
        (
            ["encode", "{bundle}", "a.png", "-o", "none/a.safetensors"],
            "Error: cannot write none/a.safetensors: No such file or directory. Make its folder first",
        ),
        (["decode", "{bundle}", "one.safetensors", "-o", "none/a.png"], "Error: cannot write none/a.png: "),
        (["decode", "{bundle}", "two.safetensors", "-o", "b.png"], "Error: two.safetensors holds 2 latents; a picture"),
        (
            ["decode", "{bundle}", "none.safetensors", "-o", "b.png"],
            "Error: there is no file or folder none.safetensors",
        ),
        (
            ["decode", "{bundle}", "a.png", "-o", "b.png"],
            "Error: a.png is an image (PNG), not a latent file; vaedeploy encode takes images\n",
        ),
        (
            ["encode", "{bundle}", "one.safetensors", "-o", "b.safetensors"],
            "Error: one.safetensors is not an image: .safetensors files hold latents, which vaedeploy decode takes\n",
        ),
    ],
)
def test_bad_places_and_files(vaedeploy, bundle, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    for name in ("a.png", "twins/a.png", "twins/a.jpg", "twice/a.png"):
        photo(Path(name))
    for name, count in (("one", 1), ("two", 2)):
        write_latent(f"{name}.safetensors", LatentFile(np.zeros((count, 2, 4, 4), np.float32)))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    ended = vaedeploy(*[a.format(bundle=bundle) for a in arguments])
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("Error: ")  # before the work
    assert message.replace("/", os.sep) in ended.err
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.filterwarnings("default")
def test_another_vaes_latent_is_decoded_and_told_once(vaedeploy, bundle, tmp_path):
    latents = tmp_path / "latents"
    latents.mkdir()
    for name in ("a", "b"):
        write_latent(latents / f"{name}.safetensors", LatentFile(np.zeros((1, 2, 4, 4), np.float32), "2" * 64, "other"))
    ended = vaedeploy("decode", bundle, latents, "-o", tmp_path / "pictures")
    assert ended.code == 0
    told = "Warning: other (222222222222) made the latent, tiny (111111111111) decodes it\n"
    assert ended.err.count(told) == 1
    assert len(list((tmp_path / "pictures").iterdir())) == 2


@pytest.mark.filterwarnings("default")
def test_another_latent_contract_is_told_with_both_values(vaedeploy, bundle, tmp_path):
    spec = LatentSpec(channels=2, factor=4, scale=0.5, shift=0.25)
    made = LatentFile(np.zeros((1, 2, 4, 4), np.float32), "2" * 64, "other", spec)
    write_latent(tmp_path / "a.safetensors", made)
    ended = vaedeploy("decode", bundle, tmp_path / "a.safetensors", "-o", tmp_path / "a.png")
    assert ended.code == 0
    told = "their latent contracts differ: scale is 0.5 there and 1.0 here, shift is 0.25 there and 0.0 here\n"
    assert told in ended.err


@pytest.mark.filterwarnings("default")
def test_an_unverified_bundle_is_told(vaedeploy, tmp_path):
    made = tiny_bundle(tmp_path / "b", verification=None).path
    ended = vaedeploy("encode", made, photo(tmp_path / "a.png"), "-o", tmp_path / "a.safetensors")
    assert ended.code == 0
    assert (
        f"Warning: bundle {made} was never verified; its images may be wrong. Run: vaedeploy verify {made}" in ended.err
    )


@pytest.mark.skipif(sys.platform == "win32", reason="has no pipes of this kind")
@pytest.mark.parametrize("arguments", [["presets"], ["presets", "--json"], ["inspect", "BUNDLE", "--json"], ["--help"]])
def test_a_reader_that_has_gone_changes_nothing(bundle, arguments):
    """As with ``vaedeploy presets | head -1``."""
    ours, theirs = os.pipe()
    os.close(ours)
    command = [sys.executable, "-m", "vaedeploy", *(str(bundle) if a == "BUNDLE" else a for a in arguments)]
    ended = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, text=True)
    os.close(theirs)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.skipif(sys.platform == "win32", reason="has no pipes of this kind")
def test_an_exit_code_survives_a_reader_that_has_gone():
    script = """
import click
from vaedeploy.cli import terminal
@click.command
def command():
    terminal.say("working")
    terminal.show("result")
    raise SystemExit(3)
terminal.run(command, [])
"""
    ours, theirs = os.pipe()
    os.close(ours)
    ended = subprocess.run([sys.executable, "-c", script], stdout=theirs, stderr=theirs)
    os.close(theirs)
    assert ended.returncode == 3


# ----------------------------------------------------------------------------------------------- opacity


@pytest.fixture
def rgba(tmp_path):
    return tiny_bundle(tmp_path / "rgba", image_channels=4).path


def test_opacity_is_encoded_and_decoded(vaedeploy, rgba, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (15, 24, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    ended = vaedeploy("encode", rgba, tmp_path / "a.png", "-o", tmp_path / "a.safetensors", "--pad")
    assert ended.code == 0
    assert "alpha" not in ended.err
    with VAE(rgba) as vae:
        latent = vae.encode(pixels, pad=True)
        image = vae.decode(latent, size=(15, 24))[0]
    np.testing.assert_array_equal(read_latent(tmp_path / "a.safetensors").latent, latent)
    for name in ("b.png", "b.webp", "b.tiff"):
        assert vaedeploy("decode", rgba, tmp_path / "a.safetensors", "-o", tmp_path / name).code == 0
        np.testing.assert_array_equal(read_image(tmp_path / name, opacity=True), image)


def test_pictures_without_opacity_are_encoded_as_opaque_and_that_is_said_once(vaedeploy, rgba, tmp_path):
    for seed, name in enumerate(("a.png", "b.jpg", "c.png")):
        photo(tmp_path / "in" / name, seed=seed)
    ended = vaedeploy("encode", rgba, tmp_path / "in", "-o", tmp_path / "out")
    assert ended.code == 0
    assert ended.err.count("has no alpha channel; it and all others like it are encoded as opaque") == 1
    pixels = read_image(tmp_path / "in" / "a.png")
    with VAE(rgba) as vae:
        expected = vae.encode(np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)]))
    np.testing.assert_array_equal(read_latent(tmp_path / "out" / "a.safetensors").latent, expected)


def test_opacity_is_not_decoded_to_jpeg(vaedeploy, rgba, tmp_path):
    latent = tmp_path / "a.safetensors"
    assert vaedeploy("encode", rgba, photo(tmp_path / "a.png"), "-o", latent).code == 0
    ended = vaedeploy("decode", rgba, latent, "-o", tmp_path / "b.jpg")
    assert ended.code != 0
    assert "JPEG files hold none. Give a name that ends in one of .png, .webp, .tif, .tiff" in ended.err
    assert not (tmp_path / "b.jpg").exists()
    assert vaedeploy("decode", rgba, latent, "-o", tmp_path / "b.png").code == 0


def test_what_can_be_seen_through_is_refused_by_a_vae_of_rgb_images(vaedeploy, bundle, tmp_path):
    Image.new("RGBA", (24, 16), (1, 2, 3, 100)).save(tmp_path / "a.png")
    ended = vaedeploy("encode", bundle, tmp_path / "a.png", "-o", tmp_path / "a.safetensors")
    assert ended.code == 2
    assert (
        "has transparent pixels, whose colour depends on what is behind. Set it with --background, such as" in ended.err
    )


def test_what_can_be_seen_through_is_encoded_in_front_of_a_background(vaedeploy, bundle, tmp_path):
    Image.new("RGBA", (24, 16), (0, 0, 0, 51)).save(tmp_path / "a.png")
    Image.new("RGB", (24, 16), (0, 204, 0)).save(tmp_path / "b.png")
    for name in ("a", "b"):
        made = tmp_path / f"{name}.safetensors"
        assert vaedeploy("encode", bundle, tmp_path / f"{name}.png", "-o", made, "--background", "lime").code == 0
    np.testing.assert_array_equal(*(read_latent(tmp_path / f"{name}.safetensors").latent for name in ("a", "b")))


def test_a_vae_of_images_with_opacity_takes_no_background(vaedeploy, rgba, tmp_path):
    made = tmp_path / "a.safetensors"
    ended = vaedeploy("encode", rgba, photo(tmp_path / "a.png"), "-o", made, "--background", "white")
    told = "Error: background is for VAEs of RGB images, and images have opacity here; leave it out\n"
    assert (ended.code, ended.err, made.exists()) == (2, told, False)


@pytest.mark.filterwarnings("default")
def test_a_latent_of_images_with_opacity_in_a_vae_of_others_is_told(vaedeploy, bundle, tmp_path):
    latent = tmp_path / "a.safetensors"
    spec = LatentSpec(channels=2, factor=4, scale=1.0, image_channels=4)
    write_latent(latent, LatentFile(np.zeros((1, 2, 4, 4), np.float32), "2" * 64, "other", spec))
    ended = vaedeploy("decode", bundle, latent, "-o", tmp_path / "b.png")
    assert "their latent contracts differ: image_channels is 4 there and 3 here" in ended.err
