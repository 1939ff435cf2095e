"""For tests of programs that use vaedeploy: does a bundle compute what a VAE computes?

    >>> from vaedeploy.testing import assert_parity
    >>> assert_parity("mse840k", pipe.vae, ["photo.png"])

``tiny`` has small seeded VAEs, which export in seconds, and ``inflation`` makes a VAE overflow half precision; both
need PyTorch. ``plugin`` is what pytest loads: the option ``--vae-bundle`` and the fixture ``vae``. It imports this
package, which therefore imports nothing until a name is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vaedeploy.testing.parity import assert_parity

__all__ = ["assert_parity"]


def __getattr__(name: str) -> object:
    if name != "assert_parity":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vaedeploy.testing.parity import assert_parity

    return assert_parity
