"""Files read through a handle."""

from __future__ import annotations

import os
from pathlib import Path

from vaedeploy.system.documents import read_document
from vaedeploy.system.files import handle_bytes, open_regular


def test_a_limit_far_beyond_the_end_of_a_file_takes_no_memory(tmp_path: Path) -> None:
    content = bytes(range(256)) * 8192
    (file := tmp_path / "a").write_bytes(content)
    handle = open_regular(file)
    try:
        assert handle_bytes(handle, 2**60) == content
        assert handle_bytes(handle, 2**60, 1000) == content[1000:]
        assert handle_bytes(handle, 2**60, len(content) + 5) == b""
        assert handle_bytes(handle, 10, 1000) == content[1000:1010]
    finally:
        os.close(handle)
    assert read_document(file, 2**60) == content
