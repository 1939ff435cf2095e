from __future__ import annotations

import json
import os
import re
import runpy
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import click
import msgspec
import numpy as np
import pytest
from command_line import parse
from PIL import Image
from places import ROOT
from tiny_bundle import tiny_bundle

from vaedeploy.bundle import Bundle
from vaedeploy.bundle.golden import NAME as GOLDEN
from vaedeploy.bundle.golden import decode_golden, encode_golden
from vaedeploy.cli import terminal
from vaedeploy.cli.group import cli
from vaedeploy.errors import BackendError
from vaedeploy.images.files import read_image
from vaedeploy.images.latents import LatentFile, read_latent, write_latent
from vaedeploy.pipeline import doctor
from vaedeploy.runtime import VAE
from vaedeploy.source import presets
from vaedeploy.system.installs import advice_for
from vaedeploy.values.latent import LatentSpec
from vaedeploy.version import __version__

PROGRESS = re.compile(r"( \.\.\.|: done in [\d.]+ s)$")
HEAVY = {"PIL", "diffusers", "msgspec", "numpy", "onnx", "onnxruntime", "rich", "safetensors", "torch"}


def examples(command: click.Command) -> list[str]:
    return re.findall(r"^ +vaedeploy (.+)$", (command.help or "").partition("Example:")[2], re.MULTILINE)


def photo(path: Path, height: int = 16, width: int = 24, seed: int = 0) -> Path:
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("tiny") / "tiny").path


# ------------------------------------------------------------------------------------------------ help and usage


@pytest.mark.parametrize("name", cli.commands)
def test_every_command_has_examples_that_parse(name):
    found = examples(cli.commands[name])
    assert found
    for line in found:
        assert line.split()[0] == name
        parse(line)


def test_the_group_has_examples_that_parse():
    assert examples(cli)
    for line in examples(cli):
        parse(line)


def test_the_reference_page_is_current():
    page = runpy.run_path(str(ROOT / "tools" / "write_cli_docs.py"))
    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == page["render"](), "run: python tools/write_cli_docs.py"


def test_version(vaedeploy):
    ended = vaedeploy("--version")
    assert (ended.code, ended.out) == (0, f"vaedeploy {__version__}\n")


