"""A checkpoint in a layout of its own: described by its own files, every tensor accounted for by the layout's rules."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from llamaconv.config import ModelConfig, parse_config, read_config
from llamaconv.errors import CheckpointError, ConfigError
from llamaconv.layouts import meta_llama
from llamaconv.layouts.description import Given, Native
from llamaconv.layouts.hugging_face import HEAD, expected_tensors
from llamaconv.layouts.quantized import QuantizedLayer, as_if_dense, quantized_layers
from llamaconv.layouts.rows import row_maps
from llamaconv.layouts.rules import EMBEDDING, Layout, Rule, local_specs
from llamaconv.layouts.view import View
from llamaconv.sources.base import one_per_line
from llamaconv.sources.open import Checkpoint
from llamaconv.tasks.comparison import same_bits
from llamaconv.tasks.source import Source, contradictions
from llamaconv.tensors import TensorSpec

__all__ = ["open_native", "rank_count"]

# Follow from the description, and are left out.
_DERIVED = ("rope.freqs",)


def open_native(checkpoint: Checkpoint, layout: Layout, given: Given, *, compare: bool = True) -> Source:
    """Describe a checkpoint and hold its tensors against the description.

    Whether the head is tied to the embedding no layout but Hugging Face's says: it is where both are the same.

    Args:
        checkpoint, layout, given: The files, how they name tensors, and what the user states.
        compare: Whether to read and compare tensors that may be, or must be, the same; without, a head counts as one
            of its own.

    Raises:
        InputError: Anything missing, malformed or in disagreement; all disagreements are listed.
    """
    layers = tuple(quantized_layers(checkpoint.reader.specs))
    damaged = [layer for layer in layers if layer.weight is None]
    if damaged:
        raise CheckpointError(
            "\n".join(f"{layer.name}: {', '.join(layer.parts)} do not go together" for layer in damaged),
            hint="The checkpoint is damaged: get it again from its source.",
        )
    dense = _as_if_dense(checkpoint.reader.specs, layers)
    stored = {name: spec for name, spec in dense.items() if not name.endswith(_DERIVED)}
    layout = _with_ranks(layout, stored)
    heads = {name for template in layout.templates if template.hub == (HEAD,) for name in template.local}
    head_stored = not heads.isdisjoint(stored)
    opened = _Native(checkpoint, layout, stored, layers, head_stored)
    source = opened.describe(replace(given, tied=not head_stored))
    if not head_stored:
        told = f"no file holds {min(heads)}, so the head is taken for the embedding"
        source = replace(source, notes=(*source.notes, told))
    if not compare:
        return _with_config_beside(source)
    tensors = source.tensors()
    if head_stored and not layers and same_bits(tensors[EMBEDDING], tensors[HEAD]):
        source = opened.describe(replace(given, tied=True))
    _require_equal_copies(source)
    return _with_config_beside(source)


def _as_if_dense(specs: Mapping[str, TensorSpec], layers: Sequence[QuantizedLayer]) -> dict[str, TensorSpec]:
    """As if its layers were dense, in the dtype of those that are: the headers do not tell another."""
    quantized = {layer.weight.name for layer in layers if layer.weight is not None}
    dense = as_if_dense(specs, layers)
    own = next((spec.dtype for name, spec in dense.items() if name not in quantized), torch.float32)
    return {name: replace(spec, dtype=own) if name in quantized else spec for name, spec in dense.items()}


def _with_config_beside(source: Source) -> Source:
    """A config.json that says the same of the model carries more: token ids, the longest sequence. litgpt keeps one."""
    directory = source.checkpoint.directory
    if source.description is None or not (directory / "config.json").is_file():
        return source
    beside = read_config(directory)
    wrong = contradictions(beside, source.config)
    if not wrong and beside.quantization is None:
        return replace(source, config=beside, notes=(), beside=directory / "config.json")
    told = f"config.json beside {source.description.name} is passed over: {'; '.join(wrong) or 'it is quantized'}"
    return replace(source, notes=(*source.notes, told))


@dataclass(frozen=True)
class _Native:
    """What there is to describe.

    Attributes:
        checkpoint, layout: The files and their layout.
        stored: The tensors, quantized layers as if dense.
        layers: The quantized ones.
        head_stored: Whether there is a head.
    """

    checkpoint: Checkpoint
    layout: Layout
    stored: Mapping[str, TensorSpec]
    layers: tuple[QuantizedLayer, ...]
    head_stored: bool

    def describe(self, given: Given) -> Source:
        """The checkpoint by its description, with rules that account for every tensor.

        Raises:
            ConfigError: They do not; every tensor that is missing, misshapen or not known is named.
        """
        directory, layout = self.checkpoint.directory, self.layout
        path = directory / layout.config_file if layout.config_file else None
        specs = _as_if_dense(self.checkpoint.reader.specs, self.layers)  # with what follows from the description
        first = {name.removeprefix("00/"): spec for name, spec in specs.items() if name[:3] == "00/"}
        native = Native(
            path or self.checkpoint.reader.files[0],
            layout.read_fields(path) if path else {},
            first or specs,
            layout.ranks,
            given,
        )
        assert layout.described is not None
        described = layout.described(native)
        config = parse_config(json.dumps(described.raw).encode(), native.path)
        rules = self._rules(config, native.path)
        return Source(self.checkpoint, layout, config, rules, self.layers, path, described.notes, self._quantization())

    def _quantization(self) -> dict[str, Any] | None:
        """As config.json would describe it."""
        if not self.layers:
            return None
        return {"quant_method": self.layers[0].storage.method, "bits": self.layers[0].bits}

    def _rules(self, config: ModelConfig, path: Path) -> tuple[Rule, ...]:
        claimed = max(config.layers, config.experts or 0)
        if claimed > len(self.stored):  # a claim must not cost memory
            raise _disagreement(
                path, [f"{claimed} layers or experts by {path.name}, but the checkpoint has {len(self.stored)} tensors"]
            )
        rules = self.layout.rules(config, head_stored=self.head_stored)
        shapes = expected_tensors(config) or {}
        try:
            expected = local_specs(
                rules, {name: TensorSpec(name, shape, torch.float32) for name, shape in shapes.items()}
            )
        except ValueError as error:
            raise _disagreement(path, [str(error)]) from error
        faults = _differences(self.stored, expected, path.name)
        if faults:
            raise _disagreement(path, faults)
        return rules


def _disagreement(path: Path, faults: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"{path} and the tensors disagree:\n" + one_per_line(faults),
        hint="The checkpoint is incomplete, or its description belongs to another model.",
        file=str(path),
    )


def rank_count(names: Iterable[str]) -> int:
    """Files of tensor-parallel ranks that tensors come from; 1 if they are whole."""
    return len({name.partition("/")[0] for name in names if "/" in name}) or 1


def _with_ranks(layout: Layout, stored: Mapping[str, TensorSpec]) -> Layout:
    """Meta's layout for as many ranks as there are files, and split as these are."""
    ranks = rank_count(stored)
    if ranks == 1 or layout.name != meta_llama.LAYOUT.name:
        return layout
    norm, embedding = stored.get("00/norm.weight"), stored.get("00/tok_embeddings.weight")
    whole = norm is not None and embedding is not None and embedding.shape[-1:] == norm.shape
    return meta_llama.layout(ranks, "rows" if whole else "columns")


