"""The Open Inference Protocol: with tritonclient, against the runtime, bit for bit."""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from serving import ask, body_of, serving, until
from tiny_bundle import tiny_bundle
from tritonclient.utils import InferenceServerException

from vaedeploy.errors import MemoryLimitError
from vaedeploy.runtime import VAE
from vaedeploy.version import __version__

DECODED = {"image_u8": True, "image": True, "finite": True}


def latents(count: int, channels: int, *sizes: tuple[int, int], batch: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = itertools.islice(itertools.cycle(sizes), count)
    return [rng.standard_normal((batch, channels, *shape), np.float32) for shape in shapes]


def photo(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_what_the_server_says_of_itself(server):
    with server.triton() as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("tiny-decode")
        assert client.is_model_ready("tiny-encode", "1")
        told = client.get_server_metadata()
    assert told == {"name": "vaedeploy", "version": __version__, "extensions": ["binary_tensor_data"]}


def test_what_models_say_of_themselves(server):
    with server.triton() as client:
        decode, encode = client.get_model_metadata("tiny-decode"), client.get_model_metadata("tiny-encode", "1")
    assert decode == {
        "name": "tiny-decode",
        "versions": ["1"],
        "platform": "vaedeploy",
        "inputs": [{"name": "latent", "datatype": "FP32", "shape": [-1, 2, -1, -1]}],
        "outputs": [
            {"name": "image", "datatype": "FP32", "shape": [-1, 3, -1, -1]},
            {"name": "image_u8", "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
            {"name": "finite", "datatype": "BOOL", "shape": [-1]},
        ],
    }
    assert encode["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 3, -1, -1]}]
    assert [output["name"] for output in encode["outputs"]] == ["latent_mean", "latent_std"]


@pytest.mark.parametrize("in_bytes", [True, False], ids=["bytes", "json"])
@pytest.mark.parametrize("outputs", [None, ["image_u8"], ["finite", "image"]])
def test_decode_is_the_runtimes(server, vae, in_bytes, outputs):
    (latent,) = latents(1, 2, (8, 12), batch=3)
    with server.triton() as client:
        found = ask(client, "tiny-decode", latent, outputs and dict.fromkeys(outputs, in_bytes), in_bytes=in_bytes)
    same(found, vae.compute("decoder", latent, outputs or ["image", "image_u8", "finite"]))


@pytest.mark.parametrize("kind", ["uint8", "float", "half"])
def test_encode_is_the_runtimes(server, vae, kind):
    image = photo(2, 32, 48, 3)
    if kind != "uint8":
        image = (image.transpose(0, 3, 1, 2) / 127.5 - 1).astype(np.float32 if kind == "float" else np.float16)
    with server.triton() as client:
        found = ask(client, "tiny-encode", image, {"latent_std": True, "latent_mean": True})
    mean, std = vae.encode_moments(image)
    same(found, {"latent_std": std, "latent_mean": mean})


def test_bytes_and_json_in_one_answer(server, vae):
    (latent,) = latents(1, 2, (4, 4))
    with server.triton() as client:
        found = ask(client, "tiny-decode", latent, {"finite": False, "image_u8": True, "image": False})
    same(found, vae.compute("decoder", latent, ["finite", "image_u8", "image"]))


def test_nested_data(server, vae):
    (latent,) = latents(1, 2, (2, 3))
    told = {"name": "latent", "datatype": "FP32", "shape": latent.shape, "data": latent.tolist()}
    answer = server.infer("tiny-decode", json.dumps({"id": "a", "inputs": [told], "outputs": [{"name": "image_u8"}]}))
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["id"] == "a"
    (output,) = answer.json["outputs"]
    assert output["data"] == vae.decode(latent).reshape(-1).tolist()


def test_an_item_that_is_not_finite_is_told(server, vae):
    latent = latents(1, 2, (4, 4), batch=3)[0]
    latent[1] = 3.4e38
    with server.triton() as client:
        found = ask(client, "tiny-decode", latent, DECODED)
        in_json = ask(client, "tiny-decode", latent, {"finite": False})
    np.testing.assert_array_equal(found["finite"], [True, False, True])
    np.testing.assert_array_equal(in_json["finite"], [True, False, True])
    np.testing.assert_array_equal(found["image_u8"][2:], vae.decode(latent[2:]))


@pytest.mark.parametrize("joins", [False, True])
def test_many_clients_with_mixed_sizes(vae, joins):
    """Each client has its own connection, as tritonclient needs it; every seventh item is not finite."""
    given = latents(70, 2, (8, 8), (8, 12), (16, 8))
    for latent in given[::7]:
        latent[...] = 3.4e38
    wanted = [vae.compute("decoder", latent, list(DECODED)) for latent in given]

    def client(number: int) -> list[dict[str, np.ndarray]]:
        with server.triton() as connection:
            return [ask(connection, "tiny-decode", latent, DECODED) for latent in given[number::10]]

    with serving({"tiny": vae}, joins=joins, max_delay=0.02) as server, ThreadPoolExecutor(10) as pool:
        found = list(pool.map(client, range(10)))
        joined = [line["joined"] for line in server.log if line["path"].endswith("infer")]
    for number, answers in enumerate(found):
        for answer, right in zip(answers, wanted[number::10], strict=True):
            same(answer, right)
    assert len(joined) == 70
    assert (max(joined) > 1) == joins


def test_what_bad_requests_are_told(server):
    latent = latents(1, 2, (4, 4))[0]
    with server.triton() as client:

        def told(model: str, array: np.ndarray, **options: object) -> str:
            with pytest.raises(InferenceServerException) as error:
                ask(client, model, array, **options)
            return f"{error.value.status()} {error.value.message()}"

        assert told("tiny-decode", latent[0]) == (
            "400 latent has shape (2, 4, 4), without a batch; send one item as (1, 2, 4, 4)"
        )
        assert told("tiny-encode", photo(64, 64, 3)).startswith("400 image has shape (64, 64, 3), without a batch")
        assert told("tiny-decode", latent.astype(np.int32)) == ("400 latent is int32; it must be (B, 2, h, w) float")
        assert told("tiny-decode", latent * np.nan) == "400 latent has NaN or infinity in it"
        assert told("tiny-decode", latent[:, :1]).startswith("400 latent has 1 channel where this VAE has 2;")
        assert told("tiny-decode", latent[0, 0]).startswith("400 latent has shape (4, 4); it must be")
        assert told("tiny-encode", photo(1, 30, 64, 3)).startswith("400 image is 30x64 (height x width), but both must")
        assert told("tiny-encode", photo(1, 32, 32, 4)).startswith("400 image is uint8 of shape (1, 32, 32, 4);")
        assert told("tiny-decode", latents(1, 2, (2, 2), batch=9)[0]) == (
            "400 the batch has 9 items; this server takes at most 8 (--max-batch). Send them in several requests"
        )
        assert told("tiny-decode", latent, outputs={"depth": True}) == (
            "400 there is no output 'depth'; there is: image, image_u8, finite"
        )
        assert told("tinier-decode", latent) == (
            "404 there is no model 'tinier-decode'; there is: tiny-encode, tiny-decode"
        )
        assert told("tiny-decode", latent, model_version="2") == (
            "404 there is no version '2' of tiny-decode; there is: 1"
        )
        assert told("tiny-decode", latents(1, 2, (200, 200))[0]) == (
            "413 the answer would have 9,600,001 bytes for 1 of 800x800 pixels (height x width); this server gives at "
            "most 2,000,000 (--max-body). Ask for fewer outputs or items"
        )
        assert told("tiny-decode", latent, request_compression_algorithm="gzip") == (
            "415 the body's encoding is gzip; send it as it is, uncompressed"
        )


GOOD = {"name": "latent", "datatype": "FP32", "shape": [1, 2, 1, 1], "data": [0, 1]}


def body(**changes: object) -> str:
    return json.dumps({"inputs": [GOOD | changes]})


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ("", "the request's JSON is not valid: Input data was truncated"),
        ("{}", "the request's JSON is not valid: Object missing required field `inputs`"),
        ("[" * 10_000, "the request's JSON is not valid: Expected `object`, got `array`"),
        ('{"x": ' + "[" * 10_000 + "]" * 10_000 + "}", "the request's JSON is nested too deeply"),
        ('{"inputs": [' + "[" * 10_000, "the request's JSON is not valid: Expected `object`, got `array`"),
        ('{"inputs": []}', "the request has 0 inputs; tiny-decode takes one, latent"),
        (b'{"inputs": "\xff"}', "the request's JSON is not valid: Expected `array`, got `str`"),
        (body(name="image"), "there is no input 'image'; tiny-decode takes latent"),
        (body(name="\x1b[31m"), r"there is no input '\x1b[31m'; tiny-decode takes latent"),
        (body(datatype="BF16"), "latent is of type 'BF16'; it must be one of BOOL, UINT8, UINT16"),
        (body(shape=[-1, 2, 1, 1]), "the request's JSON is not valid: Expected `int` >= 0"),
        (body(shape=[1] * 9), "the request's JSON is not valid: Expected `array` of length <= 8"),
        (body(shape=[10**30]), "the request's JSON is not valid: Expected `int`"),
        (body(shape=[1, 2, 1, 0]), "latent has no elements: its shape is (1, 2, 1, 0)"),
        (body(shape=[1, 2, 1, 2]), "data of latent has 2 numbers, and its shape [1, 2, 1, 2] has 4"),
        (body(data=[[0, 1]]), "data of latent is not valid: Expected `array`, got `int`"),
        (body(data=[[[[0]], [[1, 2]]]]), "data of latent is not nested as its shape [1, 2, 1, 1] says"),
        (body(data="01"), "data of latent is not valid: Expected `array`, got `str`"),
        (body(data=[None, 1]), "data of latent is not valid: Expected `float`, got `null`"),
        (body(data=["NaN", 1]), "data of latent is not valid: Expected `float`, got `str`"),
        (body(data=[1e39, 1]), "latent has NaN or infinity in it"),
        ('{"inputs": [{"name": "latent", "datatype": "FP32", "shape": [1]}]}', "latent has neither data nor a binary_"),
        (body(parameters={"binary_data_size": 8}), "latent has both data in JSON and a binary_data_size; send one"),
        (body(parameters={"binary_data_size": -8}), "the request's JSON is not valid: Expected `int` >= 0"),
        (body(parameters={"shared_memory_region": "x"}), "latent is in shared memory, which this server does not read"),
        (json.dumps({"inputs": [GOOD], "outputs": [{"name": "image"}] * 2}), "the output image is asked for twice"),
        (
            json.dumps({"inputs": [GOOD], "outputs": [{"name": "image", "parameters": {"classification": 3}}]}),
            "the output image is sent as it is: without classification and shared memory",
        ),
    ],
)  # fmt: skip
def test_what_bad_json_is_told(server, sent, message):
    answer = server.infer("tiny-decode", sent)
    assert answer.status == 400, answer
    assert answer.error.startswith(message)


def test_lying_lengths(server):
    latent = np.zeros((1, 2, 4, 4), np.float32)
    good, length = body_of(latent)
    assert server.infer("tiny-decode", good, length).status == 200

    def told(sent: bytes, header: object) -> str:
        answer = server.infer("tiny-decode", sent, header)
        assert answer.status == 400
        return answer.error

    assert told(good, len(good) + 1) == (
        f"Inference-Header-Content-Length is {len(good) + 1}, but the whole body has {len(good)} bytes"
    )
    assert told(good, "-1") == "Inference-Header-Content-Length is '-1'; it must be the number of bytes of JSON"
    assert told(good, 10**30).startswith("Inference-Header-Content-Length is '1000000")
    assert told(good, length - 1) == "the request's JSON is not valid: Input data was truncated"
    assert told(good[:-1], length) == "binary_data_size of latent is 128, but 127 bytes follow the JSON"
    assert told(good + b"x", length) == "binary_data_size of latent is 128, but 129 bytes follow the JSON"
    assert told(*body_of(latent, shape=[1, 2, 4, 5])) == (
        "latent of shape [1, 2, 4, 5] and type FP32 has 160 bytes, and binary_data_size is 128"
    )
    # 2**64 elements would be 0 in 64 bits.
    assert told(*body_of(latent, shape=[2**16] * 4)).startswith("latent of shape [65536, 65536, 65536, 65536] and type")
    assert told(*body_of(latent, shape=[0, *[2**31 - 1] * 7])).startswith("latent has no elements: its shape is (0, 21")
    assert told(*body_of(latent, parameters={})) == ("128 bytes follow the JSON, but latent has no binary_data_size")


def test_much_json_is_refused_before_it_is_read(server, vae):
    many = '{"inputs": [{"name": "latent", "datatype": "FP32", "shape": [1, 2, 2000, 1000], "data": [0]}]}'
    with serving({"tiny": vae}) as roomy:
        assert roomy.infer("tiny-decode", many.replace("1000]", "2000]")).error == (
            "latent has more than 1,048,576 numbers in JSON; send it as bytes"
        )
        big, length = body_of(np.zeros((1, 2, 300, 300), np.float32))
        text = big[:length].replace(b"true", b"false")
        answer = roomy.infer("tiny-decode", text + big[length:], len(text))
        assert (answer.status, answer.error) == (
            413,
            "the output image would have 4,320,000 numbers, and 1,048,576 are sent in JSON at most; ask for it with "
            "binary_data",
        )


def test_what_takes_more_than_max_memory_is_the_clients_to_change(tiny_vae_bundle):
    latent = latents(1, 4, (96, 64))[0]
    with VAE(tiny_vae_bundle.path, "onnxruntime-cpu") as vae:
        least = vae.plan(384, 256)["decoder"].least
    with VAE(tiny_vae_bundle.path, "onnxruntime-cpu", max_memory=least - 1) as vae:
        with pytest.raises(MemoryLimitError) as sentence:
            vae.decode(latent)
        with serving({"tiny": vae}, warm_up=((16, 16),)) as server:
            body, length = body_of(latent)
            answer = server.infer("tiny-decode", body, length)
            assert (answer.status, answer.error) == (413, str(sentence.value))
            until(lambda: [line["reason"] for line in server.log] == ["too_large"])  # it is written after the answer
            body, length = body_of(latent[:, :, :4, :4])
            assert server.infer("tiny-decode", body, length).status == 200


def test_a_bundle_for_bytes_takes_bytes_alone(tmp_path):
    image = photo(1, 16, 16, 3)
    path = tiny_bundle(tmp_path / "tiny", image_input="uint8", sampled=False).path
    with VAE(path) as vae, serving({"tiny": vae}) as server, server.triton() as client:
        told = client.get_model_metadata("tiny-encode")
        assert told["inputs"] == [{"name": "image_u8", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
        same(ask(client, "tiny-encode", image), {"latent": vae.encode(image)})
        with pytest.raises(InferenceServerException, match="takes uint8 images only"):
            ask(client, "tiny-encode", np.zeros((1, 3, 16, 16), np.float32))


def test_the_demo_vae_bit_for_bit(demo_bundle):
    sizes = (8, 8), (8, 12), (16, 8)
    with VAE(demo_bundle.path) as vae:
        given = latents(9, vae.latent.channels, *sizes, batch=2)
        images = [vae.decode(latent) for latent in given]
        wanted = [vae.compute("decoder", latent, list(DECODED)) for latent in given]
        encoded = [vae.encode(image) for image in images]

        def client(number: int) -> None:
            with server.triton() as connection:
                for latent, image, right, mean in list(zip(given, images, wanted, encoded, strict=True))[number::3]:
                    same(ask(connection, "demo-decode", latent, DECODED), right)
                    same(ask(connection, "demo-encode", image, {"latent_mean": True}), {"latent_mean": mean})

        for joins in (False, True):
            with serving({"demo": vae}, joins=joins) as server, ThreadPoolExecutor(3) as pool:
                list(pool.map(client, range(3)))
