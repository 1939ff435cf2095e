"""The routes for people: files in, files out, as ``vaedeploy encode`` and ``decode`` write them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from serving import post, read_answer, serving
from tiny_bundle import tiny_bundle

from vaedeploy.images.latents import LatentFile, latent_bytes
from vaedeploy.pipeline.codec import decode_files, encode_files
from vaedeploy.runtime import VAE
from vaedeploy.values.latent import LatentSpec


def photo(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, channels), np.uint8)


def as_file(pixels: np.ndarray, form: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, form)
    return data.getvalue()


def test_files_are_those_of_the_commands(server, vae, tmp_path):
    image, latent, decoded = tmp_path / "photo.png", tmp_path / "photo.safetensors", tmp_path / "decoded.png"
    image.write_bytes(as_file(photo(30, 45)))
    encode_files(vae, image, latent, sample=False, seed=None, pad=True)
    decode_files(vae, latent, decoded)
    encoded = server.request("POST", "/v1/encode?pad=true", image.read_bytes())
    assert (encoded.status, encoded.headers["content-type"]) == (200, "application/octet-stream")
    assert encoded.body == latent.read_bytes()
    answer = server.request("POST", "/v1/decode", encoded.body)
    assert (answer.status, answer.headers["content-type"]) == (200, "image/png")
    assert answer.body == decoded.read_bytes()
    assert "vaedeploy-warning" not in answer.headers


@pytest.mark.parametrize(("accept", "form"), [("image/webp", "WEBP"), ("image/jpeg", "JPEG"), ("image/*", "PNG")])
def test_pictures_are_of_the_accepted_type(server, vae, accept, form):
    latent = vae.encode(photo(16, 24))
    answer = server.request("POST", "/v1/decode", latent_bytes(LatentFile(latent)), {"Accept": accept})
    with Image.open(io.BytesIO(answer.body)) as picture:
        assert (picture.format, picture.size) == (form, (24, 16))
        if form != "JPEG":
            np.testing.assert_array_equal(np.asarray(picture), vae.decode(latent)[0])
    assert answer.headers["content-type"] == f"image/{form.lower()}"


PLAIN, SAFETENSORS = "application/octet-stream", "application/vnd.safetensors"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, PLAIN),
        ("*/*", PLAIN),
        ("application/*;q=0.5", PLAIN),
        (PLAIN, PLAIN),
        (SAFETENSORS, SAFETENSORS),
        (f"{PLAIN};q=0.5, {SAFETENSORS}", SAFETENSORS),
        (f"{SAFETENSORS};q=0.5, */*", PLAIN),
    ],
)
def test_latents_are_of_the_accepted_type(server, accept, kind):
    sent = as_file(photo(16, 24))
    answer = server.request("POST", "/v1/encode", sent, {} if accept is None else {"Accept": accept})
    assert (answer.status, answer.headers["content-type"]) == (200, kind)
    assert answer.body == server.request("POST", "/v1/encode", sent).body
    decoded = server.request("POST", "/v1/decode", answer.body, {"Content-Type": kind})
    assert (decoded.status, decoded.headers["content-type"]) == (200, "image/png")


def test_a_header_may_come_in_several_lines(server, vae):
    body = latent_bytes(LatentFile(vae.encode(photo(16, 24))))
    sent = post("/v1/decode", body, "Accept: image/webp", "Content-Encoding: Identity", "Accept: text/html")
    with server.raw(sent) as connection:
        assert read_answer(connection).headers["content-type"] == "image/webp"


def test_what_bad_files_are_told(server, vae):
    def told(path: str, body: bytes, **headers: str) -> str:
        answer = server.request("POST", path, body, {name.replace("_", "-"): text for name, text in headers.items()})
        return f"{answer.status} {answer.error}"

    good = vae.encode(photo(16, 16))
    two = np.concatenate([good, good])
    assert told("/v1/encode", b"") == "400 the body is empty (0 bytes)"
    refused = told("/v1/encode", b"x")
    assert refused.startswith("400 the body is not an image, or has no pixels; formats that can be")
    assert refused.endswith(". With curl: --data-binary @FILE, since -d leaves line ends out")
    assert told("/v1/encode", as_file(photo(16, 16))[:-40]).startswith("400 the body cannot be decoded, it is trunc")
    assert told("/v1/encode", as_file(photo(30, 16))).startswith("400 image is 30x16 (height x width), but both must")
    assert told("/v1/encode", as_file(photo(8, 8, 4))).startswith("400 the body has transparent pixels, whose colour")
    assert told("/v1/encode?pad=maybe", b"x") == "400 pad is 'maybe'; it must be true or false"
    assert told("/v1/encode?pads=1", b"x") == "400 there is no parameter 'pads' here; there is: model, pad"
    assert told("/v1/encode?pad=1&pad=0", b"x") == "400 a parameter is given twice after the '?'"
    assert told("/v1/encode?model=other", b"x") == "404 there is no VAE 'other'; there is: tiny"
    assert told("/v1/encode", b"x", Accept="image/png") == (
        "406 Accept is 'image/png'; this answer can be application/octet-stream, application/vnd.safetensors"
    )
    assert told("/v1/encode", b"x", Content_Type="multipart/form-data; boundary=x") == (
        "415 the body is multipart/form-data; send the image file itself: curl --data-binary @FILE"
    )
    assert told("/v1/encode", b"x", Content_Encoding="gzip") == (
        "415 the body's encoding is gzip; send it as it is, uncompressed"
    )
    assert told("/v1/decode", b"x").startswith("400 the body is not a safetensors file, or is truncated: ")
    assert (
        told("/v1/decode", as_file(photo(16, 16)))
        == "400 the body is an image (PNG), not a latent file; /v1/encode takes images"
    )
    assert told("/v1/decode", latent_bytes(LatentFile(two))) == (
        "400 the body holds 2 latents; a picture takes one. Send each by itself"
    )
    assert told("/v1/decode", latent_bytes(LatentFile(good[:, :1]))).startswith("400 latent has 1 channel where this")
    assert told("/v1/decode", latent_bytes(LatentFile(good, size=(40, 40)))).startswith(
        "400 size is 40x40 (height x width), but this latent decodes to 16x16"
    )
    assert told("/v1/decode", b"x", Accept="text/html") == (
        "406 Accept is 'text/html'; this answer can be image/png, image/jpeg, image/webp"
    )
    assert told("/v1/decode?pad=1", b"x") == "400 there is no parameter 'pad' here; there is: model"
    assert server.request("GET", "/v1/decode").error == "/v1/decode takes POST, not GET"
    assert told("/v1/encode", as_file(photo(1, 1).repeat(1000, 0).repeat(800, 1))).startswith(
        "400 the body is too large: it has 800,000 pixels, and at most 666,666 are read. Crop it or"
    )
    huge = latent_bytes(LatentFile(np.zeros((1, 2, 250, 250), np.float32)))
    assert told("/v1/decode", huge).startswith("413 the answer would have 3,000,000 bytes for 1 of 1000x1000 pixels")


def test_what_is_doubtful_is_in_a_header(server, vae):
    """The name of the VAE is a stranger's: it cannot begin another header."""
    other = LatentSpec(2, 4, scale=0.5)
    file = LatentFile(vae.encode(photo(16, 16)), "2" * 64, "evil\r\nSet-Cookie: a=b\x1b", other)
    answer = server.request("POST", "/v1/decode", latent_bytes(file))
    assert answer.status == 200
    assert answer.headers["vaedeploy-warning"] == (
        r"evil\r\nSet-Cookie: a=b\x1b (222222222222) made the latent, tiny (111111111111) decodes it; their latent "
        "contracts differ: scale is 0.5 there and 1.0 here"
    )
    assert "set-cookie" not in answer.headers
    endless = latent_bytes(LatentFile(np.full((1, 2, 4, 4), 3.4e38, np.float32)))
    assert server.request("POST", "/v1/decode", endless).headers["vaedeploy-warning"] == (
        "the image has NaN or infinity; it shows nothing there"
    )


