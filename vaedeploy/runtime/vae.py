"""``VAE``: a bundle's encoder and decoder as two methods on arrays."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

from vaedeploy.bundle import Bundle
from vaedeploy.bundle.encoding import check_identity
from vaedeploy.bundle.manifest import Manifest
from vaedeploy.errors import InputError, SizeError
from vaedeploy.runtime import on_host
from vaedeploy.runtime.backends import find_candidates
from vaedeploy.runtime.calls import ArrayCalls
from vaedeploy.runtime.candidate import Settings
from vaedeploy.runtime.dispatch import Dispatch
from vaedeploy.runtime.rows.budget import Budget
from vaedeploy.runtime.rows.session import MemoryPlan
from vaedeploy.runtime.unverified import warn_of_unverified
from vaedeploy.system.machine import usable_cores
from vaedeploy.system.progress import Progress, silent
from vaedeploy.values.kinds import Part, Precision
from vaedeploy.values.latent import LatentSpec, Limits


class VAE(ArrayCalls):
    """A bundle, ready to encode and decode.

        >>> with VAE("mse840k") as vae:
        ...     latent = vae.encode(photo)  # (512, 768, 3) uint8 -> (1, 4, 64, 96) float32
        ...     image = vae.decode(latent)  # -> (1, 512, 768, 3) uint8

    Any number of threads may use one VAE at the same time. A graph is loaded when it is first needed. A VAE is pickled
    by its path and these arguments; ``docs/processes.md`` says more of processes.

    path: the bundle's folder, or ``hf://owner/name@revision`` on the hub, which is pulled into the cache and opened
        from there; ``docs/services.md`` says how to pin it.
    backend: the only backend to use: "tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cpu" or "openvino".
        None uses the first of them, in this order, that works on this machine. Where it cannot load a half of the
        bundle, or does not take an image's size, the next one computes instead, and a warning is logged.
    precision: "fp32", "fp16" or "bf16", where the backend can compute in several: engines in those that were built,
        half-precision graphs in float32 too, and OpenVINO any bundle in "fp32" or "bf16". None for the bundle's own.
    device: the number of the CUDA device; for OpenVINO its name of a device, such as "CPU", "GPU.0" or "NPU".
    threads: how many CPU threads one call uses; None uses all cores that this process may use.
    on_nan: what happens when a result contains NaN or infinity. "rerun" recomputes such items in float32, if they were
        computed in half precision, and logs a warning; items that are still not finite are returned, with another
        warning. "warn" only logs a warning and returns the result; "raise" raises BackendError.
    verify_hashes: whether each file's sha256 is checked before use. False only checks that each file exists and has
        the size that the manifest states.
    provider_options: options of ONNX Runtime's CUDA provider, such as {"use_tf32": "1"}, which makes float32 faster but
        rounds the inputs of convolutions to 10 bits.
    profile: the name of the only profile whose engines are used. None uses all engines that fit the GPU, and for each
        size the one with the tightest range. If no engine of the profile can be used on this machine, ``backend=None``
        goes on to the next backend and logs a warning.
    max_memory: bytes that all running calls together may take on the CPU, beyond the open VAE and the arrays that are
        given and returned; at least 1 MiB. A call that would take more runs by rows, with the same result; one that
        finds no memory waits for others to end. None for 70 % of what is free when a call begins, by the limits of
        containers too.
    workspace: a folder on a fast disk. Calls by rows store there what memory does not hold, where computing it again
        would take longer. The files have no names, and are gone when the call ends, however it ends.
    keep_memory: whether the memory of a run of the whole graph on the CPU is kept for the next one, until ``close``.
        That saves the time to allocate it again; False gives it back after each call.
    identity: the identity of the VAE that the bundle must hold, as ``vaedeploy inspect`` shows it; None for any.
    progress: reports how far each call by rows is, in the calling thread, and how far a pull is; see ``Progress``. It
        is not pickled.

    Issues UnverifiedBundleWarning if the bundle is not verified. Raises BundleError for a bundle that is missing or
    damaged, or holds another VAE, DownloadError where the hub cannot be reached, BackendError for a backend that is not
    installed, and InputError for other invalid arguments. A call by rows raises OutputError where its workspace has no
    room left.
    """

    def __init__(
        self,
        path: str | Path,
        backend: str | None = None,
        *,
        precision: Precision | None = None,
        device: int | str = 0,
        threads: int | None = None,
        on_nan: Literal["rerun", "warn", "raise"] = "rerun",
        verify_hashes: bool = True,
        provider_options: Mapping[str, str] | None = None,
        profile: str | None = None,
        max_memory: int | None = None,
        workspace: str | Path | None = None,
        keep_memory: bool = False,
        identity: str | None = None,
        progress: Progress = silent,
    ) -> None:
        if on_nan not in ("rerun", "warn", "raise"):
            raise InputError(f"on_nan is {on_nan!r}; it must be 'rerun', 'warn' or 'raise'")
        if not (isinstance(device, str) or (isinstance(device, int) and device >= 0)):
            raise InputError(f"device is {device!r}; it must be the number of a CUDA device, 0 or more")
        if precision is not None and precision not in get_args(Precision):
            raise InputError(f"precision is {precision!r}; it must be one of {', '.join(get_args(Precision))}, or None")
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise InputError(f"threads is {threads!r}; it must be 1 or more, or None for all cores")
        budget = Budget(max_memory, progress=progress, workspace=workspace)
        bundle = Bundle.hold(path, verify_hashes, progress)
        try:
            check_identity(bundle.manifest, bundle.path, identity)
        except InputError:
            bundle.release()
            raise
        self._threads = threads
        self._place = bundle.path.absolute()  # now, since the process may change its folder later
        given: dict[str, Any] = {
            "backend": backend,
            "precision": precision,
            "device": device,
            "threads": threads,
            "provider_options": provider_options,
            "profile": profile,
            "verify_hashes": verify_hashes,
            "keep_memory": keep_memory,
        }
        asked = Settings(**given, budget=budget)
        candidates = find_candidates(bundle, asked)
        super().__init__(bundle, Dispatch(bundle, candidates, backend is None, on_nan), asked.cuda_device)
        place = None if budget.workspace is None else budget.workspace.folder
        self._open_again = partial(
            VAE, **given, on_nan=on_nan, max_memory=max_memory, workspace=place, identity=identity
        )
        warn_of_unverified(bundle)

    @property
    def path(self) -> Path:
        """The bundle's folder, as it was passed in; of an address, the copy in the cache."""
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
    def precision(self) -> Precision:
        """What ``backend`` computes in."""
        return self._dispatch.precision

    @property
    def on_gpu(self) -> bool:
        """Whether ``backend`` computes on a CUDA device, and so takes arrays in its memory."""
        return self._dispatch.on_gpu

    @property
    def device(self) -> int:
        """The number of the CUDA device that backends on a GPU use."""
        return self._device

    @property
    def threads(self) -> int:
        """How many CPU threads one call uses."""
        return self._threads or usable_cores()

    @property
    def limits(self) -> Limits:
        """The channels, heights and widths that ``encode`` and ``decode`` accept, for a check before a call."""
        return Limits(self.latent.channels, self.latent.factor, self.latent.sizes, self.latent.image_channels)

    @property
    def ready(self) -> bool:
        """Whether both halves are loaded and no ``warm_up`` is in progress. False after ``close``."""
        return self._dispatch.ready

    @property
    def reruns(self) -> int:
        """How many items gave NaN or infinity in half precision and were rerun in float32 since the VAE was opened."""
        return self._dispatch.reruns

    def warm_up(self, sizes: Iterable[tuple[int, int]], *, batch: int = 1) -> None:
        """Load both halves and run each once at every size, so that later calls of these sizes take their usual time.

        sizes: (height, width) of images in pixels, such as [(512, 512), (768, 1024)]. batch: items in each call.

        Raises SizeError, before anything runs, for a size that this VAE does not take, InputError without a size, and
        BackendError.
        """
        with self._dispatch.warming():
            on_host.warm_up(self._dispatch, self._bundle, sizes, batch)

    def plan(self, height: int, width: int, batch: int = 1) -> dict[Part, MemoryPlan]:
        """What encoding and decoding images of (height, width) pixels take on the CPU, see ``MemoryPlan``.

        Raises SizeError for sizes that the VAE does not take, InputError for a batch below 1, and BackendError where
        graphs do not run on the CPU here, or the bundle cannot be computed by rows.
        """
        try:
            height, width = operator.index(height), operator.index(width)
        except TypeError as error:
            raise SizeError(f"size is {height!r}x{width!r}; it must be two whole numbers of pixels") from error
        self.latent.sizes.check(height, width)
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise InputError(f"batch is {batch!r}; it must be 1 or more")
        return self._dispatch.plan(batch, height // self.latent.factor, width // self.latent.factor)

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
