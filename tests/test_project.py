"""What surrounds the package agrees with it: workflows, forms for issues, the citation, the makefile."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from places import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HOME = PROJECT["urls"]["Homepage"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def runs(workflow: Any) -> list[str]:
    """The commands of its steps."""
    return [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]


def test_the_workflow_runs_ci_run_on_each_python_that_is_supported() -> None:
    workflow = read(ROOT / ".github" / "workflows" / "ci.yml")
    pythons = workflow["jobs"]["run"]["strategy"]["matrix"]["python"]
    named = [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", name)]
    assert pythons == named
    assert PROJECT["requires-python"] == f">={pythons[0]}"
    assert runs(workflow)[0] == ".ci/run"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_what_is_there(path: Path) -> None:
    workflow = read(path)
    strategies = [job.get("strategy", {}) for job in workflow["jobs"].values()]
    matrix = [row for strategy in strategies for row in strategy.get("matrix", {}).get("include", [])]
    found = runs(workflow)
    assert found
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for command in found:
        if command.startswith("make "):
            for row in matrix or [{}]:
                filled = re.sub(r"\$\{\{ matrix\.(\w+) \}\}", lambda name, row=row: row[name[1]], command)  # type: ignore[misc]
                assert filled.split()[1] in targets, filled
        elif command.startswith("."):
            assert (ROOT / command).is_file()


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_forms_have_what_is_asked_of_them(path: Path) -> None:
    form = read(path)
    assert {"name", "description", "body"} <= form.keys()
    asked = [field for field in form["body"] if field["type"] != "markdown"]
    assert any(field.get("validations", {}).get("required") for field in asked)
    assert len({field["id"] for field in asked}) == len(asked)
    assert all(field["attributes"]["label"] for field in asked)


def test_the_address_of_the_project_is_one() -> None:
    """In pyproject.toml, and where a file needs it written out."""
    assert read(ROOT / "CITATION.cff")["repository-code"] == HOME
    assert read(ROOT / "CITATION.cff")["license"] == PROJECT["license"]
    assert all(url.startswith(HOME) for url in PROJECT["urls"].values())
    for link in read(ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml")["contact_links"]:
        assert link["url"].startswith(HOME)
