"""``vaedeploy triton`` on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from command_line import Ended

from vaedeploy.system.installs import requirement


def test_it_prints_the_models_and_what_to_run(vaedeploy: Callable[..., Ended], bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "my models"
    ended = vaedeploy("triton", bundle, "-o", out)
    assert (ended.code, ended.out) == (0, f"{out}/tiny-decode\n{out}/tiny-encode\n")
    assert ended.err.endswith(
        f'Their Python needs vaedeploy: pip install "{requirement("cpu")}", or [cuda] or [tensorrt] for a GPU\n'
        f"To serve them, run: tritonserver --model-repository '{out}'\n"
    )
    ended = vaedeploy("triton", bundle, "-o", out)
    assert (ended.code, ended.out) == (2, "")
    assert "exists already. Replace it with --force" in ended.err
    ended = vaedeploy("triton", bundle, "-o", out, "--force", "--native")
    assert ended.code == 0
    assert "needs vaedeploy" not in ended.err


def test_as_json(vaedeploy: Callable[..., Ended], bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "models"
    told = json.loads(vaedeploy("triton", bundle, "-o", out, "--name", "mine", "--json").out)
    assert told.pop("seconds") > 0
    added = {"repository": str(out), "models": ["mine-decode", "mine-encode"], "error": None}
    inspected = json.loads(vaedeploy("inspect", bundle, "--json").out)
    del inspected["memory"]
    assert told == inspected | added
