"""The server as an ASGI application: finds the route of a request, answers it, counts it and logs it."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import msgspec

from vaedeploy.errors import ImageError, LatentError, MemoryLimitError, SizeError, VaedeployError
from vaedeploy.runtime import VAE
from vaedeploy.serve import http, inference, pictures
from vaedeploy.serve.http import Answer, Held, Receive, Request, Scope, Send, json_answer
from vaedeploy.serve.joining import Line
from vaedeploy.serve.metrics import CONTENT_TYPE, Counter, Family, Labels, Metrics
from vaedeploy.serve.models import Model, make_models
from vaedeploy.serve.protocol import VERSION
from vaedeploy.serve.refusals import GoneError, RequestError, bad, missing, too_large, warming_up
from vaedeploy.serve.settings import Settings
from vaedeploy.system.text import shown

log = logging.getLogger(__name__)

CLIENT_CLOSED = 499
"""nginx's status for a request whose client went away, in the log and in metrics."""

READERS = 2
"""How many files and long JSON texts are read or written at once: an image takes up to 20 bytes of memory per pixel."""

MODEL = re.compile(r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?(?P<rest>/ready|/infer)?")


class App:
    """Serves VAEs, by name. write: writes a line of the access log. ready: whether the VAEs are warm."""

    def __init__(self, vaes: Mapping[str, VAE], settings: Settings, write: Callable[[str], None]) -> None:
        self.metrics = Metrics()
        self.models = make_models(vaes, settings, self.metrics)
        self.ready = False
        self.vaes, self.settings, self._write = vaes, settings, write
        self._aside = ThreadPoolExecutor(READERS, "vaedeploy-files")
        self.held = Held(settings.max_held)
        self.metrics.families += self._read_families()

    def line(self, name: str) -> Line:
        """The line of requests for a VAE."""
        return next(model.line for model in self.models.values() if model.vae_name == name)

    def close(self) -> None:
        """Wait for the calls that run."""
        for name in self.vaes:
            self.line(name).close()
        self._aside.shutdown()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        began = time.perf_counter()
        request = Request(scope, receive, self.settings, self.held, self._aside)
        closes, status, size = False, CLIENT_CLOSED, 0
        try:
            try:
                answer = await self._answer(request)
            except RequestError as refusal:
                answer, closes = self._refuse(request, refusal), refusal.closes
            status, size = answer.status.value, answer.size
            await http.send(send, answer, closes=closes or request.holds_back)
        except GoneError:
            self._fail(request, "gone", "the client went away")
        finally:
            request.forget()
            self._tell(request, scope, status, size, time.perf_counter() - began)

    async def _answer(self, request: Request) -> Answer:
        """Raises RequestError for whatever fails, and GoneError."""
        try:
            return await self._route(request)
        except (ImageError, LatentError, SizeError) as error:
            raise bad(str(error)) from error
        except MemoryLimitError as error:
            raise too_large(str(error)) from error
        except VaedeployError as error:
            # Its message has paths of this machine; it is for the log.
            log.error("%s failed: %s", request.model, error)
            raise _failed("the model failed; the server's log says why") from error
        except (RequestError, GoneError):
            raise
        except Exception as error:
            log.exception("%s %s failed", request.method, shown(request.path))
            raise _failed("the server failed; its log says why") from error

    async def _route(self, request: Request) -> Answer:
        request.check_length()
        path = request.path
        match path:
            case "/v2":
                return _read_only(request, inference.server_metadata)
            case "/v2/health/live":
                return _read_only(request, lambda: json_answer({"live": True}))
            case "/v2/health/ready":
                return _read_only(request, lambda: self._ready({"ready": self.ready}))
            case "/metrics":
                return _read_only(request, lambda: Answer([self.metrics.text().encode()], CONTENT_TYPE))
            case "/v1/encode" | "/v1/decode":
                _check_method(request, "POST")
                name = pictures.find_model(self.models, path.removeprefix("/v1/"), request.query)
                work = pictures.encode if path == "/v1/encode" else pictures.decode
                return await work(request, self._serving(request, name), self.settings)
        if not (found := MODEL.fullmatch(path)):
            raise missing(
                f"there is no path {shown(path)}; there is: /v2, /v2/health/live, /v2/health/ready, /v2/models/NAME, "
                "/v2/models/NAME/ready, /v2/models/NAME/infer, /v1/encode, /v1/decode, /metrics"
            )
        model = inference.find_model(self.models, found["name"], found["version"] or VERSION)
        if found["rest"] == "/infer":
            _check_method(request, "POST")
            return await inference.infer(request, self._serving(request, model.name), self.settings)
        if found["rest"] == "/ready":
            return _read_only(request, lambda: self._ready({"name": model.name, "ready": self.ready}))
        return _read_only(request, lambda: inference.model_metadata(model))

    def _serving(self, request: Request, name: str) -> Model:
        """The model that a request is for. Raises RequestError (503) while it is not warm."""
        request.model = name
        if not self.ready:
            raise warming_up()
        return self.models[name]

    def _ready(self, told: object) -> Answer:
        return json_answer(told, HTTPStatus.OK if self.ready else HTTPStatus.SERVICE_UNAVAILABLE)

    def _refuse(self, request: Request, refusal: RequestError) -> Answer:
        self._fail(request, refusal.reason, refusal.message)
        answer = json_answer({"error": refusal.message}, refusal.status)
        answer.headers.update(refusal.headers)
        return answer

    def _fail(self, request: Request, reason: str, message: str) -> None:
        request.told |= {"reason": reason, "error": message}
        self.metrics.failures.add(request.model, reason)

    def _tell(self, request: Request, scope: Scope, status: int, size: int, seconds: float) -> None:
        """Count a request and write its line of the log."""
        if request.model:
            self.metrics.requests.add(request.model, str(status))
            if request.queued is not None:
                self.metrics.queued.observe(request.queued, request.model)
        client = scope.get("client")
        told: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "client": http.address_text(*client) if client else None,
            "method": request.method,
            "path": shown(request.path),
            "status": status,
            **({"model": request.model} if request.model else {}),
            **request.told,
            "bytes_out": size,
            "ms": round(1000 * seconds, 3),
        }
        self._write(msgspec.json.encode(told).decode())

    def _read_families(self) -> Iterator[Family]:
        """The metrics that are not counted here but read from the line and the runtime."""

        def by_name(value: Callable[[str, VAE], tuple[Labels, float]]) -> Callable[[], list[tuple[Labels, float]]]:
            return lambda: [value(name, vae) for name, vae in self.vaes.items()]

        labels = ("vae",)
        yield Family(
            "vaedeploy_waiting_requests",
            "Requests in the queue.",
            labels,
            by_name(lambda name, _: ((name,), self.line(name).waiting)),
        )
        yield Family(
            "vaedeploy_running_calls",
            "Calls that are computed.",
            labels,
            by_name(lambda name, _: ((name,), self.line(name).running)),
        )
        yield Counter(
            "vaedeploy_nan_reruns_total",
            "Items with NaN or infinity in half precision, run again in float32.",
            labels,
            by_name(lambda name, vae: ((name,), vae.reruns)),
        )
        yield Family(
            "vaedeploy_backend_info",
            "The backend in use.",
            ("vae", "backend"),
            by_name(lambda name, vae: ((name, vae.backend), 1)),
        )
        yield Family("vaedeploy_ready", "Whether the VAEs are warm.", (), lambda: [((), float(self.ready))])


def _check_method(request: Request, *methods: str) -> None:
    if request.method not in methods:
        raise RequestError(
            HTTPStatus.METHOD_NOT_ALLOWED,
            f"{shown(request.path)} takes {' and '.join(methods)}, not {shown(request.method)}",
            "path",
            headers={"allow": ", ".join(methods)},
        )


def _read_only(request: Request, answer: Callable[[], Answer]) -> Answer:
    _check_method(request, "GET", "HEAD")
    return answer()


def _failed(message: str) -> RequestError:
    return RequestError(HTTPStatus.INTERNAL_SERVER_ERROR, message, "failed")
