"""Every file format on disk: the bundle, its manifest, and the files in it.

May import ``values``, ``system`` and ``errors``; what computes the content of a file is in the stage that does so.
"""

from __future__ import annotations

from vaedeploy.bundle.bundle import PREVIOUS, Bundle, BundleEdit, as_bundle, check_bundle, edit_bundle, naming_bundle
from vaedeploy.bundle.create import create_bundle
from vaedeploy.bundle.manifest import Manifest

__all__ = [
    "PREVIOUS",
    "Bundle",
    "BundleEdit",
    "Manifest",
    "as_bundle",
    "check_bundle",
    "create_bundle",
    "edit_bundle",
    "naming_bundle",
]
