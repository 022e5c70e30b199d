"""A weight file without its tensors' data: every byte that is not theirs, and where theirs belong."""

from __future__ import annotations

import errno
import hashlib
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from llamaconv.sinks.disk import write_at

__all__ = ["Checksum", "Skeleton", "seal"]

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Checksum:
    """The CRC-32 of a run of bytes, which the file itself holds behind them.

    Attributes:
        begin: The run's first byte, from the start of the file.
        end: The byte after its last.
        places: Where the CRC is stored, as a little-endian u32; each at or after ``end``.
    """

    begin: int
    end: int
    places: tuple[int, ...]


@dataclass(frozen=True)
class Skeleton:
    """What a format makes of the tensors' specs.

    Attributes:
        pieces: What lies around the data, each piece with its offset in bytes from the start of the file.
        offsets: The offset of each tensor's data, which lies there in row-major order.
        nbytes: The file's size.
        checksums: What can be filled in only when the data is there; ascending, without overlap.
    """

    pieces: tuple[tuple[int, bytes], ...]
    offsets: Mapping[str, int]
    nbytes: int
    checksums: tuple[Checksum, ...] = ()


def seal(descriptor: int, skeleton: Skeleton) -> str:
    """Fill in the checksums of a file whose data is complete, and hash it, in one pass.

    Returns:
        The SHA-256 of the whole file, in hexadecimal.

    Raises:
        OSError: The file cannot be read or written, or is shorter than the skeleton.
    """
    digest, position = hashlib.sha256(), 0
    for checksum in skeleton.checksums:
        for block in _blocks(descriptor, position, checksum.begin):
            digest.update(block)
        crc = 0
        for block in _blocks(descriptor, checksum.begin, checksum.end):
            digest.update(block)
            crc = zlib.crc32(block, crc)
        for place in checksum.places:
            write_at(descriptor, crc.to_bytes(4, "little"), place)
        position = checksum.end
    for block in _blocks(descriptor, position, skeleton.nbytes):
        digest.update(block)
    return digest.hexdigest()


def _blocks(descriptor: int, begin: int, end: int) -> Iterator[bytes]:
    while begin < end:
        block = os.pread(descriptor, min(_BLOCK, end - begin), begin)
        if not block:
            raise OSError(errno.EIO, "the file was cut short while it was written")
        yield block
        begin += len(block)
