"""``python -m vaedeploy``: the same as the ``vaedeploy`` command."""

from __future__ import annotations

from vaedeploy.cli import main

if __name__ == "__main__":
    main()
