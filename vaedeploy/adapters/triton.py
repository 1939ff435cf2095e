"""A half of a bundle as a model of Triton's Python backend.

``model.py`` in a repository that ``vaedeploy triton`` wrote loads ``Half``. ``pb`` is the module
``triton_python_backend_utils``, which exists only in the processes that Triton starts for such models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaedeploy.errors import ImageError, LatentError, MemoryLimitError, SizeError, VaedeployError
from vaedeploy.runtime import VAE
from vaedeploy.runtime.onnxruntime_cpu import NAME as ON_CPU
from vaedeploy.values.kinds import Part
from vaedeploy.values.served import FINITE

Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Asked:
    """What one request asks for. array: its images or latents, batch included. outputs: their names."""

    array: NDArray[Any]
    outputs: Sequence[str]


class Half:
    """A half of the bundle that the model's configuration names, open until ``close``.

    arguments: what Triton gives to ``initialize``. Raises ``pb.TritonModelException`` where the bundle cannot be opened
    or run, and where this Triton does not work with this numpy.
    """

    def __init__(self, pb: Any, arguments: Mapping[str, str]) -> None:
        self._pb = pb
        refuse_garbling(pb)
        parameters = {
            name: given["string_value"] for name, given in json.loads(arguments["model_config"])["parameters"].items()
        }
        self._part: Part = "encoder" if parameters["part"] == "encoder" else "decoder"
        # The model's own folder: Triton copies models from object stores, and they may be moved.
        place = Path(arguments["model_repository"]) / arguments["model_version"] / parameters["bundle"]
        on_gpu = arguments["model_instance_kind"] == "GPU"
        device = int(arguments["model_instance_device_id"]) if on_gpu else 0
        try:
            self._vae = VAE(
                place, None if on_gpu else ON_CPU, device=device, identity=parameters.get("identity") or None
            )
            try:
                self._load()
            except BaseException:
                self._vae.close()
                raise
        except VaedeployError as error:
            raise pb.TritonModelException(str(error)) from error
        pb.Logger.log_info(f"{arguments['model_name']} is bundle {place}, on {self._vae.backend}")

    def _load(self) -> None:
        """Run the smallest item, so that the model is ready once its graph is loaded."""
        interface, factor = self._vae.manifest.interface(self._part), self._vae.latent.factor
        takes = interface.takes(1, factor, factor)
        self._vae.compute(self._part, np.zeros(takes.shape, takes.dtype), interface.outputs[:1])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """The response to each request. Requests of one shape are computed in one call."""
        answers: list[Outputs | VaedeployError | None] = [None] * len(requests)
        asked = {}
        for index, request in enumerate(requests):
            try:
                asked[index] = Asked(self._array(request), request.requested_output_names())
            except ImageError as error:
                answers[index] = error
        for index, answer in zip(asked, compute_together(self._vae, self._part, list(asked.values())), strict=True):
            answers[index] = answer
        return [self._response(answer) for answer in answers]

    def _array(self, request: Any) -> NDArray[Any]:
        """The array of the one input. Raises ImageError unless there is exactly one."""
        inputs = request.inputs()
        if len(inputs) != 1:
            raise ImageError(
                f"the request has {len(inputs)} inputs; send the images once, as image (B, N, H, W) float32 or as "
                "image_u8 (B, H, W, N) uint8"
            )
        array: NDArray[Any] = inputs[0].as_numpy()
        return array

    def _response(self, answer: Outputs | VaedeployError | None) -> Any:
        pb = self._pb
        if isinstance(answer, ImageError | LatentError | SizeError | MemoryLimitError):
            return pb.InferenceResponse([], pb.TritonError(str(answer), pb.TritonError.INVALID_ARG))
        if isinstance(answer, VaedeployError) or answer is None:
            # Its message has paths of this machine; it is for the log.
            pb.Logger.log_error(f"vaedeploy failed: {answer}")
            text = "the model failed; the server's log says why"
            return pb.InferenceResponse([], pb.TritonError(text, pb.TritonError.INTERNAL))
        # In Triton's configurations, every tensor has an axis beside the batch.
        return pb.InferenceResponse(
            [pb.Tensor(name, array[:, None] if name == FINITE else array) for name, array in answer.items()]
        )

    def close(self) -> None:
        """Release the graphs."""
        self._vae.close()


def refuse_garbling(pb: Any) -> None:
    """Raise ``pb.TritonModelException`` where Triton reads the arrays of this numpy wrongly.

    With numpy 2 the Python backend up to Triton 2.51 (24.10) silently gives arrays of the right shape with wrong
    contents, and does not send the contents that it is given. This is so for arrays taken by DLPack, too.
    """
    if int(np.__version__.partition(".")[0]) < 2:  # it has always read numpy 1 correctly, and crashes at DLPack from it
        return
    values = np.arange(1, 7, dtype=np.float32)
    if not np.array_equal(pb.Tensor.from_dlpack("values", values).as_numpy(), values):
        raise pb.TritonModelException(
            f"numpy is {np.__version__}, with which the Python backend of this Triton reads wrong numbers: up to "
            'Triton 2.51 (24.10) it needs numpy 1. In the Python of this model run pip install "numpy>=1.26,<2", '
            "or take a newer Triton"
        )


def compute_together(vae: VAE, part: Part, asked: Sequence[Asked]) -> list[Outputs | VaedeployError]:
    """The answer to each request: the outputs that it asks for, or why there are none.

    Requests whose arrays have the same shape and type, apart from the batch, are computed in one call. If that fails,
    each is computed alone, so that one request's fault is not the others' error.
    """
    groups: dict[object, list[int]] = {}
    for index, one in enumerate(asked):
        groups.setdefault((one.array.shape[1:], one.array.dtype), []).append(index)
    answers: dict[int, Outputs | VaedeployError] = {}
    for members in groups.values():
        answers.update(zip(members, _compute(vae, part, [asked[index] for index in members]), strict=True))
    return [answers[index] for index in range(len(asked))]


def _compute(vae: VAE, part: Part, group: Sequence[Asked]) -> list[Outputs | VaedeployError]:
    wanted = {name for one in group for name in one.outputs}
    names = [name for name in vae.manifest.interface(part).outputs if name in wanted]
    arrays = [one.array for one in group]
    try:
        computed = vae.compute(part, np.concatenate(arrays) if len(arrays) > 1 else arrays[0], names)
    except VaedeployError as error:
        return [error] if len(group) == 1 else [_compute(vae, part, [one])[0] for one in group]
    ends = np.cumsum([len(array) for array in arrays])
    return [
        {name: computed[name][end - len(one.array) : end] for name in names if name in one.outputs}
        for one, end in zip(group, ends, strict=True)
    ]
