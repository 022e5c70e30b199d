"""``llamaconv demo``: the whole road on the bundled model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamaconv.cli.options import PATH, screened
from llamaconv.cli.output import Screen
from llamaconv.cli.signals import if_interrupted
from llamaconv.cli.tables import amount, facts, grid, number, percent, plural, size

if TYPE_CHECKING:
    from rich.console import RenderableType


@click.command("demo", short_help="Quantize and judge the bundled model.")
@click.option(
    "--out", type=PATH, metavar="DIR", show_default="a new temporary directory", help="Where the artifacts go."
)
@screened
def command(out: Path | None, screen: Screen) -> None:
    """Inspect the bundled trained Llama, quantize it in two modes, and judge what came out.

    Takes less than a minute on two cores, and neither a network nor a GPU.
    """
    from llamaconv.demo import run

    with if_interrupted(lambda: "what was finished stays."), screen.progress() as report:
        result = run(out, report).to_json()
    screen.result(result, _tables)


def _tables(result: Mapping[str, Any]) -> Iterator[RenderableType]:
    model = result["model"]
    yield f"{model['family']}: {amount(model['parameters'])} parameters, {plural(model['layers'], 'layer')}; " + (
        f"judged on {result['tokens']:,} held-out tokens"
    )
    yield ""
    yield grid(
        ("", "size", "bits/weight", "perplexity", "mean KL", "top-1", "seconds", "peak memory"),
        [
            (
                row["name"],
                size(row["bytes"]),
                f"{row['bits_per_weight']:.2f}",
                f"{row['perplexity']:.3f}",
                number(row["kl"]),
                percent(row["top1"]),
                f"{row['seconds']:.1f}",
                size(row["peak_rss"]),
            )
            for row in result["rows"]
        ],
    )
    yield ""
    yield facts(("wrote" if place == 0 else "", path) for place, path in enumerate(result["artifacts"]))
