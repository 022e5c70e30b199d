"""A conversion for people: what each tensor comes from, what is done to it, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llamaconv.layouts.operations import Identity
from llamaconv.layouts.rules import Rule
from llamaconv.plan.base import Plan
from llamaconv.tasks.convert_target import Target
from llamaconv.tasks.source import Source
from llamaconv.tensors import TensorSpec

__all__ = ["ConversionPlan", "Row"]


@dataclass(frozen=True)
class Row:
    """One rule: what is read, under the source's own names, what is done, and what is written.

    ``peak_bytes`` is the memory it takes; 0 where bytes are copied from file to file.
    """

    reads: tuple[TensorSpec, ...]
    operation: str
    writes: tuple[TensorSpec, ...]
    peak_bytes: int


@dataclass(frozen=True)
class ConversionPlan:
    """All that will happen.

    Attributes:
        rows: In the order in which they are done.
        plan: Its steps, files, bytes and memory.
    """

    rows: tuple[Row, ...]
    plan: Plan

    @classmethod
    def of(cls, source: Source, target: Target, plan: Plan) -> ConversionPlan:
        """The plan, told in the source's names."""
        made_by = {name: rule for rule in source.rules for name in rule.hub}
        parts: dict[str, tuple[str, ...]] = {}
        if target.reader is not source.stored:  # which has the weights that these stand for
            parts = {layer.weight.name: layer.parts for layer in source.layers if layer.weight is not None}
        rows = []
        for step in plan.steps:
            origins = list(dict.fromkeys(made_by[name] for name in step.reads if name in made_by))
            names = [name for rule in origins for name in rule.local] or list(step.reads)
            reads = tuple(source.stored.specs[part] for name in names for part in parts.get(name, (name,)))
            rows.append(Row(reads, _words(origins, step.operation), step.writes, step.peak_bytes))
        return cls(tuple(rows), plan)

    def to_json(self) -> dict[str, Any]:
        """JSON-safe form; the notes, totals and files are the plan's."""
        summary = self.plan.to_json()
        summary["steps"] = [
            {
                "reads": [_spec(spec) for spec in row.reads],
                "operation": row.operation,
                "writes": [_spec(spec) for spec in row.writes],
                "bytes": sum(spec.nbytes for spec in row.writes),
                "peak_bytes": row.peak_bytes,
            }
            for row in self.rows
        ]
        return {name: value for name, value in summary.items() if name != "flops"}


def _words(origins: Sequence[Rule], operation: str) -> str:
    back = [str(origin.operation.inverse()) for origin in origins]
    words = [*dict.fromkeys(back), operation]
    return "; ".join(word for word in words if word != str(Identity())) or str(Identity())


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "shape": list(spec.shape),
        "dtype": str(spec.dtype).removeprefix("torch."),
        "bytes": spec.nbytes,
    }
