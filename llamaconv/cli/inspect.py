"""``llamaconv inspect``: what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamaconv.cli.options import PATH, screened
from llamaconv.cli.output import Screen
from llamaconv.cli.tables import amount, facts, grid, size

if TYPE_CHECKING:
    from rich.console import RenderableType


@click.command("inspect", short_help="Say what a checkpoint holds.")
@click.argument("path", type=PATH)
@click.option("--tensors", is_flag=True, help="List every tensor.")
@screened
def command(path: Path, tensors: bool, screen: Screen) -> None:
    """Say what the checkpoint PATH holds, from its headers alone: size is no matter.

    PATH is a directory, a model.safetensors or its index.json.
    """
    from llamaconv.tasks.inspect import inspect

    screen.result(inspect(path).to_json(), _tables)
