"""Every error that vaedeploy raises on purpose, as one tree.

    VaedeployError                 exit code 1: a stage failed
    ├── InputError                 exit code 2: something that was given is not valid
    │   ├── UnknownPresetError     no preset of that name
    │   ├── WeightsError           a weights file or folder that cannot be used as what it was given for
    │   ├── ContractError          the latent contract is not stated, or is stated in two ways
    │   ├── ImageError             a picture that cannot be read, or an array that is not one
    │   ├── LatentError            an array or a file that is not a latent of this VAE
    │   ├── SizeError              a height or width that the VAE cannot take
    │   ├── OutputError            a place that cannot be written to
    │   │   └── PageError          a page that cannot be written; it holds what the page was to show
    │   ├── BundleError            a bundle that is missing, altered, or of another format
    │   ├── ProfileError           a GPU profile that is missing or contradicts itself
    │   └── EngineError            an engine that does not fit this machine, backend or graph
    ├── DownloadError              the hub could not be reached, or refused
    ├── ExportError                a module could not be traced
    ├── BackendError               a backend is not installed, or failed
    ├── BuildError                 an engine could not be built
    └── VerificationError          exit code 3: outputs differ by more than the limits allow

A message says what was given, what is valid, and what to run next.
"""

from __future__ import annotations

from typing import Any, ClassVar


class VaedeployError(Exception):
    """Root of the tree. ``exit_code`` is what the CLI exits with."""

    exit_code: ClassVar[int] = 1


class InputError(VaedeployError):
    """Something that was given is not valid."""

    exit_code: ClassVar[int] = 2


class UnknownPresetError(InputError):
    """No preset of that name."""


class WeightsError(InputError):
    """A weights file or folder that cannot be used as what it was given for."""


class ContractError(InputError):
    """The latent contract is not stated, or is stated in two ways."""


class ImageError(InputError):
    """A picture that cannot be read, or an array that is not a picture."""


class LatentError(InputError):
    """An array or a file that is not a latent of this VAE."""


class SizeError(InputError):
    """A height or width that the VAE cannot take."""


class OutputError(InputError):
    """A place that cannot be written to."""


class PageError(OutputError):
    """A page that cannot be written. ``result`` is what it was to show: the work that led to it is not lost."""

    def __init__(self, message: str, result: object = None) -> None:
        super().__init__(message)
        self.result = result


class BundleError(InputError):
    """A bundle that is missing, altered, or of another format."""


class ProfileError(InputError):
    """A GPU profile that is missing or contradicts itself."""


class EngineError(InputError):
    """An engine that does not fit this machine, backend or graph."""


class DownloadError(VaedeployError):
    """The hub could not be reached, or refused."""


class ExportError(VaedeployError):
    """A module could not be traced to ONNX."""


class BackendError(VaedeployError):
    """A backend is not installed, or failed."""


class BuildError(VaedeployError):
    """An engine could not be built."""


class VerificationError(VaedeployError):
    """Outputs differ by more than the limits allow; ``report`` says where and by how much."""

    exit_code: ClassVar[int] = 3

    def __init__(self, message: str, report: Any) -> None:
        super().__init__(message)
        self.report = report
