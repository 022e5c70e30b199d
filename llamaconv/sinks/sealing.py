"""Reading back what was written, for its checksums: while the rest of the file is still being written."""

from __future__ import annotations

import errno
import hashlib
import os
import zlib
from collections.abc import Callable, Iterator

__all__ = ["Sealing", "crc32"]

_BLOCK = 1 << 20


class Sealing:
    """The SHA-256 of a file that is written front to back, as far as that went.

    Args:
        descriptor: Of the file, for reading; its own position does not matter and does not move.

    Attributes:
        position: How many bytes have been hashed.
    """

    def __init__(self, descriptor: int) -> None:
        self.position = 0
        self._descriptor = descriptor
        self._digest = hashlib.sha256()

    def advance(self, end: int, check: Callable[[], None]) -> None:
        """Hash what lies before byte ``end`` and was not hashed yet: it must be final. One thread at a time.

        Args:
            end: From the start of the file.
            check: Called for each block; what it raises ends the work.

        Raises:
            OSError: The file cannot be read, or is shorter.
        """
        for block in _blocks(self._descriptor, self.position, end, check):
            self._digest.update(block)
            self.position += len(block)

    def hexdigest(self) -> str:
        """Of the bytes before ``position``, in hexadecimal."""
        return self._digest.hexdigest()


def crc32(descriptor: int, begin: int, end: int, check: Callable[[], None]) -> int:
    """The CRC-32 of the bytes from ``begin`` up to ``end`` of a file.

    Args:
        descriptor: Of the file, for reading.
        begin, end: From the start of the file.
        check: Called for each block; what it raises ends the work.

    Raises:
        OSError: The file cannot be read, or is shorter.
    """
    crc = 0
    for block in _blocks(descriptor, begin, end, check):
        crc = zlib.crc32(block, crc)
    return crc


def _blocks(descriptor: int, begin: int, end: int, check: Callable[[], None]) -> Iterator[memoryview]:
    """All bytes in order, each time in the same memory."""
    memory = memoryview(bytearray(min(_BLOCK, end - begin)))
    while begin < end:
        check()
        count = os.preadv(descriptor, [memory[: end - begin]], begin)
        if not count:
            raise OSError(errno.EIO, "the file was cut short while it was written")
        yield memory[:count]
        begin += count
