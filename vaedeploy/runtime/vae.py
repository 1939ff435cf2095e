"""The runtime: a bundle's encoder and decoder as two methods on arrays."""

from __future__ import annotations

import logging
import operator
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vaedeploy.bundle import Bundle, Manifest, Part
from vaedeploy.errors import BackendError, BundleError, ImageError, InputError, LatentError, SizeError
from vaedeploy.latent import LatentSpec, SizeRule
from vaedeploy.runtime.arrays import as_numpy, check_image, check_latent, check_out, check_seed, pad_image, to_float
from vaedeploy.runtime.backends import Candidate, Runner, find_candidates

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
    backend: who computes: "onnxruntime-cuda" or "onnxruntime-cpu"; None takes the first of them that answers here, and
        the next, with a warning in the log, where that one cannot load a graph.
    device: the CUDA device, by its number.
    threads: how many threads of the CPU one call uses; None is all cores that this process may use.
    on_nan: what to do about a result with NaN or infinity in it. "rerun" runs the items that have it again in float32,
        once, where they were computed in half precision, and logs a warning; what is not finite then is returned, with
        another warning. "warn" only logs and returns it, "raise" raises BackendError.
    verify_hashes: prove each file's sha256 first; without, only that each is there and has its size.
    provider_options: for ONNX Runtime's CUDA provider, such as {"cudnn_conv_algo_search": "HEURISTIC"}.

    A graph is loaded when it is first needed. Warns (UnverifiedBundleWarning) where the bundle is not verified.
    Raises BundleError for a bundle that is missing or damaged, BackendError for a backend that is not installed, and
    InputError for other arguments.
    """

    def __init__(
        self,
        path: str | Path,
        backend: str | None = None,
        *,
        device: int = 0,
        threads: int | None = None,
        on_nan: Literal["rerun", "warn", "raise"] = "rerun",
        verify_hashes: bool = True,
        provider_options: Mapping[str, str] | None = None,
    ) -> None:
        if on_nan not in ("rerun", "warn", "raise"):
            raise InputError(f"on_nan is {on_nan!r}; it must be 'rerun', 'warn' or 'raise'")
        if not isinstance(device, int) or device < 0:
            raise InputError(f"device is {device!r}; it must be the number of a CUDA device, 0 or more")
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise InputError(f"threads is {threads!r}; it must be 1 or more, or None for all cores")
        self._bundle = Bundle.open(path, verify_hashes)
        self._candidates = find_candidates(self._bundle, backend, device, threads, provider_options)
        self._may_fall_back = backend is None
        self._on_nan = on_nan
        self._runners: dict[tuple[Candidate, Part], Runner] = {}
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
        return self._candidates[0].backend

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
            seed = check_seed(seed, sample)
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
            latent, std = self._run("encoder", ["latent_mean", "latent_std"], inputs)
            noise = np.random.Generator(np.random.Philox(seed)).standard_normal(latent.shape, np.float32)
            latent = latent + std * noise
        else:
            (latent,) = self._run("encoder", ["latent_mean" if self.latent.sampled else "latent"], inputs)
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
            check_out(out, shape, np.dtype(np.uint8 if bytes_wanted else np.float32))
        names = ["image_u8" if bytes_wanted else "image", "finite"]
        image, _ = self._run("decoder", names, {"latent": values})
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
            self._runners = {}

    def __enter__(self) -> VAE:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, part: Part, outputs: list[str], inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run a half, and again in float32 those items that half precision could not hold."""
        candidate, runner = self._preferred(part)
        results = runner.run(outputs, inputs)
        finite = _finite_items(results)
        if finite.all():
            return results
        what = f"{'decode' if part == 'decoder' else 'encode'} gave NaN or infinity"
        items = np.flatnonzero(~finite)
        where = f"in item {', '.join(map(str, items))} of a batch of {len(finite)} (bundle {self.path})"
        exact = next((other for other in self._candidates if other.precision == "fp32"), None)
        if self._on_nan == "rerun" and candidate.precision != "fp32" and exact is not None:
            again = self._runner(exact, part).run(outputs, {name: value[items] for name, value in inputs.items()})
            for result, better in zip(results, again, strict=True):
                result[items] = better
            logger.warning("%s in %s %s; run again in fp32", what, candidate.precision, where)
            finite = _finite_items(results)
            if finite.all():
                return results
        message = f"{what} {where}"
        if self.manifest.precision != "fp32" and self._on_nan != "rerun":
            message += f". It is a bundle of {self.manifest.precision}: on_nan='rerun' runs such items again in fp32"
        if self._on_nan == "raise":
            raise BackendError(message)
        logger.warning(message)
        return results

    def _preferred(self, part: Part) -> tuple[Candidate, Runner]:
        """The first candidate that can open ``part``. Where the caller left the choice, one that cannot is dropped."""
        while True:
            candidate = self._candidates[0]
            try:
                return candidate, self._runner(candidate, part)
            except BackendError as error:
                others = [other for other in self._candidates if other.backend != candidate.backend]
                if not self._may_fall_back or not others:
                    raise
                logger.warning("%s cannot be used, so %s answers: %s", candidate.backend, others[0].backend, error)
                self._candidates = others

    def _runner(self, candidate: Candidate, part: Part) -> Runner:
        with self._lock:
            if self._closed:
                raise InputError(f"this VAE is closed; open it again: VAE({str(self.path)!r})")
            key = candidate, part
            if key not in self._runners:
                runner = candidate.open(part)
                self._check_contract(part, runner)
                self._runners[key] = runner
            return self._runners[key]

    def _check_contract(self, part: Part, runner: Runner) -> None:
        if part == "decoder":
            inputs, outputs = ["latent"], ["image", "image_u8", "finite"]
        else:
            inputs = ["image_u8" if self.manifest.image_input == "uint8" else "image"]
            outputs = ["latent_mean", "latent_std"] if self.latent.sampled else ["latent"]
        if runner.inputs != inputs or not set(outputs) <= set(runner.outputs):
            raise BundleError(
                f"{runner.graph} takes {runner.inputs} and gives {runner.outputs}; the {part} of this bundle must "
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


def _finite_items(results: Sequence[NDArray[Any]]) -> NDArray[np.bool_]:
    """(B,) bool: which items have no NaN or infinity. The decoder's graph tells, since bytes do not show it."""
    if results[-1].dtype == np.bool_:
        return results[-1]
    latent = results[0]
    finite: NDArray[np.bool_] = np.isfinite(latent).all(axis=tuple(range(1, latent.ndim)))
    return finite
