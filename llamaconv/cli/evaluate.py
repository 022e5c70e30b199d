"""``llamaconv evaluate``: judge a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from llamaconv.cli import hub
from llamaconv.cli.hub import Source, cache_dir_option, fetched, require_hub_source
from llamaconv.cli.options import (
    DTYPES,
    FiniteRange,
    device_option,
    screened,
    seq_len_option,
    text,
    threads_option,
)
from llamaconv.cli.output import Screen
from llamaconv.cli.tables import facts, number, percent, size
from llamaconv.errors import GateError

if TYPE_CHECKING:
    from rich.table import Table


@click.command("evaluate", short_help="Judge a checkpoint, alone or against another.")
@click.argument("model", type=hub.source)
@click.option("--against", type=hub.source, metavar="SRC", help="Reference checkpoint, as a rule the dense source.")
@click.option(
    "--text",
    type=text,
    metavar="FILE|TOKENS",
    show_default="held-out documents of the built-in corpus",
    help="What to judge on: .txt, .jsonl, or token ids in .npy or .safetensors.",
)
@click.option("--samples", type=click.IntRange(min=1), show_default="all", metavar="N", help="Sequences.")
@seq_len_option
@device_option
@click.option(
    "--compute-dtype",
    type=click.Choice(["auto", *DTYPES]),
    default="float32",
    help="Of the arithmetic; auto follows the checkpoint.",
)
@threads_option
@click.option("--max-kl", type=FiniteRange(min=0), help="Gate: highest mean KL, in nats; exit 8 above.")
@click.option("--max-ppl-ratio", type=FiniteRange(min=0), help="Gate: highest perplexity ratio; exit 8 above.")
@cache_dir_option
@screened
def command(model: Source, against: Source | None, cache_dir: Path | None, screen: Screen, **settings: Any) -> None:
    """Measure the perplexity of MODEL and, with --against, how far it is from a reference.

    MODEL is a dense, GPTQ or LLM.int8 checkpoint. The mean KL divergence and the agreement on the most likely
    token are taken at every position. MODEL and SRC may be hf://org/name[@revision], which is downloaded first.
    """
    require_hub_source(model, against)
    from llamaconv.tasks.evaluate import EvaluateSettings, evaluate

    data = settings["text"]
    judged = fetched(model, cache_dir, screen, beside=against, data=data)
    reference = None if against is None else fetched(against, cache_dir, screen, beside=model, data=data)
    try:
        with screen.progress() as report:
            evaluation = evaluate(judged, EvaluateSettings(reference, **settings), report)
    except GateError as missed:
        if not screen.json:  # there the error holds the figures
            screen.result(cast("Mapping[str, Any]", missed.facts["evaluation"]), _tables)
        raise
    screen.result(evaluation.to_json(), _tables)


def _tables(figures: Mapping[str, Any]) -> Iterator[Table]:
    compared = figures["against"] is not None
    yield facts(
        (
            ("model", figures["model"]),
            ("against", figures["against"]),
            ("data", f"{figures['data']}, {figures['tokens']:,} tokens"),
            ("perplexity", number(figures.get("perplexity"), 6)),
            ("  reference", number(figures.get("reference_perplexity"), 6) if compared else None),
            ("  ratio", number(figures.get("ppl_ratio"), 6) if compared else None),
            ("mean KL", f"{number(figures.get('kl'))} nats" if compared else None),
            ("top-1 agreement", percent(figures.get("top1")) if compared else None),
            ("took", f"{figures['seconds']:.1f} s, {size(figures['peak_rss'])} of memory"),
        )
    )
