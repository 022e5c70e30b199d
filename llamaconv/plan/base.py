"""A plan: steps in order, the files they fill, and what it all costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from llamaconv.extents import Extent
from llamaconv.model.stream import Stream
from llamaconv.plan.costs import human
from llamaconv.sinks.sharding import Shard
from llamaconv.tensors import LazyTensor, TensorSpec

__all__ = ["Plan", "Step", "Transform"]


class Transform(Protocol):
    """Turns what a step reads into what it writes: tensors, or bytes to copy from where they lie."""

    def __call__(
        self, source: Mapping[str, LazyTensor], stream: Stream
    ) -> Iterator[tuple[str, Tensor | tuple[Extent, ...]]]: ...


@dataclass(frozen=True)
class Step:
    """One piece of work: what it reads, what it writes, and how the one becomes the other.

    Attributes:
        name: What it works on (``model.layers.3``).
        reads: Names of source tensors.
        writes: What it will yield, in any order.
        transform: How.
        peak_bytes: The most memory it takes for itself, estimated from shapes.
        flops: Floating-point operations, estimated from shapes.
        operation: What a conversion does, in a word or two.
    """

    name: str
    reads: tuple[str, ...]
    writes: tuple[TensorSpec, ...]
    transform: Transform
    peak_bytes: int
    flops: float = 0.0
    operation: str = ""


@dataclass(frozen=True)
class Plan:
    """All that will happen.

    Attributes:
        steps: In the order in which they run.
        shards: The files that hold what the steps write.
        resident_bytes: Memory taken during the whole run (hidden states).
        notes: What the user should know before it begins.
    """

    steps: tuple[Step, ...]
    shards: tuple[Shard, ...]
    resident_bytes: int = 0
    notes: tuple[str, ...] = ()

    @property
    def output_bytes(self) -> int:
        """Bytes of tensor data written."""
        return sum(spec.nbytes for step in self.steps for spec in step.writes)

    @property
    def peak_bytes(self) -> int:
        """The most memory the run takes, beyond the program itself."""
        return self.resident_bytes + max(step.peak_bytes for step in self.steps)

    @property
    def flops(self) -> float:
        """Floating-point operations of the whole run."""
        return sum(step.flops for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        """JSON-safe summary."""
        return {
            "steps": [
                {
                    "name": step.name,
                    "reads": list(step.reads),
                    "writes": [str(spec) for spec in step.writes],
                    "peak_bytes": step.peak_bytes,
                    "flops": step.flops,
                }
                for step in self.steps
            ],
            "shards": [{"file": shard.filename, "bytes": shard.nbytes} for shard in self.shards],
            "output_bytes": self.output_bytes,
            "peak_bytes": self.peak_bytes,
            "flops": self.flops,
            "notes": list(self.notes),
        }

    def describe(self) -> str:
        """The plan for people: one line per step, then the totals."""
        width = max(len(step.name) for step in self.steps)
        lines = [
            f"{step.name:<{width}}  {len(step.reads):>3} tensors -> {len(step.writes):>3}  "
            f"{human(sum(spec.nbytes for spec in step.writes)):>9}  {step.flops / 1e12:9.3f} TFLOP"
            for step in self.steps
        ]
        lines.append(
            f"writes {human(self.output_bytes)} in {len(self.shards)} file(s); "
            f"needs {human(self.peak_bytes)} of memory; {self.flops / 1e12:.3f} TFLOP"
        )
        return "\n".join([*lines, *self.notes])
