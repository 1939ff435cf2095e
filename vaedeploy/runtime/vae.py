"""The runtime: a bundle's encoder and decoder as two methods on arrays."""

from __future__ import annotations

import logging
import operator
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vaedeploy.bundle import Bundle, Manifest, Part
from vaedeploy.errors import BackendError, BundleError, ImageError, InputError, LatentError, SizeError
from vaedeploy.latent import LatentSpec, SizeRule
from vaedeploy.runtime import onnxruntime_cpu
from vaedeploy.runtime.arrays import as_numpy, check_image, check_latent, pad_image, to_float

BACKENDS = (onnxruntime_cpu.NAME,)

logger = logging.getLogger("vaedeploy")


class UnverifiedBundleWarning(UserWarning):
    """A bundle is used whose outputs were never compared with PyTorch's, or differed by more than allowed."""


@dataclass(frozen=True)
class Limits:
    """What a VAE takes: latents of ``channels`` channels, and images whose height and width ``sizes`` allows
    (multiples of ``factor``).
    """

    channels: int
    factor: int
    sizes: SizeRule


class VAE:
    """A bundle, ready to encode and decode. Use it from as many threads as you like, and as a context manager.

    path: the bundle's folder.
    backend: who computes; None chooses ("onnxruntime-cpu" is all there is so far).
    threads: how many threads one call uses; None is all cores that this process may use.
    on_nan: what to do about a result with NaN or infinity in it: "warn" logs a warning and returns it, "raise" raises
        BackendError.
    verify_hashes: prove each file's sha256 first; without, only that each is there and has its size.

    A graph is loaded when it is first needed. Warns (UnverifiedBundleWarning) where the bundle is not verified.
    Raises BundleError for a bundle that is missing or damaged, BackendError for a backend that is not installed, and
    InputError for other arguments.
    """

    def __init__(
        self,
        path: str | Path,
        backend: str | None = None,
        *,
        threads: int | None = None,
        on_nan: Literal["warn", "raise"] = "warn",
        verify_hashes: bool = True,
    ) -> None:
        if backend is not None and backend not in BACKENDS:
            raise InputError(f"there is no backend {backend!r}; there is: {', '.join(BACKENDS)}")
        if on_nan not in ("warn", "raise"):
            raise InputError(f"on_nan is {on_nan!r}; it must be 'warn' or 'raise'")
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise InputError(f"threads is {threads!r}; it must be 1 or more, or None for all cores")
        self._bundle = Bundle.open(path, verify_hashes)
        onnxruntime_cpu.load_library()
        self._threads = threads
        self._on_nan = on_nan
        self._sessions: dict[Part, onnxruntime_cpu.Session] = {}
        self._lock = threading.Lock()
        self._closed = False
        if not self._bundle.verified:
            state = "was never verified" if self.manifest.verification is None else "failed its verification"
            warnings.warn(
                f"bundle {path} {state}; its pictures may be wrong. Run: vaedeploy verify {path}",
                UnverifiedBundleWarning,
                stacklevel=2,
            )

    @property
    def path(self) -> Path:
        """The bundle's folder."""
        return self._bundle.path

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self._bundle.manifest

    @property
    def latent(self) -> LatentSpec:
        """The latent contract."""
        return self.manifest.latent

    @property
    def backend(self) -> str:
        """Who computes."""
        return onnxruntime_cpu.NAME

    @property
    def limits(self) -> Limits:
        """What is taken."""
        return Limits(self.latent.channels, self.latent.factor, self.latent.sizes)

    def encode(
        self, image: Any, *, sample: bool = False, seed: int | None = None, pad: bool = False
    ) -> NDArray[np.float32]:
        """Image -> latent (B, C, h, w) float32, diffusion space: the distribution's mean, unless ``sample``.

        image: (H, W, 3) or (B, H, W, 3) uint8, or (B, 3, H, W) float in [-1, 1]; RGB; a numpy array or anything that
            speaks DLPack. A bundle made for uint8 takes uint8 only.
        sample: give mean + std * noise, the noise being standard normal float32 numbers of numpy's
            ``Generator(Philox(seed))``, drawn in one go for the whole (B, C, h, w) in C order. So what an item gets
            depends on the seed and on the items before it in the batch, not on those after it.
        seed: 0 or more; None draws a fresh one.
        pad: let any height and width be, and grow the image at its bottom and right to the next valid size by
            reflection. ``decode(latent, size=(H, W))`` with the image's own size cuts that off again.

        Raises ImageError, SizeError (a size that is not a multiple of the factor, without ``pad``), InputError and
        BackendError.
        """
        if seed is not None:
            seed = _check_seed(seed, sample)
        if sample and not self.latent.sampled:
            raise InputError(
                f"VAE {self.manifest.vae.name} gives no distribution to sample from; call encode without sample"
            )
        pixels = check_image(as_numpy(image, "image", ImageError))
        if self.manifest.image_input == "uint8" and pixels.dtype != np.uint8:
            raise ImageError(
                f"image is float, but bundle {self.path} takes uint8 images only. Give uint8, or export with "
                "--image-input float"
            )
        if pad:
            pixels = pad_image(pixels, self.latent.sizes)
        self.latent.sizes.check(*(pixels.shape[1:3] if pixels.dtype == np.uint8 else pixels.shape[2:4]))
        if self.manifest.image_input == "uint8":
            inputs = {"image_u8": np.ascontiguousarray(pixels)}
        else:
            inputs = {"image": to_float(pixels) if pixels.dtype == np.uint8 else np.ascontiguousarray(pixels)}
        if sample:
            latent, std = self._session("encoder").run(["latent_mean", "latent_std"], inputs)
            noise = np.random.Generator(np.random.Philox(seed)).standard_normal(latent.shape, np.float32)
            latent = latent + std * noise
        else:
            (latent,) = self._session("encoder").run(["latent_mean" if self.latent.sampled else "latent"], inputs)
        self._judge(np.isfinite(latent).all(axis=(1, 2, 3)), "encode")
        return latent

    def decode(
        self,
        latent: Any,
        *,
        output: Literal["uint8", "float"] = "uint8",
        size: tuple[int, int] | None = None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """Latent -> image: (B, H, W, 3) uint8, or (B, 3, H, W) float32 around [-1, 1], not clamped.

        latent: (B, C, h, w) float, diffusion space; a numpy array or anything that speaks DLPack.
        output: "uint8" or "float".
        size: (H, W) to cut the image to, where ``encode(pad=True)`` had grown it.
        out: an array of the result's shape and type to fill and return, instead of a new one.

        Raises LatentError, SizeError (a ``size`` that this latent cannot come from), InputError and BackendError.
        """
        if output not in ("uint8", "float"):
            raise InputError(f"output is {output!r}; it must be 'uint8' or 'float'")
        values = check_latent(as_numpy(latent, "latent", LatentError), self.latent)
        batch, full = values.shape[0], (values.shape[2] * self.latent.factor, values.shape[3] * self.latent.factor)
        height, width = full if size is None else self._check_size(size, full)
        bytes_wanted = output == "uint8"
        if out is not None:
            shape = (batch, height, width, 3) if bytes_wanted else (batch, 3, height, width)
            _check_out(out, shape, np.dtype(np.uint8 if bytes_wanted else np.float32))
        names = ["image_u8" if bytes_wanted else "image", "finite"]
        image, finite = self._session("decoder").run(names, {"latent": values})
        self._judge(finite, "decode")
        if (height, width) != full:
            image = image[:, :height, :width] if bytes_wanted else image[:, :, :height, :width]
        if out is None:
            return np.ascontiguousarray(image)
        np.copyto(out, image)
        return out

    def close(self) -> None:
        """Let go of the graphs. Calls that are under way end well; later ones raise InputError."""
        with self._lock:
            self._closed = True
            self._sessions = {}

    def __enter__(self) -> VAE:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _session(self, part: Part) -> onnxruntime_cpu.Session:
        with self._lock:
            if self._closed:
                raise InputError(f"this VAE is closed; open it again: VAE({str(self.path)!r})")
            if part not in self._sessions:
                session = onnxruntime_cpu.Session(self._bundle.graph(part, "onnxruntime"), self._threads)
                self._check_contract(part, session)
                self._sessions[part] = session
            return self._sessions[part]

    def _check_contract(self, part: Part, session: onnxruntime_cpu.Session) -> None:
        if part == "decoder":
            inputs, outputs = ["latent"], ["image", "image_u8", "finite"]
        else:
            inputs = ["image_u8" if self.manifest.image_input == "uint8" else "image"]
            outputs = ["latent_mean", "latent_std"] if self.latent.sampled else ["latent"]
        if session.inputs != inputs or not set(outputs) <= set(session.outputs):
            raise BundleError(
                f"{session.graph} takes {session.inputs} and gives {session.outputs}; the {part} of this bundle must "
                f"take {inputs} and give {outputs}. Export it again: {self.manifest.export_command(self.path)}"
            )

    def _check_size(self, size: tuple[int, int], full: tuple[int, int]) -> tuple[int, int]:
        try:
            height, width = map(operator.index, size)
        except (TypeError, ValueError) as error:
            raise SizeError(f"size is {size!r}; it must be two whole numbers, (height, width)") from error
        if self.latent.sizes.padded(height, width) != full or height < 1 or width < 1:
            low = tuple(side - self.latent.factor + 1 for side in full)
            raise SizeError(
                f"size is {height}x{width} (height x width), but this latent decodes to {full[0]}x{full[1]}, which "
                f"comes from heights {low[0]} to {full[0]} and widths {low[1]} to {full[1]}"
            )
        return height, width

    def _judge(self, finite: NDArray[np.bool_], what: str) -> None:
        if finite.all():
            return
        items = ", ".join(str(i) for i in np.flatnonzero(~finite))
        message = f"{what} gave NaN or infinity in item {items} of a batch of {len(finite)} (bundle {self.path})"
        if self.manifest.precision != "fp32":
            message += f". It is a bundle of {self.manifest.precision}: one of --precision fp32 may do"
        if self._on_nan == "raise":
            raise BackendError(message)
        logger.warning(message)


def _check_seed(seed: int, sample: bool) -> int:
    if not sample:
        raise InputError(f"seed is {seed}, but nothing is drawn without sample=True")
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if number < 0:
        raise InputError(f"seed is {seed!r}; it must be a whole number, 0 or more")
    return number


def _check_out(out: NDArray[Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if not isinstance(out, np.ndarray):
        raise InputError(f"out is of type {type(out).__name__}; it must be a numpy array")
    if out.shape != shape or out.dtype != dtype or not out.flags.writeable:
        kind = "" if out.flags.writeable else "read-only "
        raise InputError(
            f"out is {kind}{out.dtype} of shape {out.shape}; it must be writeable {dtype} of shape {shape}"
        )
