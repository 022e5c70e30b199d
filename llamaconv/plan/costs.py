"""Memory and arithmetic of a decoder block, from shapes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamaconv.tensors import TensorSpec

if TYPE_CHECKING:  # what only copies tensors does without transformers
    from llamaconv.model.skeleton import Skeleton
    from llamaconv.model.staged import Stage

__all__ = ["BlockCost", "block_cost", "held_samples", "human"]


@dataclass(frozen=True)
class BlockCost:
    """What a block takes.

    Attributes:
        fixed: Bytes for weights, the Hessian with its factor, and the layer being quantized.
        per_sample: Bytes that one sample's suspended forward holds.
        flops: For all samples: forward, Hessians, factors, quantization.
    """

    fixed: int
    per_sample: int
    flops: float


def block_cost(
    skeleton: Skeleton,
    index: int,
    specs: Mapping[str, TensorSpec],
    stages: Sequence[Stage],
    tokens: int,
    longest: int,
    hidden_size: int,
) -> BlockCost:
    """Estimate from above; attention's quadratic part is left to sdpa, which does not store it."""
    prefix, item = skeleton.block_names[index], skeleton.dtype.itemsize
    reads = [specs[name] for name in skeleton.block_parameters(index)]
    matrices = [spec for spec in reads if len(spec.shape) == 2]
    weights = sum(spec.nbytes + spec.numel * item for spec in reads)
    shapes = {stage: [specs[f"{prefix}.{layer}.weight"].shape for layer in stage.layers] for stage in stages}
    quantizing = max((_quantizing(stage.width, shapes[stage]) for stage in stages), default=0)
    activations, before = 2 * hidden_size, 0
    for stage in stages:
        # Held before a stage: residual and normed states, its own input, what the stage before it gave.
        activations = max(activations, 2 * hidden_size + stage.width + before)
        before = stage.width + sum(rows for rows, _ in shapes[stage])
    flops = sum(2.0 * tokens * spec.numel for spec in matrices)
    for stage in stages:
        flops += float(tokens) * stage.width**2 + 2 / 3 * stage.width**3
        flops += sum(float(rows) * columns**2 * 3 for rows, columns in shapes[stage])
    return BlockCost(weights + quantizing, longest * activations * item, flops)


def _quantizing(width: int, shapes: Sequence[tuple[int, ...]]) -> int:
    """Bytes while a stage is factored, or while its largest layer is quantized, whichever is more."""
    square = 4 * width**2
    # Factoring: the Hessian, damped and reversed copies, the factor and the solver's own copy. Then the Hessian, the
    # damped one and the factor; of a layer float32 weight, ordered copy, dequantized weight, codes.
    return max(5 * square, 3 * square + 14 * max(rows * columns for rows, columns in shapes))


def held_samples(cost: BlockCost, samples: int, workers: int, resident: int, memory: int | None) -> int | None:
    """How many samples may stay suspended: all if they fit, else as many as leave room for those that run.

    None if not even the running ones fit.
    """
    if memory is None:
        return samples
    room = (memory - resident - cost.fixed) // max(1, cost.per_sample)
    if room >= samples + workers:
        return samples
    return room - 2 * workers if room >= 2 * workers else None


def human(count: float) -> str:
    """A size in decimal units: ``1.5 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