@pytest.mark.parametrize("arguments", [["--help"], ["export", "--help"], ["decode"]])
def test_help_and_usage_errors_wait_for_no_heavy_import(arguments):
    script = f"""
import sys
from vaedeploy.cli import main
try:
    main({arguments})
except SystemExit:
    print("imported:", *sorted({HEAVY} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("imported:\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export"], "Error: Missing option '--vae'."),
        (["export", "--vae", "demo", "--image-input", "int"], "Error: Invalid value for '--image-input'"),
        (["encode", "b", "a.png"], "Error: Missing option '-o'."),
        (["encode", "b", "a.png", "-o", "a", "--seed", "-1"], "Error: Invalid value for '--seed'"),
        (["encode", "b", "a.png", "-o", "a", "--seed", "1"], "Error: --seed needs --sample."),
        (["sing"], "Error: No such command 'sing'."),
    ],
)
def test_usage_errors(vaedeploy, arguments, message):
    ended = vaedeploy(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err


def test_without_a_command_help_is_shown(vaedeploy):
    ended = vaedeploy()
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("Usage: vaedeploy [OPTIONS] COMMAND")


@pytest.mark.parametrize("name", cli.commands)
def test_every_summary_fits_into_eighty_columns(name):
    listing = cli.get_help(click.Context(cli, info_name="vaedeploy", terminal_width=80)).partition("Commands:")[2]
    (line,) = [line for line in listing.splitlines() if line.startswith(f"  {name} ")]
    assert line.endswith(".")
    assert not line.endswith("...")


# --------------------------------------------------------------------------------------------------------- errors


def failing(error: BaseException) -> click.Command:
    @click.command
    def command() -> None:
        raise error

    return command


def test_an_expected_error_is_one_line_and_its_exit_code(capsys):
    assert terminal.run(failing(BackendError("no engine")), []) == 1
    assert capsys.readouterr().err == "Error: no engine\n"


def test_an_unknown_error_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        terminal.run(failing(ZeroDivisionError()), [])


def test_a_missing_extra_is_told_with_what_to_install(capsys):
    assert terminal.run(failing(ModuleNotFoundError(name="torch.onnx")), []) == 1
    assert capsys.readouterr().err == (
        'Error: this needs torch, of the extra [export], which is not installed. Run: pip install "vaedeploy[export]". '
        "Without a GPU, install PyTorch's build for CPUs first: it saves gigabytes\n"
    )


@pytest.mark.parametrize(
    ("command", "module", "told"),
    [
        (
            "export",
            "skimage.data",
            "export needs scikit-image, of the extra [export], which is not installed. Run: ",
        ),
        (
            "build",
            "onnx_ir",
            'build needs onnx_ir, of the extra [rtx], which is not installed. Run: pip install "vaedeploy[rtx]" '
            "(or [tensorrt] for: build --backend tensorrt, on the GPU that it is for, and run there)",
        ),
        (
            "optimize",
            "onnx",
            'optimize needs onnx, of the extra [build], which is not installed. Run: pip install "vaedeploy[build]"',
        ),
        (
            "bench",
            "onnx_ir",
            'bench needs onnx_ir, of the extra [build], which is not installed. Run: pip install "vaedeploy[build]"',
        ),
    ],
)
def test_a_missing_extra_is_the_one_that_the_command_needs(command, module, told):
    advice = advice_for(module, command)
    assert advice.startswith(told) if command == "export" else advice == told


def test_a_missing_module_of_nobody_keeps_its_traceback():
    with pytest.raises(ModuleNotFoundError):
        terminal.run(failing(ModuleNotFoundError(name="vaedeploy.oops")), [])


def test_ctrl_c_is_one_line_and_130(capsys):
    assert terminal.run(failing(KeyboardInterrupt()), []) == 130
    assert capsys.readouterr().err.strip() == "Interrupted; nothing half-written was left behind"


# ------------------------------------------------------------------------------------------------------- progress


def test_progress_is_two_lines_a_step_where_there_is_no_terminal(capsys):
    with terminal.progress_display() as progress:
        for done in range(3):
            progress("Counting", done, 2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Counting ..."
    assert re.fullmatch(r"Counting: done in \d+\.\d s", lines[1])
    assert len(lines) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals")
def test_progress_is_a_bar_on_a_terminal():
    import pty

    script = """
from vaedeploy.cli.terminal import progress_display
with progress_display() as progress:
    for done in range(3):
        progress("Counting [sheep]" + 3 * " and goats", done, 2)
