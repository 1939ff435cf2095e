"""``VAE``: a bundle's encoder and decoder as two methods on arrays."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vaedeploy.bundle import Bundle
from vaedeploy.bundle.manifest import Manifest
from vaedeploy.errors import BackendError, ImageError, InputError, LatentError
from vaedeploy.images.pixels import to_float
from vaedeploy.runtime import on_device
from vaedeploy.runtime.arrays import as_numpy, check_image, check_latent, check_out, check_seed, pad_image
from vaedeploy.runtime.backends import find_candidates
from vaedeploy.runtime.cuda import CudaDevice
from vaedeploy.runtime.dispatch import Dispatch
from vaedeploy.runtime.dlpack import is_on_device
from vaedeploy.system.gpu import FORKED, was_forked
from vaedeploy.values.kinds import Part
from vaedeploy.values.latent import LatentSpec, SizeRule


class UnverifiedBundleWarning(UserWarning):
    """The outputs of the bundle were never compared with PyTorch's, or differed from them by more than allowed."""


@dataclass(frozen=True)
class Limits:
    """What a VAE accepts: latents of ``channels`` channels, and images of ``image_channels`` (3 is RGB, 4 is RGBA),
    whose height and width ``sizes`` allows (multiples of ``factor`` pixels).
    """

    channels: int
    factor: int
    sizes: SizeRule
    image_channels: int


