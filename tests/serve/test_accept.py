"""Which type of file a client gets."""

from __future__ import annotations

import pytest

from vaedeploy.serve.accept import choose
from vaedeploy.serve.refusals import RequestError

KINDS = ("image/png", "image/jpeg", "image/webp")
FIREFOX = "image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5"
JAVA = "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, "image/png"),
        ("", "image/png"),
        ("*/*", "image/png"),
        ("image/*", "image/png"),
        ("image/webp", "image/webp"),
        ("image/avif,image/webp;q=0.9", "image/webp"),
        ("IMAGE/JPEG ; q=1.0", "image/jpeg"),
        ("image/png;q=0.1, image/webp;q=0.2, image/jpeg;q=0.3", "image/jpeg"),
        ("image/png;q=0, */*", "image/jpeg"),
        ("*/*;q=0.1, image/webp;q=x", "image/png"),
        (FIREFOX, "image/png"),
        (JAVA, "image/jpeg"),
        ("text/html, *;q=.2", "image/png"),
    ],
)
def test_the_type_that_is_liked_most(accept, kind):
    assert choose(accept, KINDS) == kind


@pytest.mark.parametrize("accept", ["text/html", "image/png;q=0", "image/gif, text/*", ";;,", "image/png;q=nan"])
def test_types_that_are_not_given(accept):
    with pytest.raises(RequestError, match="this answer can be image/png, image/jpeg, image/webp") as error:
        choose(accept, KINDS)
    assert error.value.status == 406