print("result")
"""
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=theirs,
        check=True,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    lines = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", shown).replace("\r", "\n").splitlines()
    assert max(map(len, lines)) == 78  # Ctrl-C's echo fits in
    assert "Counting [sheep]" in shown
    assert "100%" in shown
    assert done.stdout == b"result\n"


@pytest.mark.parametrize("width", [30, 48, 90])
def test_no_word_is_cut_however_narrow_a_terminal_is(monkeypatch, capsys, width):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    name, long = "a-name-to-be-typed", "a-long-word-of-its-own"
    terminal.show_table(("name", "one", "two"), [(name, long, "words " * 8)])
    shown = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out)
    assert [shown.count(word) for word in (name, long, "words", "…")] == [1, 1, 8, 0]
    assert max(map(len, shown.splitlines())) <= width


def test_a_value_that_is_wider_than_a_terminal_is_folded(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    terminal.show_table((), [("identity", "x" * 64)])
    shown = capsys.readouterr().out
    assert (shown.count("x"), "…" in shown) == (64, False)


# ---------------------------------------------------------------------------------------------- presets and doctor


def test_presets_are_listed(vaedeploy):
    ended = vaedeploy("presets")
    assert (ended.code, ended.err) == (0, "")
    names = [line.split()[0] for line in ended.out.splitlines() if not line.startswith(" ")]
    assert names == list(presets())


def test_presets_as_json(vaedeploy):
    listed = json.loads(vaedeploy("presets", "--json").out)
    assert listed == json.loads(msgspec.json.encode(list(presets().values())))


def test_doctor_names_what_is_installed_and_who_answers(vaedeploy):
    ended = vaedeploy("doctor")
    rows = dict(re.split(r"  +", line, maxsplit=1) for line in ended.out.splitlines())
    assert ended.code == 0
    assert rows["vaedeploy"] == __version__
    assert rows["numpy"] == np.__version__
    assert rows["backend onnxruntime-cpu"] == "available"
    assert rows["extra [export]"] == "complete (for export, verify, compare)"


def test_doctor_as_json(vaedeploy):
    told = json.loads(vaedeploy("doctor", "--json").out)
    assert told["packages"]["numpy"] == np.__version__
    problems = {backend["name"]: backend["problem"] for backend in told["backends"]}
    assert list(problems) == ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cpu"]
    assert problems["onnxruntime-cpu"] is None
    assert told["extras"][2]["install"] == 'pip install "vaedeploy[export]"'


def test_doctor_warns_of_two_onnx_runtimes(vaedeploy, tmp_path, monkeypatch):
    info = tmp_path / "onnxruntime_gpu-1.20.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.20.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    ended = vaedeploy("doctor", "--json")
    assert "Warning: onnxruntime and onnxruntime-gpu are both installed." in ended.err
    assert f"the one in use is onnxruntime {version('onnxruntime')}. To choose, run: pip uninstall" in ended.err
    assert json.loads(ended.out)["warnings"] == list(doctor.diagnose().warnings)


# -------------------------------------------------------------------------------------------------------- inspect


def test_inspect_shows_the_manifest(vaedeploy, bundle):
    ended = vaedeploy("inspect", bundle)
    assert (ended.code, ended.err) == (0, "")
    assert "VAE          tiny (Tiny)\n" in ended.out
    assert "latent       2 channels at 1/4 of the size, scale 1.0, shift 0.0\n" in ended.out
    assert "file         decoder.onnx  " in ended.out
    assert "check" not in ended.out


def test_inspect_as_json_is_the_manifest_and_what_speaks_against_it(vaedeploy, bundle, tmp_path):
    manifest = json.loads((bundle / "bundle.json").read_text())
    added = {"problems": [], "engine_states": {}, "checked": False}
    assert json.loads(vaedeploy("inspect", bundle, "--json").out) == manifest | added
    assert json.loads(vaedeploy("inspect", bundle, "--json", "--check").out) == manifest | added | {"checked": True}
    made = tiny_bundle(tmp_path / "b", verification=None).path
    told = json.loads(vaedeploy("inspect", made, "--json").out)["problems"]
    assert told == [f"verified: no. Run: vaedeploy verify {made}"]


def test_inspect_check(vaedeploy, tmp_path):
    made = tiny_bundle(tmp_path / "b").path
    assert vaedeploy("inspect", made, "--check").out.endswith("check        every file is as the manifest says\n")
    graph = made / "encoder.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    assert vaedeploy("inspect", made).code == 0
    ended = vaedeploy("inspect", made, "--check")
    assert (ended.code, ended.out) == (2, "")
    assert f"Error: bundle {made} is damaged: encoder.onnx is altered" in ended.err


def test_a_missing_bundle(vaedeploy, tmp_path):
    ended = vaedeploy("inspect", tmp_path / "none")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"Error: there is no bundle at {tmp_path / 'none'}.")


# ----------------------------------------------------------------------------------------------- encode and decode


def test_encode_then_decode_is_what_the_runtime_gives(vaedeploy, bundle, tmp_path):
    picture = photo(tmp_path / "a.png")
    latent, decoded = tmp_path / "a.safetensors", tmp_path / "decoded.png"
    ended = vaedeploy("encode", bundle, picture, "-o", latent)
    assert (ended.code, ended.out) == (0, f"{latent}\n")
    assert ended.err.startswith(f"Encoding {picture} ...\nEncoding {picture}: done in ")
    assert vaedeploy("decode", bundle, latent, "-o", decoded).out == f"{decoded}\n"
    with VAE(bundle) as vae:
        expected = vae.encode(read_image(picture))
        np.testing.assert_array_equal(read_latent(latent).latent, expected)
        np.testing.assert_array_equal(read_image(decoded), vae.decode(expected)[0])
        assert read_latent(latent).vae_identity == vae.manifest.vae.identity


def test_a_size_that_is_not_a_multiple_is_refused_without_pad(vaedeploy, bundle, tmp_path):
    ended = vaedeploy("encode", bundle, photo(tmp_path / "a.png", 17, 24), "-o", tmp_path / "a.safetensors")
    assert (ended.code, ended.out) == (2, "")
    told = f"Error: {tmp_path / 'a.png'}: image is 17x24 (height x width), but both must be multiples of 4"
    assert told in ended.err
    assert not (tmp_path / "a.safetensors").exists()


def test_padding_is_cut_off_again(vaedeploy, bundle, tmp_path):
    picture, latent = photo(tmp_path / "a.png", 17, 23), tmp_path / "a.safetensors"
    assert vaedeploy("encode", bundle, picture, "-o", latent, "--pad").code == 0
    assert vaedeploy("decode", bundle, latent, "-o", tmp_path / "b.png").code == 0
    assert read_image(tmp_path / "b.png").shape == (17, 23, 3)


def test_a_seed_draws_the_same_again(vaedeploy, bundle, tmp_path):
    picture = photo(tmp_path / "a.png")
    drawn = {}
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        out = tmp_path / f"{name}.safetensors"
        assert vaedeploy("encode", bundle, picture, "-o", out, "--sample", "--seed", seed).code == 0
        drawn[name] = read_latent(out).latent
    np.testing.assert_array_equal(drawn["one"], drawn["again"])
    assert not np.array_equal(drawn["one"], drawn["two"])


def test_a_folder_goes_on_after_a_failure(vaedeploy, bundle, tmp_path):
    pictures, latents, decoded = tmp_path / "pictures", tmp_path / "latents", tmp_path / "decoded"
    for number, name in enumerate(("a.png", "b.PNG", "c.png")):
        photo(pictures / name, 17 if name == "c.png" else 16, seed=number)
    (pictures / "broken.jpg").write_bytes(b"not a picture")
    (pictures / "notes.txt").write_text("neither")
    ended = vaedeploy("encode", bundle, pictures, "-o", latents)
    assert ended.code == 2
    assert ended.out == f"{latents / 'a.safetensors'}\n{latents / 'b.safetensors'}\n"
    told = ended.err.partition("Error: ")[2].splitlines()
    assert told[0] == "2 of 4 files failed; the others are written:"
    assert told[1].startswith(f"  {pictures / 'broken.jpg'} ")
    assert told[2].startswith(f"  {pictures / 'c.png'}: image is 17x24")
    assert sorted(p.name for p in latents.iterdir()) == ["a.safetensors", "b.safetensors"]
    assert vaedeploy("decode", bundle, latents, "-o", decoded).code == 0
    assert sorted(p.name for p in decoded.iterdir()) == ["a.png", "b.png"]


def test_a_folder_of_failures_leaves_no_folder(vaedeploy, bundle, tmp_path):
    pictures = tmp_path / "pictures"
    photo(pictures / "a.png", 17, 23)
    ended = vaedeploy("encode", bundle, pictures, "-o", tmp_path / "latents")
    assert (ended.code, ended.out) == (2, "")
    assert not (tmp_path / "latents").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["encode", "{bundle}", "empty", "-o", "out"],
            "Error: there is nothing to convert in empty: no file there ends",
        ),
        (
            ["encode", "{bundle}", "twins", "-o", "out"],
            "Error: a.jpg and a.png would both be written to out/a.safetensors",
        ),
        (
            ["encode", "{bundle}", "a.png", "-o", "empty"],
            "Error: empty is a folder and a.png is not: name the file to write, empty/a.safetensors",
        ),
        (
            ["encode", "{bundle}", "a.png", "-o", "a.png"],
            "Error: cannot write a latent to a.png: give a name that ends",
        ),
        (["encode", "{bundle}", "twice", "-o", "a.png"], "Error: cannot make the folder a.png: there is a file where"),
        (["decode", "{bundle}", "one.safetensors", "-o", "empty"], "name the file to write, empty/one.png"),
        (
            ["decode", "{bundle}", "one.safetensors", "-o", "a.xyz"],
            "Error: cannot write a picture to a.xyz: give a name that ends in one of .png, ",
        ),
        (
            ["encode", "{bundle}", "twice", "-o", "all.safetensors"],
            "Error: twice is a folder, and all.safetensors is a file's name: give a folder",
        ),
        (["encode", "{bundle}", "none.png", "-o", "empty"], "Error: there is no file none.png"),
        (
            ["encode", "{bundle}", "a.png", "-o", "none/a.safetensors"],
            "Error: cannot write none/a.safetensors: No such file or directory. Make its folder first",
        ),
        (["decode", "{bundle}", "one.safetensors", "-o", "none/a.png"], "Error: cannot write none/a.png: "),
        (["decode", "{bundle}", "two.safetensors", "-o", "b.png"], "Error: two.safetensors holds 2 latents; a picture"),
        (["decode", "{bundle}", "none.safetensors", "-o", "b.png"], "Error: there is no file none.safetensors"),
    ],
)
def test_bad_places_and_files(vaedeploy, bundle, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    for name in ("a.png", "twins/a.png", "twins/a.jpg", "twice/a.png"):
        photo(Path(name))
    for name, count in (("one", 1), ("two", 2)):
        write_latent(f"{name}.safetensors", LatentFile(np.zeros((count, 2, 4, 4), np.float32)))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    ended = vaedeploy(*[a.format(bundle=bundle) for a in arguments])
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(("Error: ", "Decoding two.safetensors ..."))  # before the work, where it can be known
    assert message.replace("/", os.sep) in ended.err
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.filterwarnings("default")
def test_another_vaes_latent_is_decoded_and_told_once(vaedeploy, bundle, tmp_path):
    latents = tmp_path / "latents"
    latents.mkdir()
    for name in ("a", "b"):
        write_latent(latents / f"{name}.safetensors", LatentFile(np.zeros((1, 2, 4, 4), np.float32), "2" * 64, "other"))
    ended = vaedeploy("decode", bundle, latents, "-o", tmp_path / "pictures")
    assert ended.code == 0
    told = "Warning: other (222222222222) made the latent, tiny (111111111111) decodes it\n"
    assert ended.err.count(told) == 1
    assert len(list((tmp_path / "pictures").iterdir())) == 2


@pytest.mark.filterwarnings("default")
def test_another_latent_contract_is_told_with_both_values(vaedeploy, bundle, tmp_path):
    spec = LatentSpec(channels=2, factor=4, scale=0.5, shift=0.25)
    made = LatentFile(np.zeros((1, 2, 4, 4), np.float32), "2" * 64, "other", spec)
    write_latent(tmp_path / "a.safetensors", made)
    ended = vaedeploy("decode", bundle, tmp_path / "a.safetensors", "-o", tmp_path / "a.png")
    assert ended.code == 0
    told = "their latent contracts differ: scale is 0.5 there and 1.0 here, shift is 0.25 there and 0.0 here\n"
    assert told in ended.err


@pytest.mark.filterwarnings("default")
def test_an_unverified_bundle_is_told(vaedeploy, tmp_path):
    made = tiny_bundle(tmp_path / "b", verification=None).path
    ended = vaedeploy("encode", made, photo(tmp_path / "a.png"), "-o", tmp_path / "a.safetensors")
    assert ended.code == 0
    assert (
        f"Warning: bundle {made} was never verified; its pictures may be wrong. Run: vaedeploy verify {made}"
        in ended.err
    )


@pytest.mark.skipif(sys.platform == "win32", reason="has no pipes of this kind")
@pytest.mark.parametrize("arguments", [["presets"], ["presets", "--json"], ["inspect", "BUNDLE", "--json"], ["--help"]])
def test_a_reader_that_has_gone_changes_nothing(bundle, arguments):
    """As with ``vaedeploy presets | head -1``."""
    ours, theirs = os.pipe()
    os.close(ours)
    command = [sys.executable, "-m", "vaedeploy", *(str(bundle) if a == "BUNDLE" else a for a in arguments)]
    ended = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, text=True)
    os.close(theirs)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.skipif(sys.platform == "win32", reason="has no pipes of this kind")
def test_an_exit_code_survives_a_reader_that_has_gone():
    script = """
