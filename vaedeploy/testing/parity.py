"""``assert_parity``: a bundle against any reference, for a test."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vaedeploy.bundle import Bundle
from vaedeploy.bundle.golden import GoldenCase
from vaedeploy.errors import ImageError, InputError
from vaedeploy.images.files import is_pillow, read_image, read_pillow
from vaedeploy.runtime import VAE
from vaedeploy.runtime.arrays import check_image
from vaedeploy.values.interface import Interface
from vaedeploy.values.kinds import Precision
from vaedeploy.values.latent import RGBA
from vaedeploy.values.reference import Reference
from vaedeploy.verify.cases import verify_cases
from vaedeploy.verify.limits import LIMITS, Limit, Metric
from vaedeploy.verify.record import record
from vaedeploy.verify.reference import compute_golden
from vaedeploy.verify.report import Case, Report
from vaedeploy.verify.shapes import Shape

if TYPE_CHECKING:
    from PIL import Image
    from torch import nn

Opened: TypeAlias = "str | Path | Bundle | VAE"
TestImage: TypeAlias = "NDArray[np.uint8] | Image.Image | str | Path"

SHOWN = 12
"""The most failed cases in the message of an AssertionError."""


def assert_parity(
    actual: Opened,
    reference: Opened | Reference | nn.Module,
    images: Sequence[TestImage],
    *,
    precision: Precision | None = None,
    rtol: float | None = None,
    levels: int | None = None,
) -> Report:
    """Raise AssertionError unless a bundle computes what a reference computes, on these images.

        >>> assert_parity("mse840k", pipe.vae, ["photo.png"])
        >>> assert_parity("mse840k-fp16", "mse840k", [photo], levels=3)

    Each image is encoded, the reference's latent is decoded, and the image goes through both halves.

    actual: the bundle: its path, a ``Bundle``, or an open ``VAE``, whose backend is then tested.
    reference: a ``Reference`` (which any two modules make) or a VAE of diffusers, computed in float64 on the CPU; or
        another bundle, given as ``actual`` is.
    images: (H, W, 3) uint8 arrays, Pillow images or paths; each height and width a multiple of the VAE's factor. A VAE
        of RGBA images takes (H, W, 4).
    precision: the one whose limits must be kept; by default, the bundle's. docs/verification.md has the limits.
    rtol: another limit on the norm of the error over the norm of the reference, for latents and float images.
    levels: another limit on the largest difference of an 8-bit value.

    Returns the report. The AssertionError names each case with the metric and its limit. Raises InputError without an
    image and for two different latent contracts, ImageError, SizeError, and what opening a bundle or loading a
    reference raises.
    """
    __tracebackhide__ = True  # pytest shows the test's line
    with _opened(actual) as vae:
        photos = _photos(images, vae)
        chosen: Precision = precision or vae.manifest.precision
        if chosen not in LIMITS:
            raise InputError(f"precision is {chosen!r}; it must be one of {', '.join(LIMITS)}")
        goldens, compared_with = _goldens(reference, photos, vae)
        limits = _limits(chosen, rtol, levels)
        cases = verify_cases(
            goldens,
            lambda photo: _encode(vae, photo),
            lambda latent: _decode(vae, latent),
            precision=chosen,
            limits=limits,
            form=vae.backend,
        )
        report = record(
            vae.manifest, chosen, compared_with, vae.backend, cases, limits={chosen: limits}, device=vae.device
        )
        failed = [case for case in cases if not case.passed]
        if failed:
            raise AssertionError(_message(vae, report, failed))
        return report


def _message(vae: VAE, report: Report, failed: Sequence[Case]) -> str:
    lines = [
        f"bundle {vae.path} ({vae.backend}) differs from {report.reference} in {len(failed)} of {len(report.cases)} "
        "cases:",
        *(
            f"  {case.name}, {case.size}, {case.part} {case.output}: {'; '.join(case.failures)}"
            for case in failed[:SHOWN]
        ),
    ]
    if len(failed) > SHOWN:
        lines.append(f"  and {len(failed) - SHOWN} more")
    return "\n".join(lines)


@contextmanager
def _opened(bundle: Opened) -> Iterator[VAE]:
    """The bundle, opened; closed afterwards if it was not open before."""
    if isinstance(bundle, VAE):
        yield bundle
        return
    if not isinstance(bundle, str | Path | Bundle):
        raise InputError(f"actual is of type {type(bundle).__name__}; it must be a path, a Bundle or a VAE")
    with VAE(bundle.path if isinstance(bundle, Bundle) else bundle) as vae:
        yield vae


def _photos(images: Sequence[TestImage], vae: VAE) -> list[tuple[str, NDArray[np.uint8]]]:
    """Each image's name in messages, and its pixels (H, W, N)."""
    opacity = vae.latent.image_channels == RGBA
    photos: list[tuple[str, NDArray[np.uint8]]] = []
    for number, image in enumerate(images):
        name = f"image {number}"
        if isinstance(image, str | Path):
            name, pixels = f"{name} ({Path(image).name})", read_image(image, opacity=opacity)
        else:
            pixels = read_pillow(image, opacity=opacity) if is_pillow(image) else image  # type: ignore[arg-type, assignment]
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 3:
            told = (
                f"{pixels.dtype} of shape {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
            )
            raise ImageError(f"{name} is {told}; it must be (H, W, 3) uint8, a Pillow image or a path")
        check_image(pixels, vae.latent.image_channels)
        vae.latent.sizes.check(*pixels.shape[:2])
        photos.append((name, pixels))
    if not photos:
        raise InputError("there is no image to compare on; give at least one")
    return photos


