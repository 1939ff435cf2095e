"""What documents, docstrings and scripts name is there: modules, names, commands, options, files and make targets."""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import click
import pytest
from command_line import parse
from places import ROOT

from vaedeploy.cli import cli
from vaedeploy.cli.tables.known import NEVER_RUN
from vaedeploy.engines.profile import profiles
from vaedeploy.runtime.backends import BACKENDS


def files(*patterns: str) -> dict[str, Path]:
    """By their path in the repository."""
    found = {path for pattern in patterns for path in ROOT.glob(pattern)}
    return {path.relative_to(ROOT).as_posix(): path for path in sorted(found)}


DOCUMENTS = files("*.md", "docs/*.md", "profiles/*.md", "vaedeploy/**/*.md")
SCRIPTS = files("benchmarks/**/*.py", "examples/*.py", "tools/**/*.py")
TEXTS = {**DOCUMENTS, **SCRIPTS, **files("Makefile", "pyproject.toml", "constraints.txt", "vaedeploy/**/*.py")}
MAIN = 'if __name__ == "__main__":'


def fenced(text: str, *languages: str) -> list[str]:
    """The blocks of a Markdown document in one of these languages."""
    return [
        block
        for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        if language in languages
    ]


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------- imports of the package


def missing_imports(tree: ast.AST) -> list[str]:
    """What is imported from the package by code and is not there."""
    missing = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wanted = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            wanted = [(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        missing += [f"{module}: {name}" for module, name in wanted if ours(module) and not is_there(module, name)]
    return missing


def ours(module: str) -> bool:
    return module.partition(".")[0] == "vaedeploy"


def is_there(module: str, name: str | None) -> bool:
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if ours(error.name or ""):
            return False
        raise
    return name is None or hasattr(found, name) or is_there(f"{module}.{name}", None)


def programs(tree: ast.AST) -> list[ast.AST]:
    """Programs for other processes, which code holds as strings; of one with gaps to be filled, its import lines."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            lines = re.findall(r"^ *((?:from|import) vaedeploy[^;\n]*)", node.value, re.MULTILINE)
            for line in lines:
                try:
                    found.append(ast.parse(line))
                except SyntaxError:  # a sentence that begins so
                    continue
    return found


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("import vaedeploy.runtime", []),
        ("import vaedeploy.runtimes", ["vaedeploy.runtimes: None"]),
        ("from vaedeploy import VAE, vae", ["vaedeploy: vae"]),
        ("from vaedeploy.runtime import cuda, VAE", []),
        ("def late():\n    from vaedeploy.pipeline import export, exprot", ["vaedeploy.pipeline: exprot"]),
        ("PROGRAM = '''\nfrom vaedeploy.runtim import VAE\n'''", ["vaedeploy.runtim: VAE"]),
        ("import numpy.nothing, vaedeployed", []),
    ],
)  # fmt: skip
def test_a_missing_import_is_found(line: str, missing: list[str]) -> None:
    tree = ast.parse(line)
    assert [name for each in (tree, *programs(tree)) for name in missing_imports(each)] == missing


@pytest.mark.parametrize("script", SCRIPTS)
def test_imports_of_scripts(script: str) -> None:
    tree = ast.parse(read(SCRIPTS[script]))
    assert [name for each in (tree, *programs(tree)) for name in missing_imports(each)] == []


PAGES = {
    "tools/write_cli_docs.py": "docs/cli.md",
    "tools/write_families_docs.py": "docs/families.md",
    "tools/write_python_docs.py": "docs/python.md",
    "tools/write_support_docs.py": "docs/support.md",
}
SUPPORT = runpy.run_path(str(ROOT / "tools" / "write_support_docs.py"))


def test_every_page_that_a_script_writes_is_known() -> None:
    assert PAGES.keys() == files("tools/write_*_docs.py").keys()


@pytest.mark.parametrize("script", PAGES)
def test_pages_that_scripts_write_are_current(script: str) -> None:
    page = runpy.run_path(str(ROOT / script))
    assert read(ROOT / PAGES[script]) == page["render"](), f"run: python {script}"


@pytest.mark.parametrize("document", SUPPORT["SUMMARIES"], ids=lambda path: path.name)
def test_the_table_of_backends_is_current(document: Path) -> None:
    text = read(document)
    assert text == SUPPORT["with_summary"](text), "run: python tools/write_support_docs.py"


def test_what_doctor_says_of_backends_that_never_ran_is_what_is_recorded() -> None:
    ran = {record["backend"] for record in SUPPORT["said"](SUPPORT["records"](), "run")}
    assert set(NEVER_RUN) == set(BACKENDS) - ran


def test_records_of_what_ran_name_what_is_there() -> None:
    for record in SUPPORT["records"]():
        assert record["backend"] in BACKENDS
        assert (ROOT / record["record"]).is_file(), record["record"]
        assert set(SUPPORT["capabilities"](record)) <= {kind.compute_capability for kind in profiles().values()}
    for record in SUPPORT["around"]():
        assert (ROOT / record["record"]).is_file(), record["record"]
        target = re.match(r"make (\S+?),?( |$)", record["by"])
        assert target is not None
        assert target[1] in make_targets()


def test_a_record_says_the_stages_before_its_own_and_none_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page of the day on which an engine passes on its GPU."""
    here = {"precision": "fp16", "date": "2027-01-02", "with": "-", "by": "-", "record": "README.md"}
    met = {"backend": "tensorrt-rtx", "on": "RTX 4090", "capability": "8.9", "stage": "run", **here}
    for stage, passed in (("run", "**not yet**"), ("verified", "RTX 4090")):
        monkeypatch.setitem(SUPPORT["summary"].__globals__, "records", lambda: [{**met, "stage": stage}])  # noqa: B023
        row = "| `tensorrt-rtx` | compute capability 8.9 | RTX 4090 | "
        assert f"{row}{passed} |\n" in SUPPORT["summary"]()
        assert f"{stage} on RTX 4090, 2027-01-02 | not yet | not yet |\n| 9.0 |" in SUPPORT["kinds"]()


def test_what_is_to_be_known_of_a_record_stands_in_each_table(monkeypatch: pytest.MonkeyPatch) -> None:
    record = {
        "backend": "tensorrt-rtx",
        "on": "RTX 4090",
        "capability": "8.9",
        "stage": "verified",
        "date": "2027-01-02",
    }
    monkeypatch.setitem(SUPPORT["summary"].__globals__, "records", lambda: [record | {"caveat": "once"}])
    assert "| compute capability 8.9 | RTX 4090 (once) | RTX 4090 (once) |\n" in SUPPORT["summary"]()
    assert "verified on RTX 4090 (once), 2027-01-02" in SUPPORT["kinds"]()


WITH_PYTHON = [name for name, path in DOCUMENTS.items() if fenced(read(path), "python")]


@pytest.mark.parametrize("document", WITH_PYTHON)
def test_python_of_documents(document: str) -> None:
    for block in fenced(read(DOCUMENTS[document]), "python"):
        if block.startswith(">>>"):
            block = doctest.script_from_examples(block)
        compile(block, document, "exec")
        assert missing_imports(ast.parse(block)) == []


# ------------------------------------------------------------------------------------- sentences that the tool prints


def test_the_sentences_of_troubleshooting_are_printed_somewhere() -> None:
    """What is between the marks for what varies is in a message of the package, letter by letter."""
    pieces = [
        "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
        if isinstance(node, ast.JoinedStr)
        else node.value
        for path in files("vaedeploy/**/*.py").values()
        for node in ast.walk(ast.parse(read(path)))
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
    ]
    said = "\n".join(pieces)
    blocks = fenced(read(ROOT / "docs" / "troubleshooting.md"), "text")
    wanted = [part.strip() for line in "".join(blocks).splitlines() for part in line.split("…")]
    assert len(wanted) > 20
    assert [part for part in wanted if part not in said] == []


# ------------------------------------------------------------------------------------------------- vaedeploy ...


def commands(text: str) -> list[str]:
    """Command lines of a document, without their comments, variables and ``vaedeploy``."""
    lines = "\n".join(fenced(text, "bash", "sh", "console")).replace("\\\n", " ").splitlines()
    found = [re.match(r"(?:\$ )?(?:[A-Z_]+=\S+ )*vaedeploy (.+)", line.partition(" #")[0]) for line in lines]
    return [match[1] for match in found if match]


WITH_COMMANDS = [name for name, path in DOCUMENTS.items() if commands(read(path))]


@pytest.mark.parametrize("document", WITH_COMMANDS)
def test_commands_of_documents_parse(document: str) -> None:
    for command in commands(read(DOCUMENTS[document])):
        parse(command)


def test_a_command_that_does_not_parse_is_found() -> None:
    assert {"README.md", "docs/compare.md", "docs/tensorrt.md"} <= set(WITH_COMMANDS)
    (command,) = commands("```bash\n# vaedeploy\nA=1 vaedeploy build \\\n  demo --profil x   # it\n```\n")
    with pytest.raises(click.UsageError, match="No such option '--profil'"):
        parse(command)


def options_of(command: str) -> set[str]:
    return {name for option in cli.commands[command].params for name in (*option.opts, *option.secondary_opts)}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_in_sentences_exist(document: str) -> None:
    """`vaedeploy build BUNDLE --profile NAME`, where a command may be named without its arguments."""
    for span in re.findall(r"`vaedeploy ([a-z][^`]*)`", read(DOCUMENTS[document])):
        name, *words = span.split()
        assert name in cli.commands, span
        assert {word for word in words if word.startswith("-")} <= options_of(name) | {"--help"}, span


# ------------------------------------------------------------------------- python benchmarks/X.py, python tools/X.py


NAMED_SCRIPT = re.compile(
    r"(?:python|PYTHON\)|python\)) ((?:benchmarks|examples|tools)/[\w./]*\w|-m (?:benchmarks|tools)[\w.]*)([^`#;\n]*)"
)
NAMED_FILE = re.compile(r"\b((?:benchmarks|examples|tools)/[\w./-]*\w)")

HELP = """
import contextlib, io, json, runpy, sys
from pathlib import Path
told = {}
plain = sys.path[:]
for script in map(Path, sys.argv[1:]):
    sys.argv = [str(script), "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        if script.name == "__main__.py":  # python -m benchmarks.X
            sys.path[:] = plain
            runpy.run_module(".".join(script.parent.parts), run_name="__main__", alter_sys=True)
        else:
            sys.path[:] = [str(script.parent), *plain[1:]]
            # Without argparse a script would begin its work.
            runpy.run_path(str(script), run_name="__main__" if "argparse" in script.read_text() else "imported")
    told[str(script)] = out.getvalue()
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    """What ``--help`` of each script prints, all of them run in one process; of one without options, nothing."""
    runnable = [name for name, path in SCRIPTS.items() if MAIN in read(path) or path.name == "__main__.py"]
    command = [sys.executable, "-c", HELP, *runnable]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_every_script_tells_its_options(helps: dict[str, str]) -> None:
    assert len(helps) > 8
    for script, told in helps.items():
        if "add_argument" in read(SCRIPTS[script]):
            assert told.startswith("usage: "), script


def script_file(named: str) -> str:
    """``benchmarks/X.py``, ``benchmarks/X`` or ``-m benchmarks.X`` as the file that is run."""
    path = named.removeprefix("-m ").replace(".", "/") if named.startswith("-m ") else named
    return next((name for name in (path, f"{path}.py", f"{path}/__main__.py") if name in SCRIPTS), path)


def named_scripts(text: str) -> list[tuple[str, set[str]]]:
    found = re.findall(NAMED_SCRIPT, text.replace("\\\n", " "))
    return [(script_file(name), set(re.findall(r"(?<![\w-])--[\w-]+", rest))) for name, rest in found]


NAMING = [name for name, path in TEXTS.items() if named_scripts(read(path))]


@pytest.mark.parametrize("text", NAMING)
def test_named_scripts_exist(text: str) -> None:
    for script, _ in named_scripts(read(TEXTS[text])):
        assert script in SCRIPTS, f"{text} names {script}"


@pytest.mark.slow
@pytest.mark.parametrize("text", NAMING)
def test_named_scripts_take_the_options(text: str, helps: dict[str, str]) -> None:
    for script, options in named_scripts(read(TEXTS[text])):
        told = set(re.findall(r"--[\w-]+", helps[script]))
        assert options <= told | {"--help"}, f"{text} gives {script} options that it does not have"


def test_scripts_are_named() -> None:
    """What the pattern finds, so that it cannot come to find nothing."""
    assert {"Makefile", "docs/performance.md", "docs/fidelity.md", "tools/write_cli_docs.py"} <= set(NAMING)
    line = "`PYTHONPATH=. env/bin/python benchmarks/fidelity.py --vae demo`, `--time`, `python -m benchmarks.swaps --x`"
    assert named_scripts(line) == [("benchmarks/fidelity.py", {"--vae"}), ("benchmarks/swaps.py", {"--x"})]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_files_of_benchmarks_and_tools_exist(document: str) -> None:
    for name in re.findall(NAMED_FILE, read(DOCUMENTS[document])):
        assert (ROOT / name).exists(), f"{document} names {name}"


# ------------------------------------------------------------------------------------------------------ make TARGET


def make_targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", read(ROOT / "Makefile"), re.MULTILINE))


def named_targets(text: str) -> set[str]:
    lines = "\n".join(fenced(text, "bash"))
    return set(re.findall(r"[`(]make ([\w-]+)[`)]", text) + re.findall(r"^make ([\w-]+)", lines, re.MULTILINE))


@pytest.mark.parametrize("text", [name for name, path in TEXTS.items() if named_targets(read(path))])
def test_named_make_targets_exist(text: str) -> None:
    assert named_targets(read(TEXTS[text])) <= make_targets()


def test_every_make_target_is_known_to_make_itself() -> None:
    """`make help` lists them, and the first line of the Makefile names those that are no files."""
    text = read(ROOT / "Makefile")
    phony = set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split())  # type: ignore[index]
    assert phony == make_targets()
    described = set(re.findall(r"^([\w-]+):.*## ", text, re.MULTILINE))
    assert described == make_targets()


# -------------------------------------------------------------------------------- what only a GPU can settle, and where


def test_assumptions_name_tests_that_exist() -> None:
    folder = ROOT / "tests" / "gpu"
    tests = {
        letter: set(re.findall(r"^def (test_\w+)", read(folder / name), re.MULTILINE))
        for letter, name in (("C", "test_onnxruntime_cuda.py"), ("E", "test_gpu_engines.py"), ("S", "test_services.py"))
    }
    named = re.findall(r"\b([CES](?:, [CES])*)::(test_\w+)", read(folder / "ASSUMPTIONS.md"))
    assert len(named) > 20
    missing = [(letter, test) for letters, test in named for letter in letters.split(", ") if test not in tests[letter]]
    assert not missing
