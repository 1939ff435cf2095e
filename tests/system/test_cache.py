"""Where the cache is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vaedeploy.system.cache import cache_folder, cache_place


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have caches elsewhere")
def test_the_cache_is_where_xdg_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_place("bundles") == tmp_path / "home" / ".cache" / "vaedeploy" / "bundles"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_place("bundles") == tmp_path / "cache" / "vaedeploy" / "bundles"
    assert list(tmp_path.iterdir()) == []
    assert cache_folder("rtx").is_dir()
