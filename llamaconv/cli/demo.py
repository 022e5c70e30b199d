"""``llamaconv demo``: the whole road on the bundled model."""

from __future__ import annotations

from pathlib import Path

import click

from llamaconv.cli.options import PATH, screened
from llamaconv.cli.output import Screen


@click.command("demo", short_help="Quantize and judge the bundled model.")
@click.option(
    "--out",
    type=PATH,
    metavar="DIR",
    show_default="a temporary directory",
    help="Where to put the artifacts.",
)
@screened
def command(out: Path | None, screen: Screen) -> None:
    """Inspect the bundled trained Llama, quantize it in two modes, and judge what came out.

    Takes less than a minute on two cores, and neither a network nor a GPU.
    """
    from llamaconv.demo import run

    with screen.progress() as report:
        result = run(out, report)
    screen.result(result.to_json(), _tables)
