"""Completion: what a shell is offered, and the scripts in a real shell."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import which

import pytest
from click.shell_completion import ShellComplete
from command_line import Ended

from vaedeploy.cli import cli
from vaedeploy.engines.profile import profiles
from vaedeploy.runtime.backends import BACKENDS
from vaedeploy.source import presets


def offered(*words: str) -> list[tuple[str, str]]:
    """What completes the last of ``words``: value and type."""
    *before, last = words
    items = ShellComplete(cli, {}, "vaedeploy", "_VAEDEPLOY_COMPLETE").get_completions(before, last)
    return [(item.value, item.type) for item in items]


def values(*words: str) -> list[str]:
    assert {kind for _, kind in offered(*words)} <= {"plain"}
    return [value for value, _ in offered(*words)]


def test_presets() -> None:
    expected = [name for name in presets() if name.startswith("sd")]
    assert len(expected) > 2
    assert values("export", "sd") == values("export", "--vae", "sd") == values("swap", "bundle", "sd") == expected
    assert offered("export", "./weig") == [("./weig", "file")]


def test_profiles() -> None:
    expected = sorted(name for name in profiles() if name.startswith("rtx5"))
    assert values("build", "b", "--profile", "rtx5") == values("verify", "b", "--profile", "rtx5") == expected
    assert values("export", "demo", "--profile", "t4,rtx5") == [f"t4,{name}" for name in expected]


def test_backends() -> None:
    assert values("decode", "b", "--backend", "") == list(BACKENDS)
    assert values("compare", "--backend", "open") == ["openvino"]
    assert values("help", "doc") == ["doctor"]


def test_bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "many/one", "many/[two]"):
        Path(name).mkdir(parents=True)
        Path(name, "bundle.json").touch()
    Path("more").mkdir()
    assert values("inspect", "m") == ["mine"]
    assert values("verify", "") == ["mine"]
    assert values("compare", "mine", "many/") == ["many/[two]", "many/one"]
    assert values("inspect", "many/[t") == ["many/[two]"]
    assert values("inspect", f"{tmp_path}/mi") == [f"{tmp_path}/mine"]
    assert offered("inspect", "mor") == [("mor", "dir")]


COMPLETE = """
source {script}
COMP_WORDS=(vaedeploy {words}) COMP_CWORD={count}
_vaedeploy_completion vaedeploy
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.skipif(which("bash") is None, reason="bash is not installed")
def test_bash_completes(vaedeploy: Callable[..., Ended], tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(vaedeploy("completion", "bash").out)
    (tmp_path / "vaedeploy").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vaedeploy "$@"\n')
    (tmp_path / "vaedeploy").chmod(0o755)
    program = COMPLETE.format(script=script, words="export --precision b", count=3)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, env=os.environ | {"PATH": path})
    assert (done.stdout, done.stderr) == ("bf16\n", "")


@pytest.mark.skipif(which("bash") is None, reason="click asks bash for its version")
def test_it_is_installed_once(vaedeploy: Callable[..., Ended], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/usr/bin/bash")
    (home / ".bashrc").write_text("alias ll='ls -l'")
    script = home / ".local" / "share" / "vaedeploy" / "completion.bash"
    ended = vaedeploy("completion", "--install")
    assert (ended.code, ended.out.splitlines()) == (0, [str(script), str(home / ".bashrc")])
    assert script.read_text() == vaedeploy("completion").out
    assert vaedeploy("completion", "--install").out.splitlines() == [str(script)]
    assert (home / ".bashrc").read_text() == f"alias ll='ls -l'\nsource {script}\n"


def test_zsh_and_fish(vaedeploy: Callable[..., Ended], home: Path) -> None:
    ended = vaedeploy("completion", "zsh", "--install")
    script = home / ".local" / "share" / "vaedeploy" / "completion.zsh"
    assert ended.out.splitlines() == [str(script), str(home / ".zshrc")]
    assert script.read_text().startswith("#compdef vaedeploy\n(( $+functions[compdef] )) || ")
    ended = vaedeploy("completion", "fish", "--install")
    assert ended.out.splitlines() == [str(home / ".config" / "fish" / "completions" / "vaedeploy.fish")]


def test_another_shell(vaedeploy: Callable[..., Ended], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/sh")
    ended = vaedeploy("completion")
    assert (ended.code, ended.out) == (2, "")
    assert "Name one of bash, zsh, fish: vaedeploy completion bash" in ended.err


def test_a_home_that_cannot_be_written(vaedeploy: Callable[..., Ended], home: Path) -> None:
    (home / ".config").write_text("")
    ended = vaedeploy("completion", "fish", "--install")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("Error: cannot install completion: ")
