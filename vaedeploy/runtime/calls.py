"""What ``VAE`` does with images and latents: checks which memory they are in, and runs the halves on them there."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from vaedeploy.bundle import Bundle
from vaedeploy.errors import BackendError, ImageError, InputError
from vaedeploy.runtime import on_device, on_host
from vaedeploy.runtime.arrays import check_seed, refuse_stream
from vaedeploy.runtime.cuda import CudaDevice
from vaedeploy.runtime.dispatch import Dispatch
from vaedeploy.runtime.dlpack import is_on_device
from vaedeploy.runtime.types import HostImage, HostLatent, Moments, SupportsDLPack
from vaedeploy.system.gpu import FORKED, was_forked
from vaedeploy.values.kinds import Part


class ArrayCalls:
    """``encode``, ``encode_moments`` and ``decode`` of ``VAE``, typed by the memory that arrays are in.

    device: the number of the CUDA device that arrays in GPU memory are on.
    """

    def __init__(self, bundle: Bundle, dispatch: Dispatch, device: int) -> None:
        self._bundle, self._dispatch, self._device = bundle, dispatch, device
        self._opened: CudaDevice | None = None
        self._opening = threading.Lock()

    @overload
    def encode(
        self, image: HostImage, *, sample: bool = False, seed: int | None = None, pad: bool = False, stream: None = None
    ) -> NDArray[np.float32]: ...
    @overload
    def encode(
        self,
        image: SupportsDLPack,
        *,
        sample: bool = ...,
        seed: int | None = ...,
        pad: bool = ...,
        stream: object = ...,
    ) -> SupportsDLPack: ...
    def encode(
        self, image: Any, *, sample: bool = False, seed: int | None = None, pad: bool = False, stream: object = None
    ) -> SupportsDLPack:
        """Encode images into a latent: (B, C, h, w) float32, scaled and shifted as the diffusion model sees it.

        The latent is the mean of the encoder's distribution, or with ``sample`` a sample of it.

        image: (H, W, 3) or (B, H, W, 3) uint8, or (B, 3, H, W) float in [-1, 1]; RGB; a numpy array, any array that
            supports DLPack, or a Pillow image, which is converted as an image file is. A bundle exported for uint8
            images takes only uint8. Where ``latent.image_channels`` is 4, images have a fourth channel, opacity, in the
            range of the colours; colours are not premultiplied.
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
        a bundle exported for uint8; 4 channels instead of 3 for RGBA. Its values are not checked, and ``sample``,
        ``seed`` and ``pad`` cannot be used. The latent is complete when the call returns.

        Raises ImageError, SizeError (a height or width that is not a multiple of the factor, without ``pad``),
        MemoryLimitError, InputError and BackendError.
        """
        if is_on_device(image):
            if sample or seed is not None or pad:
                raise ImageError(
                    "an image in the GPU's memory is encoded without sample, seed and pad; copy it to the host"
                )
            return self._encode_on_gpu(image, stream, 1)[0]
        refuse_stream(stream)
        if seed is not None:
            seed = check_seed(seed, sample)
        if sample:
            self._check_sampled("to sample from; call encode without sample")
        mean, *std = on_host.encode(self._dispatch, self._bundle, image, 2 if sample else 1, pad)
        if not sample:
            return mean
        noise = np.random.Generator(np.random.Philox(seed)).standard_normal(mean.shape, np.float32)
        return mean + std[0] * noise

    @overload
    def encode_moments(
        self, image: HostImage, *, pad: bool = False, stream: None = None
    ) -> Moments[NDArray[np.float32]]: ...
    @overload
    def encode_moments(
        self, image: SupportsDLPack, *, pad: bool = ..., stream: object = ...
    ) -> Moments[SupportsDLPack]: ...
    def encode_moments(
        self, image: Any, *, pad: bool = False, stream: object = None
    ) -> Moments[NDArray[np.float32]] | Moments[SupportsDLPack]:
        """Encode images into the distribution of their latent, whose samples are ``mean + std * noise``.

            >>> mean, std = vae.encode_moments(photo)  # (512, 768, 3) uint8 -> (1, 4, 64, 96) float32 each

        Arguments, and what is raised, are those of ``encode``. InputError also for a VAE that gives no distribution
        (``latent.sampled`` is False).
        """
        self._check_sampled("of latents; call encode, which gives the latent")
        if is_on_device(image):
            if pad:
                raise ImageError("an image in the GPU's memory is encoded without pad; copy it to the host")
            return Moments(*self._encode_on_gpu(image, stream, 2))
        refuse_stream(stream)
        return Moments(*on_host.encode(self._dispatch, self._bundle, image, 2, pad))

    @overload
    def decode(
        self,
        latent: HostLatent,
        *,
        output: Literal["uint8"] = "uint8",
        size: tuple[int, int] | None = None,
        out: NDArray[np.uint8] | None = None,
        stream: None = None,
    ) -> NDArray[np.uint8]: ...
    @overload
    def decode(
        self,
        latent: HostLatent,
        *,
        output: Literal["float"],
        size: tuple[int, int] | None = None,
        out: NDArray[np.float32] | None = None,
        stream: None = None,
    ) -> NDArray[np.float32]: ...
    @overload
    def decode(
        self,
        latent: SupportsDLPack,
        *,
        output: Literal["uint8", "float"] = "uint8",
        size: tuple[int, int] | None = None,
        out: SupportsDLPack | None = None,
        stream: object = None,
    ) -> SupportsDLPack: ...
    def decode(
        self,
        latent: Any,
        *,
        output: Literal["uint8", "float"] = "uint8",
        size: tuple[int, int] | None = None,
        out: Any = None,
        stream: object = None,
    ) -> SupportsDLPack:
        """Decode a latent into images: (B, H, W, 3) uint8, or (B, 3, H, W) float32 around [-1, 1], not clamped; with 4
        channels instead of 3 where ``latent.image_channels`` is 4.

        latent: (B, C, h, w) float, scaled and shifted as the diffusion model sees it; a numpy array or any array that
            supports DLPack.
        output: "uint8" or "float", the dtype of the images.
        size: (H, W) to crop the images to: the size that the image had before ``encode(pad=True)`` extended it.
        out: an array of the result's shape and dtype, which is filled and returned instead of a new one. The backend
            writes into it, without a copy, if it is contiguous, there is no ``size``, and it shares no memory with the
            latent. After an error its content is undefined.
        stream: only for an array in GPU memory: a CUDA stream (an object with ``__cuda_stream__``) whose work is waited
            for before the array is read. The stream that produced the array need not be given if the array's library
            follows the DLPack protocol.

        A latent in GPU memory must be float32 and contiguous. It gives images in GPU memory, in a new array that owns
        its memory and supports DLPack, or in ``out``, which must be in GPU memory too and excludes ``size``. The images
        are complete when the call returns.

        Raises LatentError, SizeError (a ``size`` that this latent cannot come from), MemoryLimitError, InputError and
        BackendError.
        """
        if output not in ("uint8", "float"):
            raise InputError(f"output is {output!r}; it must be 'uint8' or 'float'")
        if is_on_device(latent):
            with self._gpu().active():
                return on_device.decode(
                    self._dispatch, self._bundle.manifest, self._gpu(), latent, output, size, out, stream
                )
        refuse_stream(stream)
        return on_host.decode(self._dispatch, self._bundle, latent, output, size, out)

    def compute(self, part: Part, value: HostImage | HostLatent, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Run one half and return its outputs by the names that they have in the graph, for servers.

            >>> vae.compute("decoder", latent, ["image_u8", "finite"])
            {'image_u8': array(...), 'finite': array([ True])}

        part: "encoder" or "decoder". value: what ``encode`` or ``decode`` takes, in host memory.
        outputs: names, all computed in one run. The encoder has ``latent_mean`` and ``latent_std``, or ``latent`` where
            ``latent.sampled`` is False. The decoder has ``image`` (B, 3, H, W) float32, ``image_u8`` (B, H, W, 3) uint8
            and ``finite`` (B,) bool, which is False for an item with NaN or infinity in its image.

        Raises what ``encode`` and ``decode`` raise, and InputError for an output that the half does not have.
        """
        return on_host.compute(self._dispatch, self._bundle, part, value, outputs)

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

    def _encode_on_gpu(self, image: SupportsDLPack, stream: object, outputs: int) -> list[SupportsDLPack]:
        with self._gpu().active():
            return on_device.encode(self._dispatch, self._bundle.manifest, self._gpu(), image, stream, outputs)

    def _check_sampled(self, advice: str) -> None:
        if not self._bundle.manifest.latent.sampled:
            raise InputError(f"VAE {self._bundle.manifest.vae.name} gives no distribution {advice}")
