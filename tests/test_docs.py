from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from llamaconv import errors
from llamaconv.cli import app

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def commands() -> dict[str, click.Command]:
    """Every command by its name."""
    with click.Context(app) as context:
        found = {name: app.get_command(context, name) for name in app.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def options() -> list[tuple[str, str]]:
    """Every option of every command, in each of its spellings."""
    return [
        (name, spelling)
        for name, command in {"": app, **commands()}.items()
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for spelling in (*parameter.opts, *parameter.secondary_opts)
    ]


@pytest.mark.parametrize("name", commands())
def test_every_command_is_documented(name: str) -> None:
    """The README shows how it is called."""
    assert re.search(rf"\bllamaconv {name}\b", README)


@pytest.mark.parametrize(("name", "spelling"), options())
def test_every_option_is_documented(name: str, spelling: str) -> None:
    """The README names it, in full."""
    assert re.search(rf"(?<![\w-]){re.escape(spelling)}(?![\w-])", README), f"{name} {spelling}"


@pytest.mark.parametrize(("name", "command"), commands().items())
def test_everything_has_help(name: str, command: click.Command) -> None:
    """Commands and options explain themselves in sentences."""
    assert command.help
    assert command.short_help is not None
    assert command.short_help.endswith(".")
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts}"
            assert parameter.help.endswith("."), f"{name} {parameter.opts}"


def test_every_exit_code_is_documented() -> None:
    """The README's table has a row for each code of an error class, for success and for both signals."""
    classes = {getattr(errors, name) for name in errors.__all__ if name.endswith("Error")}
    codes = {0, 130, 143} | {kind.exit_code for kind in classes}
    assert {int(code) for code in re.findall(r"^\| *`?(\d+)`? *\|", README, re.MULTILINE)} >= codes
