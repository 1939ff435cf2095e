"""The identity of a VAE as callers give it: all 64 hexadecimal digits."""

from __future__ import annotations

import re

from vaedeploy.errors import InputError

WHOLE = re.compile("[0-9a-f]{64}")


def check_whole(identity: object, found: str, place: str) -> None:
    """Raise InputError where ``identity`` is given and incomplete: a part of it proves nothing.

    found: the identity in ``place``, such as "bundle demo", for the message.
    """
    if identity is not None and not (isinstance(identity, str) and WHOLE.fullmatch(identity)):
        raise InputError(
            f"identity is {identity!r}; give a whole one, of 64 hexadecimal digits. That of {place} is {found}"
        )
