"""A request's turn at its VAE, and what the log says of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from vaedeploy.serve.http import Request
from vaedeploy.serve.joining import Outputs
from vaedeploy.serve.models import Model


async def compute(request: Request, model: Model, array: NDArray[Any], outputs: Sequence[str]) -> Outputs:
    """The named outputs of ``model`` for ``array``, once it is the request's turn.

    Raises GoneError when the client goes away before, RequestError (503) if too many wait, and what ``VAE.compute``
    raises.
    """
    request.told["shape"] = array.shape
    done = await request.unless_gone(model.line.compute(model.part, array, outputs))
    request.told |= {
        "queue_ms": round(1000 * done.queued, 3),
        "compute_ms": round(1000 * done.computed, 3),
        "joined": done.joined,
    }
    request.queued = done.queued
    return done.outputs
