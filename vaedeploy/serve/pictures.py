"""The routes for people, ``/v1/encode`` and ``/v1/decode``: files in, files out.

curl --data-binary @photo.png http://localhost:8000/v1/encode -o photo.safetensors
curl --data-binary @photo.safetensors http://localhost:8000/v1/decode -o decoded.png
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vaedeploy.errors import ImageError, LatentError
from vaedeploy.images.files import format_of, image_bytes, image_from_bytes
from vaedeploy.images.latents import LatentFile, latent_bytes, latent_from_bytes
from vaedeploy.images.opacity import has_opacity, with_opacity
from vaedeploy.runtime.arrays import pad_image
from vaedeploy.serve.accept import choose
from vaedeploy.serve.http import Answer, Request
from vaedeploy.serve.models import Model
from vaedeploy.serve.refusals import bad, missing
from vaedeploy.serve.settings import Settings
from vaedeploy.serve.work import compute
from vaedeploy.system.text import shown
from vaedeploy.values.latent import RGBA

BODY = "the body"
"""What messages call the file that was sent."""

LATENTS = ("application/octet-stream", "application/vnd.safetensors")
"""Media types of latent files, in requests and answers, the usual one first."""

PICTURES = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp"}
"""Media types of pictures in answers, the usual one first -> suffixes of such files."""

WARNING = "Vaedeploy-Warning"
"""The header that says what is doubtful about an answer."""


async def encode(request: Request, model: Model, settings: Settings) -> Answer:
    """Answer ``/v1/encode``: an image file becomes a latent file. ``?pad=true`` takes images of any size."""
    request.check_content(
        ("image/", "application/octet-stream"), "send the image file itself: curl --data-binary @FILE"
    )
    pad = _flag(request.query, "pad", ("model", "pad"))
    kind = choose(request.headers.get("accept"), LATENTS)
    model.line.check()
    body = await request.body()
    image, size, warning = await request.aside(_read_image, bytes(body), model, pad, settings)
    (output, *_) = model.interface.outputs
    model.check_request(image, [output], settings)
    latent = (await compute(request, model, image, [output]))[output]
    info = model.vae.manifest.vae
    file = LatentFile(np.ascontiguousarray(latent), info.identity, info.name, model.vae.latent, size)
    return Answer([latent_bytes(file)], kind, headers=_warnings(warning))


async def decode(request: Request, model: Model, settings: Settings) -> Answer:
    """Answer ``/v1/decode``: a latent file becomes a picture, in a format that the client accepts."""
    request.check_content(LATENTS, "send the latent file itself: curl --data-binary @FILE")
    _flag(request.query, "", ("model",))
    kinds = [kind for kind in PICTURES if model.vae.latent.image_channels != RGBA or kind != "image/jpeg"]
    kind = choose(request.headers.get("accept"), kinds)
    model.line.check()
    body = await request.body()
    file = await request.aside(_read_latent, bytes(body))
    if len(file.latent) != 1:
        raise LatentError(f"{BODY} holds {len(file.latent)} latents; a picture takes one. Send each by itself")
    model.check_request(file.latent, ["image_u8"], settings)
    full = [side * model.vae.latent.factor for side in file.latent.shape[2:]]
    height, width = model.vae.latent.sizes.check_cut(file.size or full, (full[0], full[1]))
    outputs = await compute(request, model, file.latent, ["image_u8", "finite"])
    info = model.vae.manifest.vae
    warnings = [
        file.told_apart(info.identity, info.name, model.vae.latent),
        None if outputs["finite"].all() else "the image has NaN or infinity; it shows nothing there",
    ]
    picture = outputs["image_u8"][0, :height, :width]
    data = await request.aside(image_bytes, picture, Path(f"answer{PICTURES[kind]}"))
    return Answer([data], kind, headers=_warnings(*warnings))


def _read_latent(body: bytes) -> LatentFile:
    try:
        return latent_from_bytes(body, BODY)
    except LatentError as error:
        if form := format_of(io.BytesIO(body)):
            raise LatentError(f"{BODY} is an image ({form}), not a latent file; /v1/encode takes images") from error
        raise


def find_model(models: Mapping[str, Model], suffix: str, query: Mapping[str, str]) -> str:
    """The name of the model that ends in ``suffix``, of the VAE that ``?model=`` names, or of the only one."""
    names = [model.vae_name for model in models.values() if model.name == f"{model.vae_name}-{suffix}"]
    name = query.get("model", names[0] if len(names) == 1 else None)
    if name is None:
        raise bad(f"this server has several VAEs; choose one with ?model=: {', '.join(names)}")
    if name not in names:
        raise missing(f"there is no VAE '{shown(name)}'; there is: {', '.join(names)}")
    return f"{name}-{suffix}"


def _flag(query: Mapping[str, str], name: str, known: tuple[str, ...]) -> bool:
    """Whether a parameter is set. Raises RequestError for one that is not known, or neither true nor false."""
    for given in query:
        if given not in known:
            raise bad(f"there is no parameter '{shown(given)}' here; there is: {', '.join(known)}")
    value = query.get(name, "false").lower()
    if value not in ("true", "1", "false", "0"):
        raise bad(f"{name} is '{shown(value)}'; it must be true or false")
    return value in ("true", "1")


def _read_image(
    body: bytes, model: Model, pad: bool, settings: Settings
) -> tuple[NDArray[np.uint8], tuple[int, int], str | None]:
    """The image as a batch of one, its size before it was padded, and what is doubtful about it."""
    latent = model.vae.latent
    most = settings.max_body // latent.image_channels  # as many as a body of raw pixels has
    try:
        image = image_from_bytes(body, BODY, opacity=latent.image_channels == RGBA, most=most)
    except ImageError as error:
        if not body or format_of(io.BytesIO(body)):
            raise
        raise ImageError(f"{error}. With curl: --data-binary @FILE, since -d leaves line ends out") from error
    warning = None
    if latent.image_channels == RGBA and not has_opacity(image):
        image, warning = with_opacity(image), "the image has no alpha channel; it is encoded as opaque"
    size = (image.shape[0], image.shape[1])
    return pad_image(image[None], latent.sizes) if pad else image[None], size, warning


def _warnings(*texts: str | None) -> dict[str, str]:
    """The texts as a header. They quote names from strangers' files, so they are made safe for one."""
    found = [shown(text) for text in texts if text]
    return {WARNING: "; ".join(found)} if found else {}