import click
from vaedeploy.cli import terminal
@click.command
def command():
    terminal.say("working")
    terminal.show("result")
    raise SystemExit(3)
terminal.run(command, [])
"""
    ours, theirs = os.pipe()
    os.close(ours)
    ended = subprocess.run([sys.executable, "-c", script], stdout=theirs, stderr=theirs)
    os.close(theirs)
    assert ended.returncode == 3


# ----------------------------------------------------------------------------------------------- export and verify


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_export_verify_and_fail(vaedeploy, small_vae, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = vaedeploy("export", "--vae", small_vae)
    assert (ended.code, ended.out) == (0, "small\n"), ended.err
    assert "Exporting to ONNX ..." in ended.err
    assert "Error" not in ended.err
    *lines, last = ended.err.splitlines()
    assert all(PROGRESS.search(line) for line in lines)
    assert last == "To see its images beside PyTorch's, run: vaedeploy verify small --report report"
    starts = [line for line in lines if line.endswith(" ...")]
    assert len(set(starts)) == len(starts)  # each step has a name of its own
    assert Bundle.open("small").verified

    again = vaedeploy("export", "--vae", small_vae, "--no-verify")
    assert (again.code, again.out) == (2, "")
    assert (
        "Error: small exists already. Replace it with --force (force=True in Python), or choose another place with"
        in again.err
    )

    table = vaedeploy("verify", "small").out.splitlines()
    assert table[0].startswith("graph        part        output       size ")
    assert table[-3].startswith("Limits of fp32: relative error at most 2e-05, largest difference at most 1 of 255")
    assert table[-2] == "seen: no fault beside the reference's images"
    assert table[-1].startswith(f"verified: {len(table) - 4} cases on onnxruntime-cpu against PyTorch in float64")

    opened = Bundle.open("small")
    identity = opened.manifest.vae.identity
    cases = decode_golden(opened.file(GOLDEN).read_bytes(), identity)
    for case in cases:
        case.image[...] += 0.1
    opened.update(files={GOLDEN: encode_golden(cases, identity)})
    failed = vaedeploy("verify", "small")
    assert failed.code == 3
    assert failed.out.splitlines()[-1].startswith("FAILED: ")
    assert "decoder 1x64x64, image: relative error is " in failed.out
    assert not Bundle.open("small").verified

    report = json.loads(vaedeploy("verify", "small", "--json").out)
    assert report["passed"] is False
    assert {case["passed"] for case in report["cases"] if case["part"] == "encoder"} == {True}

    # With the weights at hand the golden cases are made anew.
    assert vaedeploy("verify", "small", "--weights", small_vae).code == 0
    assert Bundle.open("small").verified


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent in another way there")
def test_ctrl_c_during_export_leaves_nothing(small_vae, tmp_path):
    command = [
        sys.executable,
        "-m",
        "vaedeploy",
        "-v",
        "export",
        "--vae",
        str(small_vae),
        "--out",
        str(tmp_path / "out"),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        lines = []
        for line in running.stderr:
            lines.append(line)
            if line == "Exporting to ONNX ...\n":
                running.send_signal(signal.SIGINT)
    assert running.returncode == 130, "".join(lines)
    assert lines[-1] == "Interrupted; nothing half-written was left behind\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_exporters_noise_is_for_verbose_only(vaedeploy, small_vae, tmp_path):
    """Above there is none."""
    noisy = vaedeploy("-v", "export", "--vae", small_vae, "--no-verify", "--out", tmp_path / "noisy")
    assert noisy.code == 0
    assert "Info: " in noisy.err
    assert noisy.err.endswith(f"It is not verified yet. To verify it, run: vaedeploy verify {tmp_path / 'noisy'}\n")
    assert not all(PROGRESS.search(line) for line in noisy.err.splitlines())


def test_a_failure_shows_where_it_was_raised_in_verbose_only(vaedeploy, tmp_path):
    quiet, noisy = vaedeploy("inspect", tmp_path), vaedeploy("-v", "inspect", tmp_path)
    assert (quiet.code, noisy.code) == (2, 2)
    assert quiet.err == noisy.err.splitlines(keepends=True)[-1]
    assert "Traceback (most recent call last)" in noisy.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("arguments", [["presets"], ["presets", "--json"], ["profiles"]])
def test_a_result_that_cannot_be_written(arguments):
    command = [sys.executable, "-m", "vaedeploy", *arguments]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (
        2,
        "Error: cannot write the result to stdout: No space left on device\n",
    )
