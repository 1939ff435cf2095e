"""How a request is refused: with an HTTP status, a sentence, and the reason under which metrics count it."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType

RETRY_AFTER = {"retry-after": "1"}


class RequestError(Exception):
    """The answer to a request that cannot be served.

    status: the HTTP status. message: a sentence for the client. reason: a word for metrics, of ``REASONS``. headers:
    more headers of the answer. closes: whether the connection ends with it, because the rest of the request is not
    read.
    """

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        reason: str = "input",
        *,
        headers: Mapping[str, str] = MappingProxyType({}),
        closes: bool = False,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.reason, self.headers, self.closes = status, message, reason, headers, closes


REASONS = {
    "input": "what was sent is not valid",
    "path": "there is no such path, model or method",
    "too_large": "the body, the answer, or the memory that the call takes, is larger than allowed",
    "busy": "the queue or the memory for bodies is full",
    "warming_up": "the VAEs are not warm yet",
    "stalled": "the body did not arrive in time",
    "gone": "the client went away before it had its answer",
    "failed": "the backend failed, or the server has a fault",
}
"""Every reason, and what it means."""


def bad(message: str) -> RequestError:
    return RequestError(HTTPStatus.BAD_REQUEST, message)


def missing(message: str) -> RequestError:
    return RequestError(HTTPStatus.NOT_FOUND, message, "path")


def busy(message: str) -> RequestError:
    return RequestError(HTTPStatus.SERVICE_UNAVAILABLE, message, "busy", headers=RETRY_AFTER)


def warming_up() -> RequestError:
    return RequestError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "the server is warming up; try again later",
        "warming_up",
        headers=RETRY_AFTER,
    )


def too_large(message: str) -> RequestError:
    return RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message, "too_large")


class GoneError(Exception):
    """The client went away."""
