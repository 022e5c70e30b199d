"""GPTQ (arXiv 2210.17323, algorithm 1): round column after column, move each error to the columns behind.

Group scales are fitted when the walk reaches the group, from weights that have already taken up the errors of the
columns before. Codes come out of the walk itself and go straight to packing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llamaconv.errors import NumericalError
from llamaconv.quantizers.base import Map
from llamaconv.quantizers.grids import AffineGrid
from llamaconv.quantizers.hessian import Factor
from llamaconv.quantizers.kernels.cpu_numba import round_columns
from llamaconv.quantizers.packing import CheckpointFormat, GptqWeight
from llamaconv.quantizers.refine import column_blocks, refine
from llamaconv.tensors import TensorSpec

__all__ = ["Gptq"]

_ROWS = 256  # rows given to one worker at a time; fixed, so that results do not depend on the number of workers


@dataclass(frozen=True)
class Gptq:
    """The GPTQ quantizer.

    Args:
        grid: The values allowed.
        group_size: Columns that share a scale, or -1 for all of them.
        act_order: Quantize columns in the order of falling Hessian diagonal.
        sweeps: Passes of coordinate descent over scales and codes after the walk; 0 is GPTQ as published.
        format: How the checkpoint stores zero points.
    """

    grid: AffineGrid
    group_size: int = 128
    act_order: bool = False
    sweeps: int = 3
    format: CheckpointFormat = "gptq"

    calibrated = True
    marker = "qweight"
    suffixes = ("qweight", "qzeros", "scales", "g_idx")

    @property
    def bits(self) -> int:
        return self.grid.bits

    @property
    def mode(self) -> str:
        return f"gptq.int{self.bits}"

    def groups(self, columns: int) -> int:
        """Number of groups of a weight with that many columns."""
        return 1 if self.group_size == -1 else -(-columns // self.group_size)

    def faults(self, weight: TensorSpec) -> list[str]:
        rows, columns = weight.shape
        faults = [
            f"{weight.name} {list(weight.shape)}: {size} {what} are not a multiple of 32"
            for size, what in ((rows, "outputs"), (columns, "inputs"))
            if size % 32
        ]
        if self.group_size != -1 and columns % self.group_size:
            faults.append(
                f"{weight.name} {list(weight.shape)}: groups of {self.group_size} do not divide {columns} inputs"
            )
        return faults

    def specs(self, layer: str, weight: TensorSpec) -> tuple[TensorSpec, ...]:
        rows, columns = weight.shape
        groups, bits = self.groups(columns), self.grid.bits
        return (
            TensorSpec(f"{layer}.qweight", (columns // 32 * bits, rows), torch.int32),
            TensorSpec(f"{layer}.qzeros", (groups, rows // 32 * bits), torch.int32),
            TensorSpec(f"{layer}.scales", (groups, rows), torch.float16),
            TensorSpec(f"{layer}.g_idx", (columns,), torch.int32),
        )

    def quantize(self, weight: Tensor, factor: Factor | None, map: Map) -> GptqWeight:
        """Quantize ``weight`` [N, K] float32, finite; it is not changed.

        Codes keep the original column order. With ``act_order``, groups are runs of the *ordered* columns, as in
        AutoGPTQ's ``desc_act``. Rows do not depend on each other: ``map`` may work on them concurrently.

        Raises:
            NumericalError: A scale overflows float16.
        """
        assert factor is not None
        rows, columns = weight.shape
        order, importance = factor.order, factor.diagonal[factor.order]
        codes = torch.empty((rows, columns), dtype=torch.uint8)
        scales = torch.empty((rows, self.groups(columns)), dtype=torch.float16)
        zeros = torch.empty(scales.shape, dtype=torch.uint8)

        def walk(first: int) -> None:
            part = slice(first, first + _ROWS)
            ordered = weight[part].index_select(1, order)
            original = ordered.clone() if self.sweeps else ordered
            walked = _walk(ordered, factor.upper, importance, self, scales[part], zeros[part])
            if self.sweeps:
                refine(
                    original,
                    factor.hessian,
                    walked,
                    scales[part],
                    zeros[part],
                    group_size=self.group_size,
                    grid=self.grid,
                    sweeps=self.sweeps,
                )
            codes[part] = torch.empty_like(walked).index_copy_(1, order, walked)

        map(walk, range(0, rows, _ROWS))
        if not bool(torch.isfinite(scales).all()):
            raise NumericalError(
                "a scale overflows float16",
                hint="The weight's range is too wide for the GPTQ format: leave the layer out with --skip.",
            )
        group_index = torch.empty(columns, dtype=torch.int32)
        size = columns if self.group_size == -1 else self.group_size
        group_index[order] = torch.arange(columns, dtype=torch.int32) // size
        return GptqWeight(codes, scales, zeros, group_index, self.grid.bits, self.format)

    def read(self, tensors: Mapping[str, Tensor]) -> GptqWeight:
        return GptqWeight.read(tensors, self.grid.bits, self.format)

    def config(self) -> dict[str, Any]:
        return {
            "quant_method": "gptq",
            "bits": self.grid.bits,
            "group_size": self.group_size,
            "desc_act": self.act_order,
            "sym": self.grid.symmetric,
            "checkpoint_format": self.format,
            "true_sequential": True,
            "static_groups": False,
        }


def _walk(weight: Tensor, upper: Tensor, importance: Tensor, quantizer: Gptq, scales: Tensor, zeros: Tensor) -> Tensor:
    """The walk over some rows: ``weight`` [R, K] is overwritten, ``scales`` and ``zeros`` [R, G] are filled."""
    grid, columns = quantizer.grid, weight.shape[1]
    codes = torch.empty(weight.shape, dtype=torch.uint8)
    for first, last, group in column_blocks(columns, quantizer.group_size):
        if group is not None:
            index, end = group
            parameters = grid.fit(weight[:, first:end], importance[first:end])
            scales[:, index], zeros[:, index] = parameters.scale, parameters.zero
        block = weight[:, first:last].contiguous()
        block_codes = torch.empty(block.shape, dtype=torch.uint8)
        error = torch.empty_like(block)
        round_columns(
            block.numpy(),
            upper[first:last, first:last].contiguous().numpy(),
            parameters.scale.numpy(),
            parameters.zero.numpy(),
            grid.max_code,
            block_codes.numpy(),
            error.numpy(),
        )
        codes[:, first:last] = block_codes
        weight[:, last:].addmm_(error, upper[first:last, last:], alpha=-1.0)
    return codes
