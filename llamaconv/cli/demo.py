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


@click.command("demo", short_help="Download, quantize and judge the bundled model.")
@click.option(
    "--out",
    type=PATH,
    metavar="DIR",
    show_default="a new temporary directory",
    help="Where the model and the artifacts go.",
)
@screened
def command(out: Path | None, screen: Screen) -> None:
    """Download the bundled trained Llama, quantize it in two modes, and judge what came out.

    A Hub on loopback serves it, and drops a connection on the way. Takes less than a minute on two cores, and neither
    a network nor a GPU.
    """
    from llamaconv.demo.run import run

    with if_interrupted(lambda: "what was finished stays."), screen.progress() as report:
        result = run(out, report).to_json()
    screen.result(result, _tables)


def _tables(result: Mapping[str, Any]) -> Iterator[RenderableType]:
    model, fetched = result["model"], result["download"]
    yield f"{fetched['repository']} at {fetched['commit'][:12]}: {plural(len(fetched['files']), 'file')}, " + (
        f"{size(fetched['fetched_bytes'])} downloaded, {plural(fetched['retries'], 'dropped connection')} survived"
    )
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
