"""GPTQ v1 checkpoints with asymmetric grids as GPTQModel writes them.

GPTQModel goes from v2 to v1 by one subtraction for each word of packed zero points (GPTQModel 7.6 ``utils/model.py``,
``convert_gptq_v2_to_v1_format_module``). A zero point of 0 then borrows from the one above it in the word, so that
counting each up on its own, as other writers' v1 is read, would give back wrong ones. At 3 bits it counts each on its
own as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from llamaconv.quantizers.packing import GptqWeight

__all__ = ["WORDWISE_BITS", "WordwiseGptq"]

_ONES = {2: 0x5555_5555, 4: 0x1111_1111, 8: 0x0101_0101}  # 1 in every code of a word
WORDWISE_BITS = tuple(_ONES)
"""Widths at which GPTQModel counts whole words down."""


@dataclass(frozen=True)
class WordwiseGptq:
    """Reads them.

    Args:
        bits: One of ``WORDWISE_BITS``.
    """

    bits: int

    marker = "qweight"
    suffixes = ("qweight", "qzeros", "scales", "g_idx")

    @property
    def mode(self) -> str:
        return f"gptq.int{self.bits}"

    def read(self, tensors: Mapping[str, Tensor]) -> GptqWeight:
        """The weight, with zero points as v2 has them, since v1 has no room for 0.

        Raises:
            CheckpointError: ``g_idx`` names a group that is not there.
        """
        counted_up = tensors["qzeros"] + _ONES[self.bits]  # int32 wraps around, as it did on the way down
        return GptqWeight.read({**tensors, "qzeros": counted_up}, self.bits, "gptq_v2")
