"""The runtime: a bundle's encoder and decoder as two methods on arrays."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vaedeploy.bundle import Bundle
from vaedeploy.bundle.manifest import Manifest
from vaedeploy.errors import ImageError, InputError, LatentError
from vaedeploy.images.pixels import to_float
from vaedeploy.runtime import on_device
from vaedeploy.runtime.arrays import as_numpy, check_image, check_latent, check_out, check_seed, pad_image
from vaedeploy.runtime.backends import find_candidates
from vaedeploy.runtime.cuda import CudaDevice
from vaedeploy.runtime.dispatch import Dispatch
from vaedeploy.runtime.dlpack import is_on_device
from vaedeploy.values.kinds import Part
from vaedeploy.values.latent import LatentSpec, SizeRule


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
    backend: who computes: "tensorrt", "tensorrt-rtx", "onnxruntime-cuda" or "onnxruntime-cpu", and nobody else. None
        takes the first of them that answers here, and the next, with a warning in the log, where that one cannot load a
        half or takes no such size.
    device: the CUDA device, by its number.
    threads: how many threads of the CPU one call uses; None is all cores that this process may use.
    on_nan: what to do about a result with NaN or infinity in it. "rerun" runs the items that have it again in float32,
        once, where they were computed in half precision, and logs a warning; what is not finite then is returned, with
        another warning. "warn" only logs and returns it, "raise" raises BackendError.
    verify_hashes: prove each file's sha256 first; without, only that each is there and has its size.
    provider_options: for ONNX Runtime's CUDA provider, such as {"use_tf32": "1"}, which is faster in float32 and rounds
        to 10 bits.
    profile: use the engines of that profile alone; None uses all that fit the GPU, for each size the tightest range.
        Where none of them can be used here, ``backend=None`` goes on to the next backend, with a warning in the log.

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
        profile: str | None = None,
    ) -> None:
        if on_nan not in ("rerun", "warn", "raise"):
            raise InputError(f"on_nan is {on_nan!r}; it must be 'rerun', 'warn' or 'raise'")
        if not isinstance(device, int) or device < 0:
            raise InputError(f"device is {device!r}; it must be the number of a CUDA device, 0 or more")
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise InputError(f"threads is {threads!r}; it must be 1 or more, or None for all cores")
        self._bundle = Bundle.open(path, verify_hashes)
        candidates = find_candidates(self._bundle, backend, device, threads, provider_options, profile, verify_hashes)
        self._dispatch = Dispatch(self._bundle, candidates, backend is None, on_nan)
        self._device = device
        self._opened: CudaDevice | None = None
        if not self._bundle.verified:
            state = "was never verified" if self.manifest.verification is None else "failed its verification"
            warnings.warn(
                f"bundle {path} {state}; its pictures may be wrong. Run: vaedeploy verify {path}",
                UnverifiedBundleWarning,
                stacklevel=2,
            )

    @property
    def path(self) -> Path:
        """The bundle's folder, as it was given."""
        return self._bundle.path

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself: its VAE, precision, engines and verification, as they were when it was
        opened. See ``docs/bundle-format.md``.
        """
        return self._bundle.manifest

    @property
    def latent(self) -> LatentSpec:
        """The latent contract: channels, factor, scale and shift."""
        return self.manifest.latent

    @property
    def backend(self) -> str:
        """Who computes, or computes first."""
        return self._dispatch.backend

    @property
    def limits(self) -> Limits:
        """What ``encode`` and ``decode`` take, to be asked before they refuse it: channels, and heights and widths."""
        return Limits(self.latent.channels, self.latent.factor, self.latent.sizes)

    def encode(
        self, image: Any, *, sample: bool = False, seed: int | None = None, pad: bool = False, stream: Any = None
    ) -> Any:
        """Image -> latent (B, C, h, w) float32, diffusion space: the distribution's mean, unless ``sample``.

        image: (H, W, 3) or (B, H, W, 3) uint8, or (B, 3, H, W) float in [-1, 1]; RGB; a numpy array or anything that
            speaks DLPack. A bundle made for uint8 takes uint8 only.
        sample: give mean + std * noise, the noise being standard normal float32 numbers of numpy's
            ``Generator(Philox(seed))``, drawn in one go for the whole (B, C, h, w) in C order. So what an item gets
            depends on the seed and on the items before it in the batch, not on those after it.
        seed: 0 or more; None draws a fresh one.
        pad: let any height and width be, and grow the image at its bottom and right to the next valid size by
            reflection. ``decode(latent, size=(H, W))`` with the image's own size cuts that off again.
        stream: for an array in the GPU's memory: a CUDA stream (with ``__cuda_stream__``) whose work is waited for.
            DLPack tells of the one that made it, where its library keeps to the protocol.

        An image in the GPU's memory gives a latent there, which owns its memory and speaks DLPack. It must be what the
        graph takes: (B, 3, H, W) float32 in [-1, 1], or (B, H, W, 3) uint8 of a bundle made for uint8; contiguous,
        without sample and pad. Its values are not looked at. When the call returns, the latent is there.

        Raises ImageError, SizeError (a size that is not a multiple of the factor, without ``pad``), InputError and
        BackendError.
        """
        if is_on_device(image):
            if sample or seed is not None or pad:
                raise ImageError(
                    "an image in the GPU's memory is encoded without sample, seed and pad; copy it to the host"
                )
            with self._gpu().active():
                return on_device.encode(self._dispatch, self.manifest, self._gpu(), image, stream)
        _refuse_stream(stream)
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
        if pixels.dtype == np.uint8 and self.manifest.image_input == "float":
            pixels = to_float(pixels)
        interface = self.manifest.interface("encoder")
        _, height, width = interface.pixels(pixels.shape)
        self.latent.sizes.check(height, width)
        inputs = {interface.input: np.ascontiguousarray(pixels)}
        if not sample:
            (latent,) = self._run("encoder", interface.outputs[:1], inputs)
            return latent
        mean, std = self._run("encoder", interface.outputs, inputs)
        noise = np.random.Generator(np.random.Philox(seed)).standard_normal(mean.shape, np.float32)
        return mean + std * noise

    def decode(
        self,
        latent: Any,
        *,
        output: Literal["uint8", "float"] = "uint8",
        size: tuple[int, int] | None = None,
        out: Any = None,
        stream: Any = None,
    ) -> Any:
        """Latent -> image: (B, H, W, 3) uint8, or (B, 3, H, W) float32 around [-1, 1], not clamped.

        latent: (B, C, h, w) float, diffusion space; a numpy array or anything that speaks DLPack.
        output: "uint8" or "float".
        size: (H, W) to cut the image to, where ``encode(pad=True)`` had grown it.
        out: an array of the result's shape and type to fill and return, instead of a new one.
        stream: for an array in the GPU's memory: a CUDA stream (with ``__cuda_stream__``) whose work is waited for.
            DLPack tells of the one that made it, where its library keeps to the protocol.

        A latent in the GPU's memory, float32 and contiguous, gives an image there, which owns its memory and speaks
        DLPack (or ``out``, which must be there too). When the call returns, the image is there.

        Raises LatentError, SizeError (a ``size`` that this latent cannot come from), InputError and BackendError.
        """
        if output not in ("uint8", "float"):
            raise InputError(f"output is {output!r}; it must be 'uint8' or 'float'")
        if is_on_device(latent):
            with self._gpu().active():
                return on_device.decode(self._dispatch, self.manifest, self._gpu(), latent, output, size, out, stream)
        _refuse_stream(stream)
        values = check_latent(as_numpy(latent, "latent", LatentError), self.latent)
        interface, name = self.manifest.interface("decoder"), "image_u8" if output == "uint8" else "image"
        batch, *full = interface.pixels(values.shape)
        height, width = full if size is None else self.latent.sizes.check_cut(size, (full[0], full[1]))
        if out is not None:
            check_out(out, interface.gives(batch, height, width)[name])
        image, _ = self._run("decoder", [name, "finite"], {interface.input: values})
        if [height, width] != full:
            image = image[:, :height, :width] if output == "uint8" else image[:, :, :height, :width]
        if out is None:
            return np.ascontiguousarray(image)
        np.copyto(out, image)
        return out

    def __repr__(self) -> str:
        return f"VAE({str(self.path)!r}, {self.manifest.vae.name}, {self.backend})"

    def close(self) -> None:
        """Let go of the graphs. Calls that are under way end well; later ones raise InputError."""
        self._dispatch.close()

    def __enter__(self) -> VAE:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _gpu(self) -> CudaDevice:
        """The device of arrays in its memory, opened when the first comes."""
        if self._opened is None:
            self._opened = CudaDevice(self._device)
        return self._opened

    def _run(self, part: Part, outputs: Sequence[str], inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        return self._dispatch.run(part, outputs, inputs)  # type: ignore[return-value]  # host in, host out


def _refuse_stream(stream: object) -> None:
    if stream is not None:
        raise InputError("stream is for arrays in the GPU's memory, and this one is the host's; leave it out")
