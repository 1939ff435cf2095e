"""What pytest loads from an installed vaedeploy: the option ``--vae-bundle`` and the fixture ``vae``.

Every run of pytest in the environment loads it, so it imports nothing else until a test asks for the fixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vaedeploy.runtime import VAE

NONE_NAMED = "no bundle is named: pytest --vae-bundle PATH, or vae_bundle = PATH in pytest's settings"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option and the setting."""
    group = parser.getgroup("vaedeploy")
    group.addoption(
        "--vae-bundle",
        action="append",
        metavar="PATH",
        help="A bundle that the fixture vae opens; give it again for each further one.",
    )
    parser.addini("vae_bundle", "Bundles that the fixture vae opens where --vae-bundle is not given.", type="paths")


def pytest_configure(config: pytest.Config) -> None:
    """Make the fixture, whose parameters are the bundles that were named."""
    bundles: list[str | None] = config.getoption("vae_bundle") or [str(path) for path in config.getini("vae_bundle")]

    @pytest.fixture(scope="session", params=bundles or [None], ids=str if bundles else ["no bundle"])
    def vae(request: pytest.FixtureRequest) -> Iterator[VAE]:
        """An open vaedeploy.VAE for each bundle that --vae-bundle or the settings name."""
        if request.param is None:
            pytest.skip(NONE_NAMED)
        from vaedeploy.errors import VaedeployError
        from vaedeploy.runtime import VAE

        try:
            opened = VAE(request.param)
        except VaedeployError as error:
            pytest.fail(str(error), pytrace=False)
        with opened:
            yield opened

    # A module, since pytest warns of a session's fixture that is the method of a class.
    fixtures = ModuleType("vaedeploy-fixtures")
    vars(fixtures)["vae"] = vae
    config.pluginmanager.register(fixtures, fixtures.__name__)
