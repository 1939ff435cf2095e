"""The warning of a bundle whose outputs were not compared with PyTorch's."""

from __future__ import annotations

import warnings

from vaedeploy.bundle import Bundle
from vaedeploy.bundle.address import is_cached
from vaedeploy.bundle.manifest import Verification
from vaedeploy.runtime.verdicts import Verdict


class UnverifiedBundleWarning(UserWarning):
    """The outputs of the bundle were never compared with PyTorch's, or differed from them by more than allowed."""


def doubt(verdict: Verification | Verdict | None, where: str) -> str:
    """What is doubtful about something that runs on ``where``, as words that follow its name.

    verdict: the one there, which it did not pass; None where it has none.
    """
    state = f"was never compared with PyTorch on {where}" if verdict is None else f"failed its verification on {where}"
    return f"{state}; its images may be wrong"


def unverified_text(bundle: Bundle) -> str | None:
    """A sentence that says that ``bundle`` is not verified, and what to run; None where it is."""
    if bundle.verified:
        return None
    state = "was never verified" if bundle.manifest.verification is None else "failed its verification"
    remedy = f"Run: vaedeploy verify {bundle.path}"
    if is_cached(bundle.path):  # where no verdict can be noted
        remedy = "Pull it into a folder of your own (vaedeploy pull OWNER/NAME -o FOLDER) and verify it there"
    return f"bundle {bundle.path} {state}; its images may be wrong. {remedy}"


def warn_of_unverified(bundle: Bundle) -> None:
    """Issue UnverifiedBundleWarning, for the caller's caller, if ``bundle`` is not verified."""
    if text := unverified_text(bundle):
        warnings.warn(text, UnverifiedBundleWarning, stacklevel=3)
