"""Two pictures -> Quality: every metric of the one against the other."""

from __future__ import annotations

import msgspec

from vaedeploy.quality.artifacts import Artifacts
from vaedeploy.quality.color import Color
from vaedeploy.quality.contrast import Contrast
from vaedeploy.quality.detail import Detail
from vaedeploy.quality.error import Error


class Quality(msgspec.Struct, frozen=True):
    """How one picture, the candidate, looks beside another, the reference. ``verdicts.find_faults`` judges it."""

    error: Error
    color: Color
    contrast: Contrast
    detail: Detail
    artifacts: Artifacts
