"""Commands that tell what is known and what is here."""

from __future__ import annotations

from vaedeploy import terminal
from vaedeploy.cli.group import cli, json_option


@cli.command()
@json_option
def presets(as_json: bool) -> None:
    """List the VAEs that are known by name.

    \b
    Example:
      vaedeploy presets
    """
    from vaedeploy.overview import preset_rows
    from vaedeploy.preset import presets as known

    if as_json:
        terminal.show_json(list(known().values()))
    else:
        terminal.show_table((), preset_rows(known().values()))


@cli.command()
@json_option
def doctor(as_json: bool) -> None:
    """Tell what is installed and what would run here.

    That is each package's version, which backends would answer and why not the others, and what to install.

    \b
    Example:
      vaedeploy doctor
    """
    from vaedeploy.doctor import diagnose
    from vaedeploy.overview import diagnosis_rows

    diagnosis = diagnose()
    if as_json:
        terminal.show_json(diagnosis)
    else:
        terminal.show_table((), diagnosis_rows(diagnosis))
    for warning in diagnosis.warnings:
        terminal.say(f"Warning: {warning}")
