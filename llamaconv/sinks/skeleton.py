"""A weight file without its tensors' data: every byte that is not theirs, and where theirs belong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Skeleton"]


@dataclass(frozen=True)
class Skeleton:
    """What a format makes of the tensors' specs.

    Attributes:
        pieces: What lies around the data, each piece with its offset in bytes from the start of the file.
        offsets: The offset of each tensor's data, which lies there in row-major order.
        nbytes: The file's size.
        checksums: Where the file keeps the CRC-32 of a tensor's data, as a little-endian u32: offsets behind the
            data and before that of the next tensor, or behind all data. Tensors without a checksum are not listed.
    """

    pieces: tuple[tuple[int, bytes], ...]
    offsets: Mapping[str, int]
    nbytes: int
    checksums: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
