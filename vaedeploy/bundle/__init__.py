"""Bundles on disk: the folder, its manifest, and the format of every file in it.

May import ``values``, ``system`` and ``errors``. The content of a file is computed by the stage that it belongs to, not
here.
"""

from __future__ import annotations

from vaedeploy.bundle.bundle import PREVIOUS, Bundle, GraphContent, as_bundle, file_info
from vaedeploy.bundle.create import create_bundle
from vaedeploy.bundle.edit import BundleEdit, edit_bundle, naming_bundle
from vaedeploy.bundle.manifest import Manifest
from vaedeploy.bundle.opening import check_bundle
from vaedeploy.bundle.pull import bundle_folder

__all__ = [
    "PREVIOUS",
    "Bundle",
    "BundleEdit",
    "GraphContent",
    "Manifest",
    "as_bundle",
    "bundle_folder",
    "check_bundle",
    "create_bundle",
    "edit_bundle",
    "file_info",
    "naming_bundle",
]
