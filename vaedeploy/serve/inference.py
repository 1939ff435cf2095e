"""The routes of the Open Inference Protocol, below ``/v2``."""

from __future__ import annotations

from collections.abc import Mapping

from vaedeploy.serve.http import Answer, Request, json_answer
from vaedeploy.serve.models import Model
from vaedeploy.serve.protocol import (
    HEADER,
    VERSION,
    check_numbers,
    json_length,
    metadata,
    read_inference,
    write_inference,
)
from vaedeploy.serve.refusals import missing
from vaedeploy.serve.settings import Settings
from vaedeploy.serve.work import compute
from vaedeploy.system.text import shown
from vaedeploy.version import __version__

MUCH_JSON = 2**16
"""From this many bytes on, JSON and tensors that become JSON are read or written in another thread."""


def server_metadata() -> Answer:
    return json_answer({"name": "vaedeploy", "version": __version__, "extensions": ["binary_tensor_data"]})


def find_model(models: Mapping[str, Model], name: str, version: str = VERSION) -> Model:
    """Raises RequestError (404) for a model or a version that is not there."""
    if name not in models:
        raise missing(f"there is no model '{shown(name)}'; there is: {', '.join(models)}")
    if version != VERSION:
        raise missing(f"there is no version '{shown(version)}' of {name}; there is: {VERSION}")
    return models[name]


def model_metadata(model: Model) -> Answer:
    return json_answer(metadata(model))


async def infer(request: Request, model: Model, settings: Settings) -> Answer:
    """Answer ``/v2/models/NAME/infer``."""
    request.check_content(
        ("application/json", "application/octet-stream"), "send JSON, followed by the bytes of tensors if you like"
    )
    model.line.check()
    body = await request.body()
    length = json_length(request.headers.get(HEADER), len(body))
    if length > MUCH_JSON:
        asked = await request.aside(read_inference, body, length, model)
    else:
        asked = read_inference(body, length, model)
    gives = model.check_request(asked.array, tuple(asked.outputs), settings)
    check_numbers(asked, gives)
    arrays = await compute(request, model, asked.array, tuple(asked.outputs))
    if sum(arrays[name].nbytes for name, in_bytes in asked.outputs.items() if not in_bytes) > MUCH_JSON:
        return await request.aside(write_inference, model, asked, arrays)
    return write_inference(model, asked, arrays)
