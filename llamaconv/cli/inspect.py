"""``llamaconv inspect``: what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamaconv.cli import hub
from llamaconv.cli.hub import Source, cache_dir_option, fetched, require_hub_source
from llamaconv.cli.options import screened
from llamaconv.cli.output import Screen
from llamaconv.cli.tables import amount, facts, grid, percent, plural, size

if TYPE_CHECKING:
    from rich.console import RenderableType


@click.command("inspect", short_help="Say what a checkpoint holds.")
@click.argument("path", type=hub.source)
@click.option("--tensors", is_flag=True, help="List every tensor.")
@cache_dir_option
@screened
def command(path: Source, tensors: bool, cache_dir: Path | None, screen: Screen) -> None:
    """Say what the checkpoint PATH holds, from its headers alone: size is no matter.

    PATH is a directory, a weight file or an index.json, in any layout, or hf://org/name[@revision], which is
    downloaded first, whole.
    """
    require_hub_source(path)
    from llamaconv.tasks.inspect import inspect

    screen.result(inspect(fetched(path, cache_dir, screen)).to_json(tensors=tensors), _tables)


def _tables(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    shards, faults = found["shards"], found["faults"]
    yield facts(
        (
            ("path", found["path"]),
            ("layout", _layout(found)),
            ("family", _family(found)),
            ("shape", _shape(found)),
            ("parameters", "unknown" if found["parameters"] is None else amount(found["parameters"])),
            ("tensors", f"{size(found['bytes'])} in {plural(len(shards), 'shard')}"),
            ("dtypes", ", ".join(f"{name} {size(stored)}" for name, stored in found["dtypes"].items())),
            ("quantization", _quantization(found["quantization"])),
            ("output head", _head(found["tied"], found["head_stored"])),
            (_description(found), _agreement(found["compared"], faults)),
            *(("", fault) for fault in faults),
        )
    )
    if len(shards) > 1:
        yield ""
        yield grid(
            ("shard", "tensors", "size"),
            [(shard["file"], f"{shard['tensors']:,}", size(shard["bytes"])) for shard in shards],
        )
    if "tensors" in found:
        yield ""
        yield grid(
            ("tensor", "dtype", "shape", "size"),
            [
                (tensor["name"], tensor["dtype"], str(tensor["shape"]), size(tensor["bytes"]))
                for tensor in found["tensors"]
            ],
            left=2,
        )


def _description(found: Mapping[str, Any]) -> str:
    return found["description"] or ("description" if found["layout"] == "lit-llama" else "config.json")


def _layout(found: Mapping[str, Any]) -> str | None:
    split = f", split over {found['ranks']} files" if found["ranks"] > 1 else ""
    return found["layout"] and f"{found['layout']}{split}"


def _family(found: Mapping[str, Any]) -> str | None:
    named = ", ".join(found["architectures"] or ())
    kind = found["family"] or (found["model_type"] and f"{found['model_type']} (no family of ours)")
    return kind and (f"{kind}, {named}" if named else kind)


def _shape(found: Mapping[str, Any]) -> str | None:
    if found["layers"] is None:
        return None
    return (
        f"{plural(found['layers'], 'layer')}, width {found['hidden_size']}, MLP {found['intermediate_size']}, "
        f"{found['heads']} heads of {found['head_dim']} ({found['kv_heads']} for keys and values), "
        f"vocabulary {found['vocab_size']}"
    )


def _quantization(quantization: Mapping[str, Any] | None) -> str:
    if quantization is None:
        return "none"
    group = quantization["group_size"]
    parts = [
        quantization["method"],
        None if quantization["bits"] is None else f"{quantization['bits']:g} bits",
        None if group is None else "a group per row" if group < 1 else f"groups of {group}",
        {True: "symmetric", False: "asymmetric", None: None}[quantization["sym"]],
        "act-order" if quantization["desc_act"] else None,
        quantization["bnb_4bit_quant_type"],
        quantization["checkpoint_format"] and f"format {quantization['checkpoint_format']}",
    ]
    said = ", ".join(part for part in parts if part)
    if quantization["share"] is None:
        return said
    share = f"{percent(quantization['share'])} of the blocks' weights"
    return f"{said}; {plural(quantization['layers'], 'layer')}, {share}"


def _head(tied: bool | None, stored: bool) -> str | None:
    if tied is None:
        return "stored" if stored else None
    if tied:
        return "tied to the embedding" + (", and stored too" if stored else "")
    return "of its own" if stored else "missing"


def _agreement(compared: bool, faults: list[str]) -> str:
    if faults:
        return "disagrees with the tensors:"
    return "agrees with every tensor" if compared else "not compared"
