"""How what a backend needs is installed and imported."""

from __future__ import annotations

ENGINE_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""The module of each backend that has engines; both have one interface."""

ENGINE_EXTRAS = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}
"""The extra that installs it."""


def install_command(extra: str) -> str:
    """What to run to get an extra."""
    return f'pip install "vaedeploy[{extra}]"'
