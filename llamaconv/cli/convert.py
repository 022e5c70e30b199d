"""``llamaconv convert``: from one layout, format or dtype to another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamaconv.cli import hub, options
from llamaconv.cli.hub import Source, cache_dir_option, fetched, require_hub_source
from llamaconv.cli.options import DTYPES, PATH, FiniteRange, screened, text
from llamaconv.cli.output import Screen, as_json
from llamaconv.cli.remains import remains
from llamaconv.cli.signals import if_interrupted
from llamaconv.cli.streams import emit
from llamaconv.cli.tables import facts, grid, number, plural, size

if TYPE_CHECKING:
    from rich.console import RenderableType

_SOURCES = ("hf", "litgpt", "litgpt-legacy", "lit-llama", "meta")
_TARGETS = ("hf", "litgpt", "lit-llama", "meta")


@click.command("convert", short_help="Convert a checkpoint to another layout, format or dtype.")
@click.argument("source", metavar="SRC", type=hub.source)
@click.argument("out", metavar="DST", type=PATH)
@click.option("--to", type=click.Choice(_TARGETS), required=True, help="Layout of the output.")
@click.option(
    "--from", "layout", type=click.Choice(_SOURCES), show_default="told by the tensors' names", help="Layout of SRC."
)
@click.option(
    "--format",
    type=click.Choice(["safetensors", "torch"]),
    default="safetensors",
    help="Of weight files with --to hf; the other layouts have torch files.",
)
@click.option("--dtype", type=click.Choice(["keep", *DTYPES]), default="keep", help="Of floating-point tensors.")
@click.option("--allow-overflow", is_flag=True, help="Accept values that become infinite or zero in --dtype.")
@click.option("--dequantize", is_flag=True, help="Make dense weights of quantized ones.")
@click.option(
    "--tensor-parallel", type=click.IntRange(1, 256), default=1, metavar="N", help="Files that --to meta splits over."
)
@click.option(
    "--embedding-split",
    type=click.Choice(["rows", "columns"]),
    show_default="rows for a vocabulary of Llama 3's size",
    help="How those files share the embedding: rows as Llama 3, columns as Llama 1 and 2.",
)
@click.option(
    "--size", type=text, metavar="NAME", show_default="7B, 13B, 30B or 65B, by the width", help="lit-llama's folder."
)
@click.option("--max-shard-size", type=options.size, metavar="SIZE", show_default="5GB", help="Of a file with --to hf.")
@click.option("--rope-theta", type=FiniteRange(0, min_open=True), help="Rotary base of SRC, if its files do not say.")
@click.option("--rope-factor", type=FiniteRange(0, min_open=True), help="Rotary scaling factor of SRC, likewise.")
@click.option("--max-positions", type=click.IntRange(1), metavar="N", help="Longest sequence of SRC, likewise.")
@click.option("--norm-eps", type=FiniteRange(0, min_open=True), help="Epsilon of the norms of SRC, likewise.")
@click.option("--vocab-size", type=click.IntRange(1), metavar="N", help="Vocabulary of SRC without padding, likewise.")
@click.option("--heads", type=click.IntRange(1), metavar="N", help="Query heads of SRC, likewise.")
@click.option("--verify", is_flag=True, help="Read the output back; compare all tensors, and logits at long positions.")
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    show_default="2",
    metavar="N",
    help="Tensors at a time, in the memory of the largest. The result is the same for any number.",
)
@click.option("--overwrite", is_flag=True, help="Replace DST if it holds something.")
@click.option("--dry-run", is_flag=True, help="Print the table of rules with shapes, bytes and memory; write nothing.")
@cache_dir_option
@screened
def command(source: Source, out: Path, dry_run: bool, cache_dir: Path | None, screen: Screen, **settings: Any) -> None:
    """Convert the checkpoint SRC into the directory DST, which appears when it is whole.

    SRC is a directory, a weight file or an index.json, in any layout, or hf://org/name[@revision], which is
    downloaded first (with --dry-run too). One tensor is in memory at a time. With --to hf, a source in that layout is
    copied: to other shards, between safetensors and torch files, to another dtype.
    """
    require_hub_source(source)
    from llamaconv.tasks.convert import ConvertSettings, convert, plan

    chosen = ConvertSettings(**settings)
    if dry_run:
        planned = plan(fetched(source, cache_dir, screen), out, chosen)
        if screen.json:
            emit(as_json(planned.to_json()))
        else:
            screen.result(planned.to_json(), _plan_tables)
        return
    with if_interrupted(remains(out)):
        path = fetched(source, cache_dir, screen, out=out, overwrite=settings["overwrite"])
        with screen.progress() as report:
            result = convert(path, out, chosen, report).to_json()
    screen.result(result, _tables)


def _plan_tables(planned: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield grid(
        ("from", "operation", "to", "size"),
        [
            (_specs(step["reads"]), step["operation"], _specs(step["writes"]), size(step["bytes"]))
            for step in planned["steps"]
        ],
        left=3,
    )
    yield ""
    yield facts(
        (
            ("writes", f"{size(planned['output_bytes'])} in {plural(len(planned['shards']), 'file')}"),
            ("needs", f"{size(planned['peak_bytes'])} of memory"),
            *(("note", note) for note in planned["notes"]),
        )
    )


def _specs(specs: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(f"{spec['name']} {spec['shape']}" for spec in specs)


def _tables(result: Mapping[str, Any]) -> Iterator[RenderableType]:
    difference = result["logits_difference"]
    logits = "no logits" if difference is None else f"logits differ by at most {number(difference)} of their size"
    checked = f"every tensor; {logits}" if result["verified"] else None
    yield facts(
        (
            ("wrote", f"{result['out']}, {size(result['bytes'])} in {plural(len(result['files']), 'file')}"),
            ("layout", f"{result['layout']}, from {result['source_layout']}"),
            ("verified", checked),
            *(("lost", loss) for loss in result["losses"]),
            ("took", f"{result['seconds']:.1f} s, {size(result['peak_rss'])} of memory"),
        )
    )
