"""Manifests: what they say, what is refused, and what to run to make the bundle again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bundle_folders import edit
from engine_files import ENCODER, claim_engine
from hypothesis import given
from hypothesis import strategies as st
from places import ROOT
from tiny_bundle import FAILED

from vaedeploy.bundle import Bundle
from vaedeploy.bundle.address import fetch_again
from vaedeploy.bundle.encoding import BLANK, decode_manifest, encode_manifest, path_fault
from vaedeploy.bundle.engines import engine_faults
from vaedeploy.bundle.golden import decode_golden
from vaedeploy.bundle.manifest import EngineIdentity, EngineInfo, FileInfo, Manifest, VaeInfo, Verification
from vaedeploy.errors import BundleError
from vaedeploy.system.installs import upgrade_command
from vaedeploy.values.latent import LatentSpec
from vaedeploy.values.origin import Origin
from vaedeploy.values.shapes import ShapeSet
from vaedeploy.version import __version__

# Manifests


@pytest.mark.parametrize(
    ("version", "advice"),
    [
        (2, f"Upgrade: {upgrade_command()}"),
        (0, "Export it again: vaedeploy export NAME --out {} --force"),
    ],
)
def test_other_format_versions_are_refused(bundle: Bundle, version: int, advice: str) -> None:
    edit(bundle, lambda told: told.update(format=version, news="unheard of"))
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle.path)
    assert str(caught.value) == (
        f"bundle {bundle.path} has format {version}; this vaedeploy knows format 1 only. {advice.format(bundle.path)}"
    )


def cannot_be_used(bundle: Bundle, why: str) -> str:
    return (
        f"bundle {bundle.path}: bundle.json cannot be used: {why}. "
        f"Export it again: vaedeploy export NAME --out {bundle.path} --force. {fetch_again(bundle.path)}"
    )


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda told: told.update(extra=1), "Object contains unknown field `extra`"),
        (lambda told: told["vae"].update(extra=1), "Object contains unknown field `extra` - at `$.vae`"),
        (lambda told: told.pop("latent"), "Object missing required field `latent`"),
        (lambda told: told.pop("format"), "Object missing required field `format`"),
        (lambda told: told.update(precision="int8"), "Invalid enum value 'int8' - at `$.precision`"),
        (lambda told: told["latent"].update(scale=0), "latent scale is 0; dividing by it is impossible"),
        (
            lambda told: told["files"]["encoder.onnx"].update(sha256="abc"),
            "Expected `str` matching regex '^[0-9a-f]{64}$' - at `$.files[...].sha256`",
        ),
        (
            lambda told: told["files"]["encoder.onnx"].update(bytes=-1),
            "Expected `int` >= 0 - at `$.files[...].bytes`",
        ),
    ],
)
def test_manifest_with_wrong_fields_is_refused(
    bundle: Bundle, change: Callable[[dict[str, Any]], object], why: str
) -> None:
    edit(bundle, change)
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle.path)
    assert str(caught.value) == cannot_be_used(bundle, why)


def _as_newer(bundle: Bundle, version: str, sealed: bool) -> None:
    """A manifest with a field that is not known here, as a vaedeploy of this version writes it."""
    told = json.loads((bundle.path / "bundle.json").read_text())
    told = {"format": 1, "vaedeploy": version, "news": 1} | {
        k: v for k, v in told.items() if k not in ("seal", "format", "vaedeploy")
    }
    data = json.dumps(told | ({"seal": BLANK} if sealed else {})).encode()
    if sealed:
        data = data.replace(BLANK.encode(), hashlib.sha256(data).hexdigest().encode())
    (bundle.path / "bundle.json").write_bytes(data)


@pytest.mark.parametrize(
    ("version", "sealed", "writer"),
    [
        ("99.0.0", True, "vaedeploy 99.0.0"),
        ("99.0", False, "vaedeploy 99.0"),
        (f"{__version__}.post1", True, f"a newer vaedeploy {__version__}.post1"),
        (__version__, True, f"a newer vaedeploy {__version__}"),
    ],
)
def test_a_field_of_a_newer_version_asks_for_an_upgrade(
    bundle: Bundle, version: str, sealed: bool, writer: str
) -> None:
    _as_newer(bundle, version, sealed)
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle.path)
    assert str(caught.value) == (
        f"bundle {bundle.path} was written by {writer}, and this is {__version__}, which cannot read it: Object "
        f"contains unknown field `news`. Upgrade: {upgrade_command()}"
    )


@pytest.mark.parametrize(
    ("version", "sealed"), [("0.0.1", True), (__version__, False), ("", True), ("no version", True)]
)
def test_a_field_of_nobody_is_told_as_one(bundle: Bundle, version: str, sealed: bool) -> None:
    _as_newer(bundle, version, sealed)
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle.path)
    assert str(caught.value) == cannot_be_used(bundle, "Object contains unknown field `news`")


def test_a_field_that_was_added_by_hand_is_no_newer_version(bundle: Bundle) -> None:
    _as_newer(bundle, __version__, sealed=True)
    path = bundle.path / "bundle.json"
    path.write_bytes(path.read_bytes().replace(b"news", b"more"))
    with pytest.raises(BundleError, match=r"cannot be used: Object contains unknown field `more`\. Export it again"):
        Bundle.open(bundle.path)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "Input data was truncated"),
        (b"[]", "Expected `object`, got `array`"),
        (b'{"format": 1, "vaed', "Input data was truncated"),
        (b'{"format": 1} x', "JSON is malformed: trailing characters (byte 15)"),
        (b'{"format": "\xff"}', "Expected `int`, got `str` - at `$.format`"),
        (
            b'{"format": 1, "vaedeploy": "\xff"}',
            "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
        ),
    ],
)
def test_manifest_that_is_not_json_is_refused(bundle: Bundle, data: bytes, why: str) -> None:
    (bundle.path / "bundle.json").write_bytes(data)
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle.path)
    assert str(caught.value) == cannot_be_used(bundle, why)


BAD_PATHS = {
    "../encoder.onnx": "leaves the bundle",
    "a/../../encoder.onnx": "leaves the bundle",
    "/etc/passwd": "is absolute",
    "C:/encoder.onnx": "has a backslash or a colon",
    "..\\encoder.onnx": "has a backslash or a colon",
    "encoder.onnx:stream": "has a backslash or a colon",
    "": "is empty or has control characters",
    "a\0b": "is empty or has control characters",
    "./encoder.onnx": "is not in its plain form",
    "a//b": "is not in its plain form",
    "a/": "is not in its plain form",
    "a./b": "is not in its plain form",
    "a ": "is not in its plain form",
    "bundle.json": "is the manifest itself",
    "Bundle.JSON": "is the manifest itself",
}


@pytest.mark.parametrize(("name", "fault"), BAD_PATHS.items())
@pytest.mark.parametrize("field", ["files", "graphs"])
def test_paths_that_are_no_place_in_the_bundle_are_refused(bundle: Bundle, name: str, fault: str, field: str) -> None:
    def change(told: dict[str, Any]) -> None:
        if field == "files":
            told["files"][name] = {"sha256": "0" * 64, "bytes": 1}
        else:
            told["graphs"]["encoder"]["portable"] = name

    edit(bundle, change)
    for verify_hashes in (True, False):
        with pytest.raises(BundleError) as caught:
            Bundle.open(bundle.path, verify_hashes)
        assert str(caught.value) == (
            f"bundle {bundle.path}: bundle.json names the path {name!r}, which {fault}; it is refused"
        )


@given(st.lists(st.sampled_from(["a", "b.onnx", "..", ".", "", "é", "x y"]), min_size=1, max_size=5).map("/".join))
def test_path_that_passes_stays_in_the_bundle(name: str) -> None:
    root = Path("/bundle")
    inside = Path(os.path.normpath(root / name))
    if path_fault(name) is None:
        assert inside.is_relative_to(root)
        assert inside != root
        assert inside.relative_to(root).as_posix() == name
    else:
        assert {"..", ".", ""} & set(name.split("/"))


def test_graphs_must_be_there_and_among_the_files(bundle: Bundle) -> None:
    whole = (bundle.path / "bundle.json").read_bytes()
    edit(bundle, lambda told: told["files"].pop("decoder.onnx"))
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle.path)
    assert str(caught.value) == (
        f"bundle {bundle.path}: bundle.json names the graph decoder.onnx but not among its files"
    )
    (bundle.path / "bundle.json").write_bytes(whole)
    edit(bundle, lambda told: told["graphs"].pop("decoder"))
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle.path)
    assert str(caught.value) == f"bundle {bundle.path}: bundle.json names no portable graph of the decoder"


def test_manifest_round_trip_keeps_every_field(bundle: Bundle) -> None:
    manifest = msgspec.structs.replace(
        bundle.manifest,
        latent=LatentSpec(channels=2, factor=4, scale=(0.1, 1 / 3), shift=(0.5, -1.5)),
        verification=FAILED,
    )
    read = decode_manifest(encode_manifest(manifest), bundle.path)
    assert read == msgspec.structs.replace(manifest, seal=read.seal)


def test_worst_value_that_is_not_finite_is_null(bundle: Bundle) -> None:
    worst = msgspec.structs.replace(FAILED, worst={"psnr": float("nan"), "max": 1.5, "mean": float("inf")})
    bundle.update(verification=worst)
    assert json.loads((bundle.path / "bundle.json").read_text())["verification"]["worst"] == {
        "psnr": None,
        "max": 1.5,
        "mean": None,
    }
    opened = Bundle.open(bundle.path).manifest.verification
    assert opened is not None
    assert opened.worst == {"psnr": None, "max": 1.5, "mean": None}


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        (Origin("package", "demo", "0" * 64, "demo"), "demo"),
        (Origin("hub", "mse840k", "0" * 64, "mse840k"), "mse840k"),
        (Origin("hub", "some/repository", "0" * 64, "sd15"), "sd15 --weights some/repository"),
        (Origin("hub", "some/repository", "0" * 64, None), "some/repository --scale 1.0 --shift 0.0"),
        (Origin("folder", "/my vae", "0" * 64, None), "'/my vae' --scale 1.0 --shift 0.0"),
        (Origin("file", "/a.ckpt", "0" * 64, "sd15"), "sd15 --weights /a.ckpt"),
        (Origin("random", "random:3", None, "sdxl"), "sdxl --weights random:3"),
        (
            Origin("hub", "some/repository", "0" * 64, None, subfolder="movq"),
            "some/repository --subfolder movq --scale 1.0 --shift 0.0",
        ),
        (
            Origin("file", "/a.ckpt", "0" * 64, None, config="/own"),
            "/own --weights /a.ckpt --scale 1.0 --shift 0.0",
        ),
    ],
)
def test_what_to_run_names_the_same_weights(bundle: Bundle, origin: Origin, words: str) -> None:
    manifest = msgspec.structs.replace(bundle.manifest, vae=msgspec.structs.replace(bundle.manifest.vae, origin=origin))
    assert manifest.export_command(Path("out")) == f"vaedeploy export {words} --out out --force"
    uint8 = msgspec.structs.replace(manifest, image_input="uint8")
    assert uint8.export_command(Path("out")) == (f"vaedeploy export {words} --image-input uint8 --out out --force")


def test_what_to_run_has_the_options_of_the_export(bundle: Bundle) -> None:
    given = msgspec.structs.replace(bundle.manifest, contract_given=True)
    start, end = "vaedeploy export sd15 --weights random:0", "--out out --force"
    assert given.export_command(Path("out")) == f"{start} --scale 1.0 --shift 0.0 {end}"
    for rewrites in ({}, {"decoder.ort.onnx": {"lower_precision(fp16)": 7}}):
        plain = msgspec.structs.replace(bundle.manifest, rewrites=rewrites)
        assert plain.export_command(Path("out")) == f"{start} --no-rewrite {end}"
        assert not plain.rewritten
    both = {"decoder.ort.onnx": {"fold_padding": 0, "lower_precision(fp16)": 7}}
    assert msgspec.structs.replace(bundle.manifest, rewrites=both).rewritten


def test_what_to_run_gives_a_number_for_each_channel(bundle: Bundle) -> None:
    manifest = bundle.manifest
    latent = LatentSpec(2, 8, (0.5, 0.25), (0.0, -1.0))
    vae = msgspec.structs.replace(manifest.vae, origin=Origin("file", "/a.ckpt", "0" * 64, None))
    assert msgspec.structs.replace(manifest, vae=vae, latent=latent).export_command(Path("out")) == (
        "vaedeploy export /a.ckpt --scale 0.5,0.25 --shift 0.0,-1.0 --out out --force"
    )


def test_what_to_run_names_the_forms_that_were_asked_for(bundle: Bundle) -> None:
    graphs = {
        part: {**forms, "onnxruntime-cuda": f"{part}.cuda.onnx"} for part, forms in bundle.manifest.graphs.items()
    }
    manifest = msgspec.structs.replace(bundle.manifest, graphs=graphs, precision="fp16")
    assert " --precision fp16 --form onnxruntime-cuda --out out " in manifest.export_command(Path("out"))
    assert "--form" not in bundle.manifest.export_command(Path("out"))


def test_what_to_run_for_modules_is_python(bundle: Bundle) -> None:
    vae = msgspec.structs.replace(bundle.manifest.vae, origin=Origin("modules", "", None, None))
    assert msgspec.structs.replace(bundle.manifest, vae=vae).export_command(Path("out")) == (
        "vaedeploy.export_vae(..., out='out', force=True), in Python and with your own modules"
    )


def test_file_info_is_bytes_and_hash(bundle: Bundle) -> None:
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert bundle.update(files={"empty": b""}).manifest.files["empty"] == FileInfo(empty, 0)


# The specification

FORMAT_PAGE = ROOT / "docs" / "bundle-format.md"
SPECIFIED = [Manifest, VaeInfo, Origin, LatentSpec, FileInfo, Verification, EngineInfo, EngineIdentity, ShapeSet]


@pytest.mark.parametrize("kind", SPECIFIED)
def test_every_field_is_specified(kind: type[msgspec.Struct]) -> None:
    page = FORMAT_PAGE.read_text(encoding="utf-8")
    for field in msgspec.structs.fields(kind):
        row = next((line for line in page.splitlines() if line.startswith(f"| `{field.name}` |")), "")
        default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        if kind is FileInfo:
            assert f'"{field.name}"' in page
        elif isinstance(default, (int, float, type(None))):
            assert f"| {json.dumps(default)} |" in row
        else:
            assert row


# From strangers


def test_nesting_that_is_too_deep_is_told(bundle: Bundle) -> None:
    (bundle.path / "bundle.json").write_text('{"format": 1, "more": ' + "[" * 50_000 + "]" * 50_000 + "}")
    with pytest.raises(BundleError, match=r"bundle\.json cannot be used: maximum recursion depth exceeded"):
        Bundle.open(bundle.path)
    header = b'{"__metadata__": {"vae_identity": "", "cases": "' + b"[" * 50_000 + b'"}}'
    with pytest.raises(BundleError, match="RecursionError"):
        decode_golden(len(header).to_bytes(8, "little") + header, "")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda info: info["activation_bytes"].pop("any"),
            "activation_bytes and identity.shapes have other names - at `$.engines[...]`",
        ),
        (
            lambda info: info.update(activation_bytes={}, identity={**info["identity"], "shapes": {}}),
            "Expected `object` of length >= 1 - at `$.engines[...].identity.shapes`",
        ),
        (
            lambda info: info["identity"].update(compute_capability="new"),
            r"Expected `str` matching regex '^[1-9][0-9]*\\.[0-9]\\Z' - "
            "at `$.engines[...].identity.compute_capability`",
        ),
        (lambda info: info.update(weights_bytes=-1), "Expected `int` >= 0 - at `$.engines[...].weights_bytes`"),
    ],
)
def test_engines_that_contradict_themselves_are_refused(
    bundle: Bundle, change: Callable[[dict[str, Any]], object], why: str
) -> None:
    told = claim_engine(bundle)
    change(told["engines"][ENCODER])
    (bundle.path / "bundle.json").write_text(json.dumps(told))
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle.path)
    assert str(caught.value) == cannot_be_used(bundle, why)


def test_an_engine_without_a_byte_is_none(bundle: Bundle) -> None:
    told = claim_engine(bundle)
    told.pop("seal", None)
    (bundle.path / ENCODER).write_bytes(b"")
    told["files"][ENCODER] = {"sha256": hashlib.sha256().hexdigest(), "bytes": 0}
    (bundle.path / "bundle.json").write_text(json.dumps(told))
    assert "it does not contain the identity that the manifest states" in engine_faults(
        Bundle.open(bundle.path), ENCODER
    )
