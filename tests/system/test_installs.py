"""The commands that messages print to install something, in environments of several kinds.

That they install what they say is in tests/test_package.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

PRINT = """
from vaedeploy.system.installs import install_command, requirement, upgrade_command
print(install_command("cpu"), upgrade_command(), requirement("cpu"), sep="\\n")
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with nothing in it, as uv makes them."""
    env = tmp_path_factory.mktemp("plain") / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(env)], check=True)
    return env / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def installed(folder: Path, installer: str = "pip", origin: object = None) -> Path:
    """A folder of packages in which vaedeploy is installed, as far as Python's metadata say."""
    info = folder / "vaedeploy-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: vaedeploy\nVersion: 0.1.0\n")
    (info / "INSTALLER").write_text(f"{installer}\n")
    if origin is not None:
        (info / "direct_url.json").write_text(json.dumps(origin))
    return folder


def commands(python: Path, *packages: Path, path: str = os.defpath) -> list[str]:
    """What installs the extra [cpu], what upgrades, and what pip is given in another environment."""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*packages, ROOT))), "PATH": path}
    done = subprocess.run([str(python), "-c", PRINT], capture_output=True, text=True, check=True, env=variables)
    return done.stdout.splitlines()


def test_a_checkout_that_is_not_installed(python: Path) -> None:
    assert commands(python) == [
        f'pip --python {python} install --editable "{ROOT}[cpu]"',
        f"update the checkout {ROOT} (git pull)",
        f"{ROOT}[cpu]",
    ]


@pytest.mark.parametrize(
    ("installer", "install"), [("pip", "pip --python {} install"), ("uv", "uv pip install --python {}")]
)
def test_a_release_where_there_is_no_pip(python: Path, tmp_path: Path, installer: str, install: str) -> None:
    install = install.format(python)
    assert commands(python, installed(tmp_path, installer)) == [
        f'{install} "vaedeploy[cpu]"',
        f"{install} --upgrade vaedeploy",
        "vaedeploy[cpu]",
    ]


def test_pip_by_its_name_alone_where_it_is_the_first_on_the_path(python: Path, tmp_path: Path) -> None:
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").touch()
    program = python.parent / ("pip.exe" if sys.platform == "win32" else "pip")
    program.touch(0o755)
    packages = installed(tmp_path)
    try:
        first, second = (commands(python, packages, path=str(place)) for place in (python.parent, tmp_path))
    finally:
        program.unlink()
    assert first[:2] == ['pip install "vaedeploy[cpu]"', "pip install --upgrade vaedeploy"]
    assert second[:2] == [f'{python} -m pip install "vaedeploy[cpu]"', f"{python} -m pip install --upgrade vaedeploy"]


@pytest.mark.parametrize(
    ("origin", "upgrade", "elsewhere"),
    [
        (
            {"url": "file:///with%20space/it", "dir_info": {"editable": True}},
            'update the checkout /with space/it (git pull), then {} --editable "/with space/it"',
            "/with space/it[cpu]",
        ),
        ({"url": "file:///it", "dir_info": {}}, 'update the checkout /it (git pull), then {} "/it"', "/it[cpu]"),
        (
            {"url": "https://example.org/it", "vcs_info": {"vcs": "git", "commit_id": "0" * 40}},
            '{} --upgrade "vaedeploy @ git+https://example.org/it"',
            "vaedeploy[cpu] @ git+https://example.org/it",
        ),
        ({"url": "file:///it-0.1.0.whl", "archive_info": {}}, "{} --upgrade vaedeploy", "vaedeploy[cpu]"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="paths of other systems")
def test_an_upgrade_comes_from_where_it_was_installed_from(
    python: Path, tmp_path: Path, origin: object, upgrade: str, elsewhere: str
) -> None:
    install = f"pip --python {python} install"
    assert commands(python, installed(tmp_path, origin=origin)) == [
        f'{install} "vaedeploy[cpu]"',
        upgrade.format(install),
        elsewhere,
    ]
