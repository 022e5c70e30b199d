"""Where bytes lie in files, and how they get from there into memory."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llamaconv.disk import MOST_PER_CALL
from llamaconv.errors import CheckpointError

if TYPE_CHECKING:  # the command line knows of files before it knows of torch
    from torch import Tensor

__all__ = ["Extent", "Stamp", "changed", "cut", "open_regular", "open_unchanged", "read_extents"]

Stamp = tuple[int, int]
"""A file's size in bytes and modification time in ns: what was checked is what is read later."""


@dataclass(frozen=True)
class Extent:
    """A run of bytes in a file.

    Attributes:
        path: The file.
        offset: Of the first byte, from the start of the file.
        nbytes: How many.
        stamp: What the file was when its header was read.
    """

    path: Path
    offset: int
    nbytes: int
    stamp: Stamp

    def part(self, begin: int, nbytes: int) -> Extent:
        """``nbytes`` of it from byte ``begin`` on."""
        if not 0 <= begin <= begin + nbytes <= self.nbytes:
            raise ValueError(f"bytes {begin} to {begin + nbytes} of {self.nbytes}")
        return replace(self, offset=self.offset + begin, nbytes=nbytes)


def cut(extents: Sequence[Extent], begin: int, nbytes: int) -> list[Extent]:
    """``nbytes`` from byte ``begin`` on of what ``extents`` hold one after the other."""
    parts = []
    for extent in extents:
        first, last = max(begin, 0), min(begin + nbytes, extent.nbytes)
        if first < last:
            parts.append(extent.part(first, last - first))
        begin -= extent.nbytes
    return parts


@contextmanager
def open_regular(path: Path) -> Iterator[tuple[int, Stamp]]:
    """A descriptor of a regular file and its stamp.

    Raises:
        CheckpointError: It cannot be opened or read, or is no regular file (a pipe would never answer).
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode):
                raise CheckpointError(f"{path}: not a regular file.", file=str(path))
            yield descriptor, _stamp(info)
        finally:
            os.close(descriptor)
    except OSError as error:
        hint = "Raise the limit: `ulimit -n`." if error.errno in (errno.EMFILE, errno.ENFILE) else None
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}.", hint=hint, file=str(path)) from error


def _stamp(info: os.stat_result) -> Stamp:
    return info.st_size, info.st_mtime_ns


@contextmanager
def open_unchanged(path: Path, stamp: Stamp) -> Iterator[int]:
    """A descriptor of a file that is still what it was when its header was read, and also when it is closed.

    Raises:
        CheckpointError: It is not, or as ``open_regular``.
    """
    with open_regular(path) as (descriptor, found):
        if found != stamp:
            raise changed(path)
        yield descriptor
        if _stamp(os.fstat(descriptor)) != stamp:  # written to while it was read
            raise changed(path)


def changed(path: Path) -> CheckpointError:
    """The error for a file that was written to while it was read."""
    return CheckpointError(
        f"{path}: the file changed after its header was read, so its tensors cannot be trusted.",
        hint="Let whatever writes the checkpoint finish, then start again.",
        file=str(path),
    )


def read_extents(extents: Sequence[Extent]) -> Tensor:
    """The bytes of ``extents``, one after the other: uint8 [n] in memory of its own.

    Raises:
        CheckpointError: A file is gone, unreadable or not the one whose header was read.
    """
    import torch

    # The device is explicit because models are built under a default of "meta".
    buffer = torch.empty(sum(extent.nbytes for extent in extents), dtype=torch.uint8, device="cpu")
    memory, done = buffer.numpy().data, 0
    position = 0
    while position < len(extents):
        first = extents[position]
        with open_unchanged(first.path, first.stamp) as descriptor:  # once for neighbours in one file
            while position < len(extents) and extents[position].path == first.path:
                extent = extents[position]
                _fill(memory[done : done + extent.nbytes], descriptor, extent)
                done, position = done + extent.nbytes, position + 1
    return buffer


def _fill(memory: memoryview, descriptor: int, extent: Extent) -> None:
    done = 0
    while done < extent.nbytes:
        count = os.preadv(descriptor, [memory[done : done + MOST_PER_CALL]], extent.offset + done)
        if count == 0:
            raise changed(extent.path)
        done += count
