"""Every error that vaedeploy raises on purpose, as one tree.

    VaedeployError                 exit code 1: a stage failed
    ├── InputError                 exit code 2: an argument, a file or an array is not valid
    │   ├── UnknownPresetError     there is no preset of that name
    │   ├── WeightsError           a weights file or folder cannot be loaded into the architecture it was given for
    │   ├── ContractError          the latent contract is not stated, not valid, or stated in two ways
    │   ├── ImageError             an image file cannot be read, or an array is not an image
    │   ├── LatentError            a file or an array is not a latent of this VAE
    │   ├── SizeError              the VAE cannot take an image of that height or width
    │   ├── MemoryLimitError       an image or a latent takes more memory than ``max_memory`` allows
    │   ├── OutputError            a file or folder cannot be written
    │   │   └── PageError          a page cannot be written; the error holds the result that it would have shown
    │   ├── BundleError            a bundle is missing, altered, or of another format version
    │   ├── ProfileError           a GPU profile is missing or contradicts itself
    │   └── EngineError            an engine does not fit this machine, backend or graph
    ├── DownloadError              the hub could not be reached, or refused the request
    ├── ExportError                a module could not be traced to ONNX
    ├── BackendError               a backend is not installed, or failed
    ├── BuildError                 an engine could not be built
    └── VerificationError          exit code 3: outputs differ by more than the limits allow

Every message says what was given, what is valid, and what to run next.
"""

from __future__ import annotations

from typing import Any, ClassVar


class VaedeployError(Exception):
    """Base class of all errors here. exit_code: the exit code of the command line for this error."""

    exit_code: ClassVar[int] = 1


class InputError(VaedeployError):
    """An argument, a file or an array is not valid."""

    exit_code: ClassVar[int] = 2


class UnknownPresetError(InputError):
    """There is no preset of that name."""


class WeightsError(InputError):
    """A weights file or folder cannot be loaded into the architecture that it was given for."""


class ContractError(InputError):
    """The latent contract is not stated, not valid, or stated in two ways."""


class ImageError(InputError):
    """An image file cannot be read, or an array is not an image."""


class LatentError(InputError):
    """A file or an array is not a latent of this VAE."""


class SizeError(InputError):
    """The VAE cannot take an image of that height or width."""


class MemoryLimitError(InputError):
    """An image or a latent takes more memory than ``max_memory`` allows, by rows too."""


class OutputError(InputError):
    """A file or folder cannot be written."""


class PageError(OutputError):
    """A page cannot be written.

    result: what the page would have shown, so that the work that led to it is not lost.
    """

    def __init__(self, message: str, result: object = None) -> None:
        super().__init__(message)
        self.result = result


class BundleError(InputError):
    """A bundle is missing, altered, or of another format version."""


class ProfileError(InputError):
    """A GPU profile is missing or contradicts itself."""


class EngineError(InputError):
    """An engine does not fit this machine, backend or graph."""


class DownloadError(VaedeployError):
    """The hub could not be reached, or refused the request."""


class ExportError(VaedeployError):
    """A module could not be traced to ONNX."""


class BackendError(VaedeployError):
    """A backend is not installed, or failed."""


class BuildError(VaedeployError):
    """An engine could not be built. bundle: the ``Bundle`` with what could be, where one is there."""

    def __init__(self, message: str, bundle: Any = None) -> None:
        super().__init__(message)
        self.bundle = bundle


class VerificationError(VaedeployError):
    """Outputs differ by more than the limits allow.

    report: the ``Report``, which says where and by how much. bundle: the ``Bundle`` that is marked unverified, where
    one is there.
    """

    exit_code: ClassVar[int] = 3

    def __init__(self, message: str, report: Any, bundle: Any = None) -> None:
        super().__init__(message)
        self.report = report
        self.bundle = bundle
