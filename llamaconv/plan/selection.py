"""Which linear layers are quantized: every 2-D weight of the blocks, less what the user leaves out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from llamaconv.errors import UnsupportedError, UsageError
from llamaconv.model.skeleton import Skeleton
from llamaconv.quantizers.base import Quantizer
from llamaconv.tensors import TensorSpec

__all__ = ["Selection", "select_layers"]


@dataclass(frozen=True)
class Selection:
    """Which linear layers are quantized.

    Attributes:
        blocks: For each decoder block, the names (inside the block) of the layers to quantize.
        skipped: Full names of the linear layers that the user left out.
        head: Name of the head where it is quantized, else None.
        share: Quantized parameters over all parameters of the blocks' 2-D weights.
    """

    blocks: tuple[tuple[str, ...], ...]
    skipped: tuple[str, ...]
    head: str | None
    share: float

    def layers(self, block_names: Sequence[str]) -> Iterator[str]:
        """Full names of the layers to quantize."""
        for block, layers in zip(block_names, self.blocks, strict=True):
            yield from (f"{block}.{layer}" for layer in layers)
        if self.head is not None:
            yield self.head


def select_layers(
    skeleton: Skeleton, specs: Mapping[str, TensorSpec], quantizer: Quantizer, skip: Sequence[str], head: bool
) -> Selection:
    """Every 2-D weight of the blocks, less what the user skips.

    Raises:
        UsageError: A ``skip`` pattern that matches no layer, or nothing left to quantize.
        UnsupportedError: A weight that is no linear layer's and is not skipped, or that the quantizer cannot take;
            all are listed.
    """
    chosen, skipped, faults, unused = [], [], [], set(skip)
    sizes = Counter[bool]()
    for prefix, block in zip(skeleton.block_names, skeleton.blocks, strict=True):
        names = []
        for parameter, weight in block.named_parameters():
            if weight.dim() < 2:
                continue
            layer = parameter.rpartition(".")[0]
            full = f"{prefix}.{layer}"
            matching = {pattern for pattern in skip if fnmatchcase(full, pattern)}
            unused -= matching
            sizes[not matching] += weight.numel()
            if matching:
                skipped.append(full)
            elif type(block.get_submodule(layer)) is not nn.Linear or parameter != f"{layer}.weight":
                faults.append(f"{prefix}.{parameter} {list(weight.shape)}: not the weight of a linear layer")
            else:
                faults += quantizer.faults(specs[f"{full}.weight"])
                names.append(layer)
        chosen.append(tuple(names))
    if unused:
        raise UsageError(
            f"--skip matches no layer: {', '.join(sorted(unused))}",
            hint=f"Patterns match full names such as {skeleton.block_names[0]}.mlp.down_proj: try '*.down_proj'.",
        )
    if head:
        faults += _head_faults(skeleton, specs, quantizer)
    if faults:
        raise UnsupportedError(
            "\n".join(faults), hint="Leave these layers dense with --skip, or choose another --group-size."
        )
    if not any(chosen):
        raise UsageError("--skip leaves no layer to quantize")
    name = skeleton.head if head else None
    return Selection(tuple(chosen), tuple(skipped), name, sizes[True] / sizes.total())


def _head_faults(skeleton: Skeleton, specs: Mapping[str, TensorSpec], quantizer: Quantizer) -> list[str]:
    if skeleton.head is None or skeleton.tie:
        return ["the head's weight is tied to the embedding: --lm-head would quantize both"]
    return quantizer.faults(specs[f"{skeleton.head}.weight"])