def _differences(stored: Mapping[str, TensorSpec], expected: Mapping[str, TensorSpec], source: str) -> list[str]:
    faults = []
    for name, spec in expected.items():
        if name not in stored:
            faults.append(f"{name}: missing from the checkpoint, {list(spec.shape)} by {source}")
        elif stored[name].shape != spec.shape:
            faults.append(f"{name}: {list(stored[name].shape)} in the checkpoint, {list(spec.shape)} by {source}")
    return faults + [
        f"{name}: {list(spec.shape)} in the checkpoint, no such tensor by {source}"
        for name, spec in stored.items()
        if name not in expected
    ]


def _require_equal_copies(source: Source) -> None:
    """What every rank holds a copy of must be the same in all: else the files are of different models."""
    stored, tensors, faults = source.stored, source.tensors(), list[str]()
    for rule in source.rules:
        back = rule.operation.inverse()
        if back.takes == 1 or not back.moves_rows:
            continue
        if any(name not in stored.specs for name in rule.local):
            continue  # quantized, and no copies
        maps = row_maps(back, tuple(stored.specs[name].shape[0] for name in rule.local))
        used = {index for rows in maps for index in rows.sources}
        copies = View(tensors, [rule])
        faults += [
            f"{name} differs from {rule.local[0]}, of which it should be a copy"
            for index, name in enumerate(rule.local)
            if index not in used and not same_bits(copies[name], stored[name])
        ]
    if faults:
        raise CheckpointError(
            f"{source.checkpoint.directory}: the files are not of one model:\n" + "\n".join(faults),
            hint="Get all files of the checkpoint again from one place.",
        )
