"""Builds, profiles and engines on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from builds import corrupt
from bundle_folders import edit
from command_line import Ended
from engine_files import DECODER, ENCODER
from tiny_bundle import tiny_bundle

from vaedeploy.bundle import Bundle

# ---------------------------------------------------------------------------------------------------- command line


def test_build_on_the_command_line(vaedeploy: Callable[..., Ended], built: Bundle, profile_folder: Path) -> None:
    ended = vaedeploy("build", built.path, "--profile", "mine", "--profiles", profile_folder)
    assert (ended.code, ended.err.splitlines()) == (0, [f"{ENCODER} is up to date", f"{DECODER} is up to date"])
    header, *rows = ended.out.splitlines()
    assert header.split() == ["profile", "part", "backend", "capability", "precision", "size", "memory", "state"]
    assert [row.split()[:2] for row in rows] == [["mine", "decoder"], ["mine", "encoder"]]
    assert all(row.endswith("unverified") for row in rows)


def test_a_failed_build_on_the_command_line(
    vaedeploy: Callable[..., Ended], tmp_path: Path, profile_folder: Path
) -> None:
    bundle = corrupt(tiny_bundle(tmp_path / "tiny"), "Bernoulli")
    ended = vaedeploy("build", bundle.path, "--profile", "mine", "--profiles", profile_folder)
    assert (ended.code, ended.out) == (1, "")
    assert "Error: 1 of 2 engines could not be built" in ended.err


def test_inspect_shows_engines_and_what_speaks_against_them(vaedeploy: Callable[..., Ended], built: Bundle) -> None:
    assert "tensors: " not in vaedeploy("inspect", built.path).out
    shown = vaedeploy("inspect", built.path, "--check", "--layers").out
    assert f"{DECODER}  " in shown
    assert "unverified (it has not been run on its GPU)" in shown
    assert "tensors: latent float32 (-1, 2, -1, -1), " in shown
    assert "STALE" not in shown
    edit(built, lambda told: told["engines"][DECODER]["identity"].update(backend_version="1.0"))
    shown = vaedeploy("inspect", built.path).out
    assert "STALE: it was built by tensorrt-rtx 1.0, and 1." in shown
    assert f"Build it again: vaedeploy build {built.path} --profile mine --backend tensorrt-rtx" in shown
    document = json.loads(vaedeploy("inspect", built.path, "--json").out)
    assert document["engines"][ENCODER]["part"] == "encoder"
    assert document["engine_states"][ENCODER] == {"state": "unverified", "problems": []}
    told = document["engine_states"][DECODER]["problems"]
    assert told[0].startswith("STALE: it was built by tensorrt-rtx 1.0, and 1.")
    assert document["problems"] == [f"{DECODER}: {problem}" for problem in told]


def test_profiles_on_the_command_line(
    vaedeploy: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = vaedeploy("profiles").out
    assert "rtx5090" in shown
    assert shown.splitlines()[-2].startswith("rtx4060: 1x512x512, 1x768x768, ")
    assert shown.splitlines()[-1].startswith("all others: 1x512x512, 1x768x768, ")
    assert {p["name"] for p in json.loads(vaedeploy("profiles", "--json").out)} >= {"t4", "gb10"}
    ended = vaedeploy("profiles", "--init", "own", "--profiles", tmp_path)
    assert (ended.code, ended.out) == (0, f"{tmp_path / 'own.toml'}\n")
    shown = vaedeploy("profiles", "--profiles", tmp_path).out
    assert "own " in shown
    assert [line.split(": ")[0] for line in shown.splitlines()[-3:]] == ["rtx4060", "own", "all others"]
    assert vaedeploy("profiles", "--init", "own", "--profiles", tmp_path).code == 2
