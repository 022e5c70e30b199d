"""GPTQ weights of random codes."""

from __future__ import annotations

import torch
from torch import Tensor

from llamaconv.quantizers.packing import CheckpointFormat, GptqWeight

__all__ = ["BITS", "random_codes", "random_weight"]

BITS = [2, 3, 4, 8]


def random_codes(seed: int, shape: tuple[int, ...], bits: int, least: int = 0) -> Tensor:
    """uint8, each code from ``least`` to the largest alike."""
    return torch.randint(least, 1 << bits, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def random_weight(
    seed: int, bits: int, format: CheckpointFormat, rows: int = 96, columns: int = 64, least_zero: int = 1
) -> GptqWeight:
    """A weight whose 3 groups are scattered over the columns, with all codes and zero points that can be stored."""
    return GptqWeight(
        codes=random_codes(seed, (rows, columns), bits),
        scales=(0.01 + torch.rand(rows, 3, generator=torch.Generator().manual_seed(seed))).half(),
        zeros=random_codes(seed + 1, (rows, 3), bits, least_zero),
        group_index=(torch.arange(columns, dtype=torch.int32) * 7) % 3,
        bits=bits,
        format=format,
    )
