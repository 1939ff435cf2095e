"""The site of the docs: it builds without a warning, and what it leaves out of the pages is nowhere else either."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from places import ROOT

CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
DOCS = ROOT / "docs"
HOME = CONFIG["repo_url"]


def pages(navigation: object) -> list[str]:
    """The files that a navigation names."""
    if isinstance(navigation, str):
        return [navigation]
    inner = navigation.values() if isinstance(navigation, dict) else navigation
    return [page for entry in inner for page in pages(entry)]  # type: ignore[attr-defined]


def test_every_page_is_in_the_navigation_once() -> None:
    assert sorted(pages(CONFIG["nav"])) == sorted(path.name for path in DOCS.glob("*.md"))


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_links_out_of_the_site_lead_somewhere(path: Path) -> None:
    """Pages are read on the site and in the repository: what is not in docs/ has the address that both can follow."""
    text = path.read_text(encoding="utf-8")
    assert "](../" not in text
    for named in re.findall(rf"{re.escape(HOME)}/(?:blob|tree)/main/([^)#\s]+)", text):
        assert (ROOT / named).exists(), named


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of this folder, from its copy of the configuration."""
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", str(folder / "mkdocs.yml")]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("zensical", reason='the site is built by zensical: pip install "vaedeploy[docs]"')
    pytest.importorskip("mkdocstrings_handlers.python", reason='pip install "vaedeploy[docs]"')
    folder = tmp_path_factory.mktemp("site")
    for name in ("docs", "tools", "vaedeploy"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    shutil.copy(ROOT / "mkdocs.yml", folder)
    return folder


@pytest.mark.slow
def test_the_site_builds_strictly_and_every_docstring_is_on_it(copy: Path) -> None:
    done = build(copy)
    assert done.returncode == 0, done.stdout + done.stderr
    site = copy / CONFIG["site_dir"]
    python = (site / "python" / "index.html").read_text(encoding="utf-8")
    named = re.findall(r"^::: (\S+)$", (DOCS / "python.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(named) > 50
    assert [name for name in named if f'id="{name}"' not in python] == []
    assert 'id="vaedeploy.VAE.encode"' in python  # inherited
    assert "<code>vae</code>: a preset's name" in python  # tools/docstrings.py
    # Nothing is loaded from elsewhere, so that a reader without a network, or with one to protect, sees the same.
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="(https?://[^"]+)', page.read_text()
        )
        assert loaded == [], page


@pytest.mark.slow
def test_a_broken_link_ends_the_build(copy: Path) -> None:
    page = copy / "docs" / "weights.md"
    text = page.read_text(encoding="utf-8")
    page.write_text(text + "\n[away](gone.md)\n", encoding="utf-8")
    done = build(copy)
    page.write_text(text, encoding="utf-8")
    assert done.returncode != 0
    assert "weights.md" in re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