def test_pictures_with_opacity(tmp_path):
    clear = photo(16, 16, 4)
    with VAE(tiny_bundle(tmp_path / "tiny", image_channels=4).path) as vae, serving({"rgba": vae}) as server:
        encoded = server.request("POST", "/v1/encode", as_file(clear))
        assert encoded.status == 200
        opaque = server.request("POST", "/v1/encode", as_file(clear[..., :3]))
        assert opaque.headers["vaedeploy-warning"] == "the image has no alpha channel; it is encoded as opaque"
        answer = server.request("POST", "/v1/decode", encoded.body, {"Accept": "image/jpeg, image/webp;q=0.1"})
        assert answer.headers["content-type"] == "image/webp"
        with Image.open(io.BytesIO(answer.body)) as picture:
            np.testing.assert_array_equal(np.asarray(picture), vae.decode(vae.encode(clear))[0])


def test_several_vaes_are_chosen_by_name(vae, tmp_path):
    with VAE(tiny_bundle(tmp_path / "other", seed=5).path) as other, serving({"a": vae, "b": other}) as server:
        image = photo(16, 16)
        told = server.request("POST", "/v1/encode", as_file(image))
        assert (told.status, told.error) == (400, "this server has several VAEs; choose one with ?model=: a, b")
        found = [server.request("POST", f"/v1/encode?model={name}", as_file(image)).body for name in "ab"]
        right = []
        for each in (vae, other):
            info = each.manifest.vae
            right.append(latent_bytes(LatentFile(each.encode(image), info.identity, info.name, each.latent, (16, 16))))
    assert found == right
    assert right[0] != right[1]