class VAE:
    """A bundle, ready to encode and decode.

        >>> with VAE("mse840k") as vae:
        ...     latent = vae.encode(photo)  # (512, 768, 3) uint8 -> (1, 4, 64, 96) float32
        ...     image = vae.decode(latent)  # -> (1, 512, 768, 3) uint8

    Any number of threads may use one VAE at the same time. A graph is loaded when it is first needed. A VAE is pickled
    by its path and these arguments; ``docs/processes.md`` says more of processes.

    path: the bundle's folder.
    backend: the only backend to use: "tensorrt", "tensorrt-rtx", "onnxruntime-cuda" or "onnxruntime-cpu". None uses the
        first of them, in this order, that works on this machine. Where it cannot load a half of the bundle, or does not
        take an image's size, the next one computes instead, and a warning is logged.
    device: the number of the CUDA device.
    threads: how many CPU threads one call uses; None uses all cores that this process may use.
    on_nan: what happens when a result contains NaN or infinity. "rerun" computes the items that do once more, in
        float32, if they were computed in half precision, and logs a warning; items that are still not finite are
        returned, with another warning. "warn" only logs a warning and returns the result; "raise" raises BackendError.
    verify_hashes: whether each file's sha256 is checked before use. False only checks that each file exists and has
        the size that the manifest states.
    provider_options: options of ONNX Runtime's CUDA provider, such as {"use_tf32": "1"}, which makes float32 faster but
        rounds the inputs of convolutions to 10 bits.
    profile: the name of the only profile whose engines are used. None uses all engines that fit the GPU, and for each
        size the one with the tightest range. If no engine of the profile can be used on this machine, ``backend=None``
        goes on to the next backend and logs a warning.

    Issues UnverifiedBundleWarning if the bundle is not verified. Raises BundleError for a bundle that is missing or
    damaged, BackendError for a backend that is not installed, and InputError for other invalid arguments.
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
        self._bundle = Bundle.hold(path, verify_hashes)
        self._place = Path(path).absolute()  # now, since the process may change its folder later
        candidates = find_candidates(self._bundle, backend, device, threads, provider_options, profile, verify_hashes)
        self._dispatch = Dispatch(self._bundle, candidates, backend is None, on_nan)
        self._device = device
        self._opened: CudaDevice | None = None
        self._opening = threading.Lock()
        self._open_again = partial(
            VAE,
            backend=backend,
            device=device,
            threads=threads,
            on_nan=on_nan,
            verify_hashes=verify_hashes,
            provider_options=provider_options,
            profile=profile,
        )
        if not self._bundle.verified:
            state = "was never verified" if self.manifest.verification is None else "failed its verification"
            warnings.warn(
                f"bundle {path} {state}; its images may be wrong. Run: vaedeploy verify {path}",
                UnverifiedBundleWarning,
                stacklevel=2,
            )

    @property
    def path(self) -> Path:
        """The bundle's folder, as it was passed in."""
        return self._bundle.path

    @property
    def manifest(self) -> Manifest:
        """The bundle's description: its VAE, precision, engines and verification, as they were when the bundle was
        opened. See ``docs/bundle-format.md``.
        """
        return self._bundle.manifest

    @property
    def latent(self) -> LatentSpec:
        """The latent contract: channels, factor, scale and shift of the latents."""
        return self.manifest.latent

    @property
    def backend(self) -> str:
        """The backend that computes, or that is tried first if there are several."""
        return self._dispatch.backend

    @property
    def limits(self) -> Limits:
        """The channels, heights and widths that ``encode`` and ``decode`` accept, for a check before a call."""
        return Limits(self.latent.channels, self.latent.factor, self.latent.sizes, self.latent.image_channels)

    def encode(
        self, image: Any, *, sample: bool = False, seed: int | None = None, pad: bool = False, stream: Any = None
    ) -> Any:
        """Encode images into a latent: (B, C, h, w) float32, scaled and shifted as the diffusion model sees it.

        The latent is the mean of the encoder's distribution, or with ``sample`` a sample of it.

        image: (H, W, 3) or (B, H, W, 3) uint8, or (B, 3, H, W) float in [-1, 1]; RGB; a numpy array or any array that
            supports DLPack. A bundle exported for uint8 images takes only uint8. Where ``latent.image_channels`` is 4,
            images have a fourth channel, opacity, in the range of the colours, which are not multiplied by it.
        sample: return mean + std * noise. The noise is standard normal, float32, from numpy's
            ``Generator(Philox(seed))``, and is drawn in one go for the whole (B, C, h, w) in C order. An item's noise
            therefore depends on the seed and on the items before it in the batch, but not on those after it.
        seed: the seed of the noise, 0 or more; None draws a fresh one. Only valid with ``sample``.
        pad: accept any height and width, and extend the image by reflection at its bottom and right to the next valid
            size. ``decode(latent, size=(H, W))`` with the original size crops the decoded image to it again.
        stream: only for an array in GPU memory: a CUDA stream (an object with ``__cuda_stream__``) whose work is waited
            for before the array is read. The stream that produced the array need not be given if the array's library
            follows the DLPack protocol.

        An image in GPU memory gives a latent in GPU memory, which owns its memory and supports DLPack. The image must
        be contiguous and have the form that the graph takes: (B, 3, H, W) float32 in [-1, 1], or (B, H, W, 3) uint8 for
        a bundle exported for uint8; 4 channels in the place of 3 for RGBA. Its values are not checked, and ``sample``,
        ``seed`` and ``pad`` cannot be used. The latent is complete when the call returns.

        Raises ImageError, SizeError (a height or width that is not a multiple of the factor, without ``pad``),
        InputError and BackendError.
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
        pixels = check_image(as_numpy(image, "image", ImageError), self.latent.image_channels)
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
        """Decode a latent into images: (B, H, W, 3) uint8, or (B, 3, H, W) float32 around [-1, 1], not clamped; with 4
        channels in the place of 3 where ``latent.image_channels`` is 4.

        latent: (B, C, h, w) float, scaled and shifted as the diffusion model sees it; a numpy array or any array that
            supports DLPack.
        output: "uint8" or "float", the dtype of the images.
        size: (H, W) to crop the images to: the size that the image had before ``encode(pad=True)`` extended it.
        out: an array of the result's shape and dtype, which is filled and returned instead of a new one.
        stream: only for an array in GPU memory: a CUDA stream (an object with ``__cuda_stream__``) whose work is waited
            for before the array is read. The stream that produced the array need not be given if the array's library
            follows the DLPack protocol.

        A latent in GPU memory must be float32 and contiguous. It gives images in GPU memory, in a new array that owns
        its memory and supports DLPack, or in ``out``, which must be in GPU memory too and excludes ``size``. The images
        are complete when the call returns.

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

    def __reduce__(self) -> tuple[Any, ...]:
        # The process that unpickles it may be in another folder.
        return self._open_again, (self._place,)

    def close(self) -> None:
        """Release the graphs. Calls in progress finish; later calls raise InputError."""
        self._dispatch.close()
        self._bundle.release()

    def __enter__(self) -> VAE:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _gpu(self) -> CudaDevice:
        """The CUDA device, which is opened for the first array in its memory. Raises BackendError in a process that was
        forked after CUDA was used.
        """
        if was_forked():
            raise BackendError(FORKED)
        with self._opening:
            if self._opened is None:
                self._opened = CudaDevice(self._device)
            return self._opened

    def _run(self, part: Part, outputs: Sequence[str], inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        return self._dispatch.run(part, outputs, inputs)  # type: ignore[return-value]  # host arrays in, host arrays out


def _refuse_stream(stream: object) -> None:
    if stream is not None:
        raise InputError("stream is only for arrays in GPU memory, and this array is in host memory; leave stream out")
