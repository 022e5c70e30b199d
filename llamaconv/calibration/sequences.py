"""The token sequences that a model reads, with a digest of exactly these."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

__all__ = ["CalibrationSet"]


@dataclass(frozen=True, eq=False)
class CalibrationSet:
    """What to calibrate on, or to judge by.

    Attributes:
        sequences: Token ids, int32 [length] each; lengths may differ.
        name: "builtin:calibration", "builtin:evaluation", or the file's name without its folder.
        sha256: Over the exact sequences: for each its length as int64, then its ids as int32, little-endian.
        notes: What the user should know of how they came about.
    """

    sequences: tuple[Tensor, ...]
    name: str
    sha256: str
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, rows: Iterable[ArrayLike], name: str, notes: Iterable[str] = ()) -> CalibrationSet:
        """The set of these rows of token ids, each one-dimensional."""
        arrays = [np.array(row, dtype=np.int32) for row in rows]
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(np.array(len(array), dtype="<i8").tobytes() + array.astype("<i4").tobytes())
        sequences = tuple(torch.from_numpy(array) for array in arrays)
        return cls(sequences, name, digest.hexdigest(), tuple(notes))

    @cached_property
    def tokens(self) -> int:
        """How many tokens the sequences have, all together."""
        return sum(sequence.numel() for sequence in self.sequences)