def _goldens(
    reference: Opened | Reference | nn.Module, photos: Sequence[tuple[str, NDArray[np.uint8]]], vae: VAE
) -> tuple[list[GoldenCase], str]:
    """The reference's outputs for each photo, and its name in messages."""
    if isinstance(reference, str | Path | Bundle | VAE):
        with _opened(reference) as other:
            _check_contract(vae, other.latent, f"bundle {other.path}")
            cases = []
            for name, photo in photos:
                latents = _encode(other, photo[None])
                image = other.decode(next(iter(latents.values())), output="float")
                cases.append(GoldenCase(name, photo[None], latents, image, True))
            return cases, f"bundle {other.path} ({other.backend})"
    modules = _loaded(reference)
    _check_contract(vae, modules.latent, modules.name)
    golden = [
        compute_golden(modules, [photo], [Shape(name, 1, photo.shape[0], photo.shape[1], True)])[0]
        for name, photo in photos
    ]
    return golden, f"{modules.name} ({modules.architecture}) in float64"


def _loaded(reference: Any) -> Reference:
    """A reference's modules; a diffusers VAE's are loaded from the files that it saves."""
    if isinstance(reference, Reference):
        return reference
    if not hasattr(reference, "save_pretrained"):
        raise InputError(
            f"reference is of type {type(reference).__name__}; it must be a Reference, a VAE of diffusers, or a "
            "bundle: a path, a Bundle or a VAE. Two modules are Reference(encoder, decoder, latent)"
        )
    from vaedeploy.source import load_reference

    with tempfile.TemporaryDirectory(prefix="vaedeploy-") as folder:
        reference.save_pretrained(folder)
        return load_reference(folder)


def _check_contract(vae: VAE, latent: Any, whose: str) -> None:
    if differences := vae.latent.differences(latent):
        told = "; ".join(f"{name} is {here}, and {there} there" for name, here, there in differences)
        raise InputError(
            f"bundle {vae.path} has another latent contract than {whose}: {told}. Latents of the two cannot be compared"
        )


def _limits(precision: Precision, rtol: float | None, levels: int | None) -> tuple[Limit, ...]:
    """The limits of ``precision``, with the caller's in place of those on the same metric."""
    bounds: dict[Metric, float | None] = {"rel_l2": rtol, "max_levels": levels}
    given = [Limit(metric, bound, True, "the caller's") for metric, bound in bounds.items() if bound is not None]
    kept = [limit for limit in LIMITS[precision] if limit.metric not in {own.metric for own in given}]
    return (*kept, *given)


def _encode(vae: VAE, photo: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    moments = vae.encode_moments(photo) if vae.latent.sampled else (vae.encode(photo),)
    return dict(zip(Interface("encoder", vae.latent).outputs, moments, strict=True))


def _decode(vae: VAE, latent: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    image = vae.decode(latent, output="float")
    finite = np.asarray(np.isfinite(image).all(axis=(1, 2, 3)))
    return {"image": image, "image_u8": vae.decode(latent), "finite": finite}
