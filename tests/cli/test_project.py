"""``vaedeploy export --all``: the bundles that vaedeploy.toml lists."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Ended

from vaedeploy.bundle import Bundle
from vaedeploy.cli import cli
from vaedeploy.cli.project import read_project

Command = Callable[..., Ended]

GOOD = """
[bundle.first]
vae = "sdxl"
precision = "fp16"
scale = [0.5, 0.25]
shift = 1
profile = ["rtx4090", "sm86"]
keep-fp32 = "node"
private = true
no-verify = false

[bundle.second]
vae = "weights/folder"
weights = "weights/own.ckpt"
out = "bundles/second"
name = "mine"
photos = "photos"
"""


def read(file: Path, *typed: str) -> dict[str, dict[str, Any]]:
    """What ``export --all`` is given for each bundle."""
    with cli.make_context("vaedeploy", ["export"]) as parent:
        ctx = cli.commands["export"].make_context("export", ["--all", *typed], parent)
        return {name: context.params for name, context in read_project(file, ctx).items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "project" / "weights" / "folder").mkdir(parents=True)
    (tmp_path / "project" / "weights" / "own.ckpt").touch()
    return tmp_path / "project"


def write(folder: Path, text: str) -> Path:
    file = folder / "vaedeploy.toml"
    file.write_text(text)
    return file


def test_every_bundle_with_its_options(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(folder, GOOD)
    monkeypatch.setenv("VAEDEPLOY_EXPORT_ALL", "1")  # of the call
    first, second = read(file).values()
    assert (first["vae_option"], first["out"], first["precision"]) == ("sdxl", folder / "first", "fp16")
    assert (first["scale"], first["shift"], first["keep_fp32"]) == ((0.5, 0.25), 1.0, ("node",))
    assert (first["profiles"], first["private"], first["no_verify"]) == (("rtx4090", "sm86"), True, False)
    assert (second["vae_option"], second["weights"]) == (
        str(folder / "weights/folder"),
        str(folder / "weights/own.ckpt"),
    )
    assert (second["out"], second["photos"], second["name"]) == (folder / "bundles/second", folder / "photos", "mine")
    assert not first["force"] | first["every"]
    assert [bundle["force"] for bundle in read(file, "--force").values()] == [True, True]
    monkeypatch.chdir(folder)
    assert [bundle["out"] for bundle in read(Path("vaedeploy.toml")).values()] == [
        Path("first"),
        Path("bundles/second"),
    ]


def test_a_preset_wins_over_a_folder_of_its_name(folder: Path) -> None:
    """Such as the bundle that the first export made."""
    (folder / "demo").mkdir()
    (bundle,) = read(write(folder, "[bundle.demo]\nvae = 'demo'"), "--force").values()
    assert (bundle["vae_option"], bundle["out"]) == ("demo", folder / "demo")


def test_weights_that_are_missing_are_not_looked_for_elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "weights")
    (bundle,) = read(write(folder, "[bundle.mine]\nvae = 'demo'\nweights = 'own.ckpt'")).values()
    assert bundle["weights"] == str(folder / "own.ckpt")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_failure_does_not_stop_the_others(vaedeploy: Command, folder: Path, small_vae: Path) -> None:
    file = write(folder, f"[bundle.bad]\nvae = 'none.ckpt'\n[bundle.good]\nvae = '{small_vae}'\nno-verify = true\n")
    ended = vaedeploy("export", "--all", "--config", file)
    assert (ended.code, ended.out) == (2, f"{folder / 'good'}\n")
    assert ended.err.startswith(f"1 of 2: bad\nError: bad: there is no file or folder {folder / 'none.ckpt'}. ")
    assert "\n2 of 2: good\n" in ended.err
    assert Bundle.open(folder / "good").manifest.vae.name == "small"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[bundle.a]\nvae = demo\n", " is not a TOML file: Invalid value (at line 2, column 7)"),
        ("", " lists no bundles; write each as [bundle.NAME], with options of export below it"),
        ("bundle = 1", " lists no bundles; write each as [bundle.NAME]"),
        ("[bundles.a]\nvae = 'demo'", " has bundles; it may have only tables [bundle.NAME]"),
        ("bundle.a = 1", ", [bundle.a] is not a table; write its options below it"),
        ("[bundle.a]\nprecision = 'fp16'", ", [bundle.a] has no vae; name a preset, a hub repository, a folder or"),
        (
            "[bundle.a]\nvae = 'demo'\nprecison = 'fp16'",
            ", [bundle.a] has precison, which is not an option of export; did you mean precision?",
        ),
        ("[bundle.a]\nvae = 'demo'\nforce = true", ", [bundle.a] has force, which is not an option of export; "),
        (
            "[bundle.a]\nvae = 'demo'\nprofiles_ = 1",
            ", [bundle.a] has profiles_, which is not an option of export; did you",
        ),
        (
            "[bundle.a]\nvae = 'demo'\nprecision = 'int8'",
            ", [bundle.a]: Invalid value for '--precision': 'int8' is not one of",
        ),
        ("[bundle.a]\nvae = 'demo'\nprivate = 1", ", [bundle.a]: private is 1; it must be true or false"),
        ("[bundle.a]\nvae = 'demo'\nscale = true", ", [bundle.a]: scale is True; it must be text, a number, or a list"),
        ("[bundle.a]\nvae = {x = 1}", ", [bundle.a]: vae is {'x': 1}; it must be text, a number, or a list"),
        (
            "[bundle.a]\nvae = 'demo'\n[bundle.b]\nvae = 'demo'\nout = 'a'",
            ": [bundle.a] and [bundle.b] have the same out, ",
        ),
    ],
)
def test_what_is_wrong_is_told_before_the_work(vaedeploy: Command, folder: Path, text: str, told: str) -> None:
    file = write(folder, text)
    ended = vaedeploy("export", "--all", "--config", file)
    assert (ended.code, ended.out) == (2, "")
    assert f"Error: {file}{told}" in ended.err


def test_no_file(vaedeploy: Command, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    ended = vaedeploy("export", "--all")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("Error: vaedeploy.toml cannot be read: ")
    os.mkfifo("pipe")
    assert "pipe cannot be read: it is not a regular file" in vaedeploy("export", "--all", "--config", "pipe").err


@pytest.mark.parametrize(
    ("arguments", "option"),
    [(["demo"], "'[VAE]'"), (["--precision", "fp16"], "'--precision'"), (["--json"], "'--json'")],
)
def test_options_of_one_bundle_are_not_for_all(
    vaedeploy: Command, folder: Path, arguments: list[str], option: str
) -> None:
    ended = vaedeploy("export", "--all", "--config", write(folder, GOOD), *arguments)
    assert ended.code == 2
    assert f"Error: {option} cannot be used with --all: " in ended.err
