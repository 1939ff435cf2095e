"""Routes, readiness, metrics and the access log."""

from __future__ import annotations

import asyncio
import threading
from unittest.mock import Mock

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import Serving, ask, body_of, serving, until
from tiny_bundle import tiny_bundle

from vaedeploy.errors import BackendError, BundleError
from vaedeploy.runtime import VAE
from vaedeploy.serve import http
from vaedeploy.serve.http import JOINED, SENT_AT_ONCE, Answer


def metrics(server: Serving) -> dict[str, float]:
    answer = server.request("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        " ".join([sample.name, *(f"{name}={value}" for name, value in sample.labels.items())]): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/", 404, "there is no path /; there is: /v2, /v2/health/live,"),
        ("GET", "/v2/", 404, "there is no path /v2/;"),
        ("GET", "/v2/models/tiny-decode/config", 404, "there is no path /v2/models/tiny-decode/config;"),
        ("GET", "/v2/models/..%2f..%2fetc", 404, "there is no path /v2/models/../../etc;"),
        ("GET", "/v2/models/tiny", 404, "there is no model 'tiny'; there is: tiny-encode, tiny-decode"),
        ("GET", "/v2/models/tiny-decode/versions/7/ready", 404, "there is no version '7' of tiny-decode; there is: 1"),
        ("GET", "/v2/models/tiny-decode/infer", 405, "/v2/models/tiny-decode/infer takes POST, not GET"),
        ("DELETE", "/v2/health/live", 405, "/v2/health/live takes GET and HEAD, not DELETE"),
        ("GET", "/%1b%5b31m", 404, r"there is no path /\x1b[31m;"),
        ("GET", "/%ff", 404, "there is no path /\N{REPLACEMENT CHARACTER};"),
    ],
)
def test_what_is_not_there_is_told(server, method, path, status, message):
    answer = server.request(method, path)
    assert answer.status == status
    assert answer.error.startswith(message)


def test_heads_have_no_body(server):
    answer = server.request("HEAD", "/v2/health/ready")
    assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", "14")


def test_ready_after_the_warm_up(tmp_path, monkeypatch):
    go = threading.Event()
    with VAE(tiny_bundle(tmp_path / "tiny").path) as vae:
        warm_up = vae.warm_up
        monkeypatch.setattr(
            vae, "warm_up", lambda *arguments, **options: go.wait(30) and warm_up(*arguments, **options)
        )
        with serving({"tiny": vae}, wait=False) as server:
            assert server.request("GET", "/v2/health/live").json == {"live": True}
            for path in ("/v2/health/ready", "/v2/models/tiny-decode/ready"):
                answer = server.request("GET", path)
                assert (answer.status, answer.json["ready"]) == (503, False)
            refused = server.infer("tiny-decode", b"")
            assert (refused.status, refused.error) == (503, "the server is warming up; try again later")
            found = metrics(server)
            assert found["vaedeploy_ready"] == 0
            assert found["vaedeploy_failures_total model=tiny-decode reason=warming_up"] == 1
            assert not any("reason=busy" in name for name in found)  # which tells that the server is overloaded
            go.set()
            server.wait()
            assert vae.ready
            assert server.request("GET", "/v2/models/tiny-decode/ready").json == {"name": "tiny-decode", "ready": True}


def test_metrics_count_what_happened(vae):
    latent = np.zeros((2, 2, 4, 4), np.float32)
    with serving({"tiny": vae}) as server, server.triton() as client:
        for _ in range(3):
            ask(client, "tiny-decode", latent)
        server.infer("tiny-decode", b"{")
        server.infer("huge%0a%22-decode", b"{")
        found = metrics(server)
    assert found["vaedeploy_requests_total model=tiny-decode status=200"] == 3
    assert found["vaedeploy_requests_total model=tiny-decode status=400"] == 1
    assert found["vaedeploy_failures_total model=tiny-decode reason=input"] == 1
    assert found["vaedeploy_failures_total model= reason=path"] == 1
    assert found["vaedeploy_batch_items_bucket model=tiny-decode le=1.0"] == 0
    assert found["vaedeploy_batch_items_bucket model=tiny-decode le=2.0"] == 3
    assert found["vaedeploy_batch_items_sum model=tiny-decode"] == 6
    assert found["vaedeploy_batch_requests_count model=tiny-decode"] == 3
    assert found["vaedeploy_compute_seconds_bucket model=tiny-decode le=+Inf"] == 3
    assert found["vaedeploy_queue_seconds_count model=tiny-decode"] == 3
    assert 0 < found["vaedeploy_compute_seconds_sum model=tiny-decode"] < 60
    assert found["vaedeploy_waiting_requests vae=tiny"] == 0
    assert found["vaedeploy_running_calls vae=tiny"] == 0
    assert found["vaedeploy_nan_reruns_total vae=tiny"] == 0
    assert found["vaedeploy_backend_info vae=tiny backend=onnxruntime-cpu"] == 1
    assert found["vaedeploy_ready"] == 1


