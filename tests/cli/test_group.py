"""The command line as a whole: help, usage errors, exit codes, and what is told of failures."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from command_line import Ended, parse

from vaedeploy.cli import terminal
from vaedeploy.cli.group import MemorySize, cli, numbers
from vaedeploy.errors import BackendError
from vaedeploy.system.installs import advice_for
from vaedeploy.version import __version__

HEAVY = {"PIL", "diffusers", "msgspec", "numpy", "onnx", "onnxruntime", "rich", "safetensors", "torch"}


def examples(command: click.Command) -> list[str]:
    return re.findall(r"^ +vaedeploy (.+)$", (command.help or "").partition("Example:")[2], re.MULTILINE)


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
    # With the group's own settings: click keeps the help option that it made first, for every later context.
    context = click.Context(cli, info_name="vaedeploy", terminal_width=80, **cli.context_settings)
    listing = cli.get_help(context).partition("Commands:")[2]
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


@pytest.mark.parametrize(("text", "value"), [("0.5", 0.5), ("-1", -1.0), ("1,2.5", (1.0, 2.5)), ("-1, 2", (-1.0, 2.0))])
def test_one_number_or_several(text: str, value: object) -> None:
    assert numbers(text) == value


@pytest.mark.parametrize("text", ["", "one", "1,", "1;2"])
def test_what_is_not_numbers(vaedeploy: Callable[..., Ended], text: str) -> None:
    ended = vaedeploy("export", "--vae", "demo", "--scale", text)
    assert ended.code == 2
    assert ended.err.endswith(
        f"Error: Invalid value for '--scale': {text!r} is neither a number nor numbers that are separated by commas.\n"
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4G", 4 * 10**9),
        ("4GiB", 4 * 2**30),
        ("4GB", 4 * 10**9),
        ("1.5k", 1500),
        ("600KiB", 600 * 2**10),
        ("600kB", 600 * 10**3),
        ("500M", 5 * 10**8),
        ("2Ti", 2 * 2**40),
        ("7", 7),
    ],
)
def test_sizes_of_memory(text: str, size: int) -> None:
    assert MemorySize().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "4g", "4 GiB x", "4iB", "1e9", "G", "0.1", "9" * 400])
def test_what_is_no_size_of_memory(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"is no number of bytes above 0; write it as 4G"):
        MemorySize().convert(text, None, None)
