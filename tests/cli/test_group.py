"""The command line as a whole: help, usage errors, exit codes, and what is told of failures."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from command_line import Ended, parse

from vaedeploy.cli import terminal
from vaedeploy.cli.group import cli, variable
from vaedeploy.cli.meant import OPTIONS
from vaedeploy.cli.parameters import MemorySize, numbers
from vaedeploy.cli.progress import progress_display
from vaedeploy.errors import BackendError
from vaedeploy.system.installs import advice_for, install_command
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


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(vaedeploy, option):
    ended = vaedeploy(option)
    assert (ended.code, ended.out) == (0, f"vaedeploy {__version__}\n")


def test_help_as_a_command(vaedeploy):
    assert vaedeploy("help").out == vaedeploy("--help").out
    ended = vaedeploy("help", "export")
    assert (ended.code, ended.out) == (0, vaedeploy("export", "--help").out)
    ended = vaedeploy("help", "exprot")
    assert (ended.code, ended.out) == (2, "")
    assert "No such command 'exprot'. Did you mean 'export'?" in ended.err


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
        (["export"], "Error: No VAE is given. Name a preset, a hub repository, a folder or a weights file: vaedeploy "),
        (
            ["export", "demo", "--vae", "sdxl"],
            "Error: The VAE is given twice, as demo and as --vae sdxl. Give one of them.",
        ),
        (["export", "demo", "--config", "a.toml"], "Error: --config needs --all."),
        (["verify", "b", "-o", "report"], "Error: No such option '-o'."),
        (["export", "demo", "--image-input", "int"], "Error: Invalid value for '--image-input'"),
        (["encode", "b", "a.png"], "Error: Missing option '-o' / '--out'."),
        (["build", "b"], "Error: Missing option '--profile'. To see all profiles: vaedeploy profiles\n"),
        (["encode", "b", "a.png", "-o", "a", "--seed", "-1"], "Error: Invalid value for '--seed'"),
        (["encode", "b", "a.png", "-o", "a", "--seed", "1"], "Error: --seed needs --sample."),
        (["sing"], "Error: No such command 'sing'."),
        (["info", "demo"], "Error: No such command 'info'. Did you mean 'inspect'?"),
        (["version"], "Error: No such command 'version'. Did you mean '--version'?"),
        (["--look", "demo"], "Error: No such option '--look'. Did you mean 'look'?"),
        (["-v", "--bench=demo"], "Error: No such option '--bench'. Did you mean 'bench'?"),
        (["--frob"], "Error: No such option '--frob'.\n"),
    ],
)
def test_usage_errors(vaedeploy, arguments, message):
    ended = vaedeploy(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["export", "demo", "--precision", "fp61"],
            "Error: Invalid value for '--precision': 'fp61' is not one of 'fp32', 'fp16', 'bf16'. Did you mean 'fp16'?",
        ),
        (
            ["export", "demo", "--precision", "bfloat16"],
            "'bfloat16' is not one of 'fp32', 'fp16', 'bf16'. Did you mean",
        ),
        (["export", "demo", "--precision", "Half"], "Did you mean 'fp16'?"),
        (["cache", "b", "d", "-o", "c", "--dtype", "fp16"], "Did you mean 'float16'?"),
        (["optimize", "a.onnx", "-o", "b.onnx", "--target", "tensorrt2"], "Did you mean 'tensorrt'?"),
        (["export", "demo", "--dtype", "fp16"], "Error: No such option '--dtype'. Did you mean '--precision'?"),
        (["export", "demo", "--half"], "Error: No such option '--half'. Did you mean '--precision fp16'?"),
        (["serve", "b", "--batch-size", "4"], "Error: No such option '--batch-size'. Did you mean '--max-batch'?"),
        (["verify", "b", "--rtol", "1"], "Error: No such option '--rtol'. The limits are the same for every bundle: "),
        (["bench", "b", "--rtol", "1"], "Error: No such option '--rtol'.\n"),
        (
            ["serve", "b", "--workers", "4"],
            "Error: No such option '--workers'. One process serves, and uses all cores. ",
        ),
        (["look", "b", "a.png", "-out", "page"], "Error: No such option '-out'. Did you mean '--out'?"),
        (["look", "b", "a.png", "-report=page"], "Error: No such option '-report'. Did you mean '--report'?"),
        (["look", "-help"], "Error: No such option '-help'. Did you mean '--help'?"),
        (["encode", "b", "a.png", "-o", "a", "--force"], "'--force'. A file of that name is replaced without it.\n"),
        (["inspect", "b", "--frob"], "Error: No such option '--frob'.\n"),
        (["export", "demo", "--report", "r"], "After the export, run: vaedeploy verify BUNDLE --report DIR"),
        (["verify", "b", "--precission", "fp16"], "Error: No such option '--precission'. Did you mean '--precision'?"),
    ],
)
def test_a_slip_is_told_with_what_was_meant(vaedeploy, arguments, message):
    ended = vaedeploy(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err


@pytest.mark.parametrize("arguments", [["inspect", "--", "-json"], ["inspect", "v"], ["decode", "b", "a", "-outer"]])
def test_what_is_no_slip_is_taken_as_it_is(arguments):
    parse(" ".join(arguments))


def test_the_shell_completes_after_a_slip():
    found = ShellComplete(cli, {}, "vaedeploy", "_VAEDEPLOY_COMPLETE").get_completions(["look", "-out", "page"], "--ba")
    assert [item.value for item in found] == ["--background", "--backend"]


def test_what_stands_for_options_of_other_tools_is_there():
    options = {word for command in cli.commands.values() for option in command.params for word in option.opts}
    for name, meant in OPTIONS.items():
        assert {option.split()[0] for option in meant} <= options, name


def test_without_a_command_help_is_shown(vaedeploy):
    ended = vaedeploy()
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("Usage: vaedeploy [OPTIONS] COMMAND")


@pytest.mark.parametrize("name", cli.commands)
def test_every_summary_fits_into_eighty_columns(name):
    # click leaves two of them free. With the group's own settings: click keeps the help option that it made first, for
    # every later context.
    context = click.Context(cli, info_name="vaedeploy", terminal_width=78, **cli.context_settings)
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
        "Error: this needs torch, of the extra [export], which is not installed. "
        f"Run: {install_command('export')}. Without a GPU, install PyTorch's build for CPUs first: it saves gigabytes\n"
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
            "build needs onnx_ir, of the extra [rtx], which is not installed. "
            f"Run: {install_command('rtx')} (or [tensorrt] for: build --backend tensorrt, on the GPU that it is for, "
            "and run there)",
        ),
        (
            "optimize",
            "onnx",
            f"optimize needs onnx, of the extra [build], which is not installed. Run: {install_command('build')}",
        ),
        (
            "bench",
            "onnx_ir",
            f"bench needs onnx_ir, of the extra [build], which is not installed. Run: {install_command('build')}",
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


@pytest.mark.parametrize(
    "arguments", [["-v", "inspect", "{}"], ["inspect", "-v", "{}"], ["inspect", "{}", "--verbose"]]
)
def test_a_failure_shows_where_it_was_raised_in_verbose_only(vaedeploy, tmp_path, arguments):
    usual, noisy = vaedeploy("inspect", tmp_path), vaedeploy(*(word.format(tmp_path) for word in arguments))
    assert (usual.code, noisy.code) == (2, 2)
    assert usual.err == noisy.err.splitlines(keepends=True)[-1]
    assert "Traceback (most recent call last)" in noisy.err


# ------------------------------------------------------------------------------------- how much is told, and variables


@click.command(cls=type(cli).command_class)
def telling() -> None:
    with progress_display() as progress:
        progress("Counting", 0, 1)
        progress("Counting", 1, 1)
    terminal.note("a hint")
    terminal.say("Warning: a warning")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], ["Counting ...", "Counting: done in", "a hint", "Warning: a warning"]),
        (["-q"], ["Warning: a warning"]),
        (["-v", "--quiet"], ["Warning: a warning"]),  # the last holds
        (["-q", "-v"], ["Counting ...", "Counting: done in", "a hint", "Warning: a warning"]),
    ],
)
def test_quiet_leaves_out_progress_and_hints(capsys, unconfigured, arguments, told):
    assert terminal.run(telling, arguments) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith(start) for line, start in zip(lines, told, strict=True)] == [True] * len(told)


def test_what_is_typed_overrules_a_variable(capsys, unconfigured, monkeypatch):
    monkeypatch.setenv("VAEDEPLOY_QUIET", "1")
    assert terminal.run(telling, []) == 0
    assert capsys.readouterr().err == "Warning: a warning\n"
    assert terminal.run(telling, ["-v"]) == 0
    assert "a hint\n" in capsys.readouterr().err


def test_every_option_has_a_variable_of_its_own():
    """No two have the same, and none is that of another thing."""
    found = {"VAEDEPLOY_VERBOSE", "VAEDEPLOY_QUIET"}
    for name, command in cli.commands.items():
        for option in command.params:
            if isinstance(option, click.Option) and option.expose_value:
                assert option.envvar == variable(name, option)
                assert option.envvar not in found
                found.add(option.envvar)
    assert "VAEDEPLOY_PROFILES" not in found
    assert {"VAEDEPLOY_EXPORT_KEEP_FP32", "VAEDEPLOY_VERIFY_REPORT", "VAEDEPLOY_COMPARE_OUT"} < found


def test_variables_are_read(vaedeploy, monkeypatch):
    monkeypatch.setenv("VAEDEPLOY_EXPORT_PRECISION", "int8")
    ended = vaedeploy("export", "demo")
    assert ended.code == 2
    assert "Error: Invalid value for the environment variable VAEDEPLOY_EXPORT_PRECISION: 'int8' is" in ended.err
    monkeypatch.setenv("VAEDEPLOY_PRESETS_JSON", "1")
    assert vaedeploy("presets").out.startswith("[")


def test_an_argument_overrules_a_variable(vaedeploy, monkeypatch, tmp_path):
    monkeypatch.setenv("VAEDEPLOY_EXPORT_VAE", str(tmp_path / "other"))
    assert f"there is no file or folder {tmp_path / 'other'}" in vaedeploy("export").err
    assert f"there is no file or folder {tmp_path / 'mine'}" in vaedeploy("export", tmp_path / "mine").err


def test_names_with_commas_between_them():
    with cli.make_context("vaedeploy", ["build", "b", "--profile", "t4,l4", "--profile", "a10"]) as parent:
        built = cli.commands["build"].make_context("build", ["b", "--profile", "t4, l4", "--profile", "a10"], parent)
    assert built.params["profiles"] == ("t4", "l4", "a10")


def test_a_comma_too_many(vaedeploy):
    ended = vaedeploy("build", "b", "--profile", "t4,")
    assert ended.code == 2
    assert "'t4,' has a name that is empty; write names with one comma between them" in ended.err


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
    ended = vaedeploy("export", "demo", "--scale", text)
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
        ("1.5M", 1_500_000),
        ("6000KiB", 6000 * 2**10),
        ("6000kB", 6 * 10**6),
        ("500M", 5 * 10**8),
        ("2Ti", 2 * 2**40),
        ("4g", 4 * 10**9),
        ("4 GB", 4 * 10**9),
        ("1MiB", 2**20),
    ],
)
def test_sizes_of_memory(text: str, size: int) -> None:
    assert MemorySize().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "4 GiB x", "4iB", "1e9", "G", "0.1", "9" * 400])
def test_what_is_no_size_of_memory(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"is not a number of bytes above 0; write it as 4G"):
        MemorySize().convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("6", "'6' is 6 bytes, and nothing is computed in so few; did you mean 6G?"),
        ("1", "'1' is 1 byte, and nothing is computed in so few; did you mean 1G?"),
        ("800", "'800' is 800 bytes, and nothing is computed in so few; did you mean 800M?"),
        ("600k", "'600k' is 600,000 bytes, and nothing is computed in so few; did you mean 600M?"),
        ("600000", "'600000' is 600,000 bytes, and nothing is computed in so few; write it as 4G (4 * 10^9) or 4GiB"),
    ],
)
def test_a_size_of_memory_without_its_unit(text: str, told: str) -> None:
    with pytest.raises(click.BadParameter) as failed:
        MemorySize().convert(text, None, None)
    assert failed.value.message.startswith(told)