def test_the_access_log(server):
    latent = np.zeros((2, 2, 4, 4), np.float32)
    with server.triton() as client:
        ask(client, "tiny-decode", latent, {"image_u8": True})
    until(lambda: server.log[-1].get("shape") == [2, 2, 4, 4])
    good = server.log[-1]
    assert {name: good[name] for name in ("method", "path", "status", "model", "shape", "joined")} == {
        "method": "POST",
        "path": "/v2/models/tiny-decode/infer",
        "status": 200,
        "model": "tiny-decode",
        "shape": [2, 2, 4, 4],
        "joined": 1,
    }
    assert good["bytes_in"] > latent.nbytes
    assert good["bytes_out"] > 2 * 16 * 16 * 3
    assert 0 <= good["queue_ms"] + good["compute_ms"] <= good["ms"]
    server.infer("tiny-decode", b"{}")
    until(lambda: server.log[-1].get("reason") == "input")
    assert server.log[-1]["error"].startswith("the request's JSON is not valid: Object missing")


def test_a_backend_that_fails_tells_the_log_and_not_the_client(vae, monkeypatch, caplog):
    def fail(*_: object) -> None:
        raise BackendError("ONNX Runtime failed in /secret/decoder.onnx")

    latent = np.zeros((1, 2, 4, 4), np.float32)
    with serving({"tiny": vae}) as server:
        monkeypatch.setattr(server.server.served.line("tiny"), "_compute", fail)
        answer = server.infer("tiny-decode", *body_of(latent))
        assert (answer.status, answer.error) == (500, "the model failed; the server's log says why")
        assert caplog.messages == ["tiny-decode failed: ONNX Runtime failed in /secret/decoder.onnx"]
        damaged = BundleError("/secret/decoder.onnx was altered")
        monkeypatch.setattr(server.server.served.line("tiny"), "_compute", Mock(side_effect=damaged))
        assert server.infer("tiny-decode", *body_of(latent)).error == "the model failed; the server's log says why"
        monkeypatch.setattr(server.server.served.line("tiny"), "_compute", lambda *_: 1 / 0)
        answer = server.infer("tiny-decode", *body_of(latent))
        assert (answer.status, answer.error) == (500, "the server failed; its log says why")
        assert caplog.records[-1].exc_info[0] is ZeroDivisionError
        assert metrics(server)["vaedeploy_failures_total model=tiny-decode reason=failed"] == 3


def test_the_warm_up_begins_with_the_largest_size(tmp_path, monkeypatch):
    with VAE(tiny_bundle(tmp_path / "tiny").path) as vae:
        warm_up, sizes = vae.warm_up, []
        monkeypatch.setattr(vae, "warm_up", lambda given, batch: sizes.extend(given) or warm_up(given, batch=batch))
        with serving({"tiny": vae}, warm_up=((16, 16), (64, 32), (32, 32))):
            assert sizes == [(64, 32), (32, 32), (16, 16)]


@pytest.mark.parametrize(
    ("pieces", "sent"),
    [
        ([], [b""]),
        ([b"{}", memoryview(b"ab"), memoryview(b"c")], [b"{}abc"]),
        ([b"{}", bytes(JOINED)], [b"{}", bytes(JOINED)]),
        ([b"{}", bytes(SENT_AT_ONCE + 1)], [b"{}", bytes(SENT_AT_ONCE), bytes(1)]),
    ],
)
def test_a_small_body_is_sent_as_one_piece(pieces, sent):
    messages = []

    async def send(message):
        messages.append(message)

    asyncio.run(http.send(send, Answer(pieces)))
    start, *bodies = messages
    assert dict(start["headers"])[b"content-length"] == str(sum(map(len, sent))).encode()
    assert [bytes(message["body"]) for message in bodies] == sent
    assert [message["more_body"] for message in bodies] == [True] * (len(sent) - 1) + [False]
