"""``llamaconv quantize``: from a dense checkpoint to a quantized one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamaconv.cli import hub, options
from llamaconv.cli.hub import Source, cache_dir_option, fetched, require_hub_source
from llamaconv.cli.options import (
    DTYPES,
    PATH,
    FiniteRange,
    device_option,
    given,
    group_size,
    refuse,
    screened,
    seq_len_option,
    text,
    threads_option,
)
from llamaconv.cli.output import Screen, as_json
from llamaconv.cli.remains import remains
from llamaconv.cli.report_file import report_file
from llamaconv.cli.signals import if_interrupted
from llamaconv.cli.streams import emit
from llamaconv.cli.tables import facts, grid, number, percent, plural, size
from llamaconv.errors import printable
from llamaconv.quantizers.names import MODES
from llamaconv.tasks.settings import CALIBRATED_ONLY

if TYPE_CHECKING:
    from rich.console import RenderableType


@click.command("quantize", short_help="Quantize a checkpoint.")
@click.argument("source", metavar="SRC", type=hub.source)
@click.argument("out", metavar="DST", type=PATH)
@click.option("--mode", type=click.Choice(MODES), required=True, help="Method and width.")
@click.option("--group-size", type=group_size, default=128, metavar="N", help="Columns that share a scale; -1 for all.")
@click.option("--sym/--asym", "symmetric", default=True, help="Zero point in the middle of the codes, or fitted.")
@click.option("--act-order", is_flag=True, help="Quantize the columns with the largest inputs first.")
@click.option(
    "--damp",
    "damping",
    type=FiniteRange(0, 1),
    default=0.01,
    metavar="SHARE",
    help="Of the Hessian's mean diagonal, added to its diagonal.",
)
@click.option(
    "--scales",
    type=click.Choice(["search", "minmax"]),
    default="search",
    help="Scales of least error, or those that cover the whole range.",
)
@click.option(
    "--sweeps",
    type=click.IntRange(0, 100),
    default=3,
    metavar="N",
    help="Passes over scales and codes after GPTQ's walk; 0 is GPTQ as published.",
)
@click.option("--lm-head", is_flag=True, help="Quantize the output head too.")
@click.option(
    "--skip",
    type=text,
    multiple=True,
    metavar="GLOB",
    help="Leave matching layers dense, by full name; repeatable.",
)
@click.option(
    "--calibration",
    type=text,
    metavar="FILE",
    show_default="built-in corpus",
    help=".txt, .jsonl, or token ids in .npy or .safetensors.",
)
@click.option("--samples", type=click.IntRange(min=1), default=128, metavar="N", help="Calibration sequences.")
@seq_len_option
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, metavar="N", help="Of the documents' order.")
@device_option
@click.option(
    "--dtype", type=click.Choice(["keep", *DTYPES]), default="keep", help="Of what stays dense in the output."
)
@click.option(
    "--compute-dtype",
    type=click.Choice(["auto", *DTYPES]),
    default="auto",
    help="Of the arithmetic; auto follows the checkpoint.",
)
@threads_option
@click.option("--max-shard-size", type=options.size, default="5GB", metavar="SIZE", help="Of a weight file.")
@click.option(
    "--fallback",
    type=click.Choice(["rtn"]),
    help="Round to nearest where a Hessian cannot be factored; without it, such a layer ends the run.",
)
@click.option(
    "--layout",
    type=click.Choice(["hf", "lit-llama"]),
    default="hf",
    help="Of DST. lit-llama's loader needs --group-size -1 and --lm-head.",
)
@click.option(
    "--size", type=text, metavar="NAME", show_default="7B, 13B, 30B or 65B, by the width", help="lit-llama's folder."
)
@click.option("--overwrite", is_flag=True, help="Replace DST if it holds something.")
@click.option("--dry-run", is_flag=True, help="Print the plan with its bytes, memory and FLOPs; write nothing.")
@click.option("--report", "report_path", type=PATH, metavar="FILE", help="Write figures and timings as JSON.")
@cache_dir_option
@screened
def command(
    source: Source,
    out: Path,
    dry_run: bool,
    report_path: Path | None,
    cache_dir: Path | None,
    screen: Screen,
    **settings: Any,
) -> None:
    """Quantize the checkpoint SRC into the directory DST, which appears when it is whole.

    SRC is a directory, a weight file or an index.json, in any layout, or hf://org/name[@revision], which is
    downloaded first (with --dry-run too). One decoder block is in memory at a time.
    """
    require_hub_source(source)
    _require_sense(out, dry_run, report_path, settings)
    from llamaconv.tasks.quantize import QuantizeSettings, plan, quantize

    chosen, data = QuantizeSettings(**settings), settings["calibration"]
    if dry_run:
        planned = plan(fetched(source, cache_dir, screen, data=data), out, chosen)
        emit(as_json(planned.to_json()) if screen.json else printable(planned.describe()))
        return
    with report_file(report_path) as write_report, if_interrupted(remains(out)):
        path = fetched(source, cache_dir, screen, out=out, overwrite=settings["overwrite"], data=data)
        with screen.progress() as report:
            result = quantize(path, out, chosen, report).to_json()
        write_report(as_json(result) + "\n")
    screen.result(result, _tables)


def _require_sense(out: Path, dry_run: bool, report_path: Path | None, settings: Mapping[str, Any]) -> None:
    """Refuse options that have no effect together."""
    context = click.get_current_context()
    if settings["size"] is not None and settings["layout"] != "lit-llama":
        refuse("Without effect but with --layout lit-llama: --size.")
    if settings["mode"] == "llm.int8":
        idle = [
            "/".join((*option.opts, *option.secondary_opts))
            for option in context.command.params
            if option.name in (*CALIBRATED_ONLY, "device") and given(option.name)
        ]
        if idle:
            refuse(f"Without effect with --mode llm.int8: {', '.join(idle)}.")
    if report_path is None:
        return
    if dry_run:
        refuse("--report has nothing to report of a --dry-run.")
    if report_path.resolve().is_relative_to(out.resolve()):
        refuse("--report lies inside DST, which holds the checkpoint and nothing else.")


def _tables(result: Mapping[str, Any]) -> Iterator[RenderableType]:
    layers = result["layers"]
    kinds = list(dict.fromkeys(layer["name"].rpartition(".")[2] for layer in layers))
    yield grid(
        ("layer", "count", "mean error", "worst error", "damping raised", "fallback"),
        [_kind(kind, [one for one in layers if one["name"].rpartition(".")[2] == kind]) for kind in kinds],
    )
    loads = [name for name, verdict in result["runtimes"].items() if verdict == "yes"]
    yield ""
    yield facts(
        (
            ("wrote", f"{result['out']}, {size(result['bytes'])} in {plural(result['shards'], 'shard')}"),
            ("mode", f"{result['mode']}, {result['bits_per_weight']:.3f} bits per quantized weight"),
            ("quantized", f"{percent(result['share_quantized'])} of the blocks' weights"),
            ("loads in", ", ".join(loads) or None),
            *((f"not in {name}", why) for name, why in result["runtimes"].items() if why != "yes"),
            ("took", f"{result['seconds']:.1f} s, {size(result['peak_rss'])} of memory"),
        )
    )


def _kind(kind: str, layers: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    errors = [layer["error"] for layer in layers]
    return (
        kind,
        str(len(layers)),
        number(sum(errors) / len(errors)),
        number(max(errors)),
        str(sum(layer["damping_raises"] > 0 for layer in layers)),
        str(sum(layer["fallback"] is not None for layer in layers)),
    )
