"""The plan of ``convert``: a step for each rule, in the order of what is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from llamaconv.layouts.quantized import QuantizedLayer
from llamaconv.layouts.rules import Rule
from llamaconv.layouts.transform import Rearrange
from llamaconv.layouts.view import Tensors
from llamaconv.model.repack import Packing, Repack
from llamaconv.plan.base import Plan, Step
from llamaconv.quantizers.base import Dequantizer
from llamaconv.sinks.sharding import Shard

__all__ = ["conversion_steps", "plan_conversion", "repacking_steps"]


def conversion_steps(reader: Tensors, rules: Iterable[Rule], dtype: torch.dtype | None) -> tuple[Step, ...]:
    """What is done to each rule's tensors.

    Args:
        reader: Where tensors come from.
        rules: From the reader's names to those in the output.
        dtype: Of floating-point tensors in the output, None for each one's own.
    """
    return tuple(_rearranged(reader, Rearrange(rule, dtype)) for rule in rules)


def repacking_steps(
    reader: Tensors,
    rules: Iterable[Rule],
    layers: Mapping[str, QuantizedLayer],
    dequantizer: Dequantizer,
    packing: Packing,
) -> tuple[Step, ...]:
    """As :func:`conversion_steps`, where weights are quantized and stay so.

    Args:
        reader: What is stored.
        rules: From the reader's names to those in the output, as if all weights were dense.
        layers: What is stored quantized, by the weight's name.
        dequantizer: Reads it.
        packing: How it is written.
    """
    steps = []
    for rule in rules:
        if not all(name in layers for name in rule.hub):
            steps.append(_rearranged(reader, Rearrange(rule, None)))
            continue
        repack = Repack(rule, {name: layers[name] for name in rule.hub}, dequantizer, packing)
        words = f"repack; {rule.operation}"
        steps.append(Step(rule.local[0], repack.reads, repack.writes, repack, repack.peak_bytes, operation=words))
    return tuple(steps)


def plan_conversion(steps: Sequence[Step], shards: Sequence[Shard], notes: Sequence[str]) -> Plan:
    """All that will happen; steps run in the order of the files that they fill."""
    place = {spec.name: index for index, spec in enumerate(spec for shard in shards for spec in shard.specs)}
    ordered = sorted(steps, key=lambda step: min(place[spec.name] for spec in step.writes))
    return Plan(tuple(ordered), tuple(shards), notes=tuple(notes))


def _rearranged(reader: Tensors, transform: Rearrange) -> Step:
    rule = transform.rule
    return Step(
        name=rule.local[0],
        reads=rule.hub,
        writes=transform.writes({name: reader.specs[name] for name in rule.hub}),
        transform=transform,
        peak_bytes=transform.peak_bytes([reader[name] for name in rule.hub]),
        operation=str(rule.operation),
    )
