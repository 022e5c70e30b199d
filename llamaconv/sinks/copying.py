"""Bytes from file to file, without a way through this process where the kernel can."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path

from llamaconv.disk import write_at, writing
from llamaconv.extents import Extent, changed, open_unchanged

__all__ = ["copy_extents"]

_BLOCK = 1 << 20
_MOST_PER_CALL = 1 << 26  # a call cannot be given up


def copy_extents(extents: Sequence[Extent], target: int, offset: int, path: Path, check: Callable[[], None]) -> None:
    """Copy ``extents``, one after the other, to byte ``offset`` of the file open as ``target``.

    Args:
        extents: What to copy; neighbours in one file share a descriptor.
        target: A descriptor for writing; its own position does not matter and does not move.
        offset: From the start of the target, in bytes.
        path: The target's, for messages.
        check: Called now and then; what it raises ends the work.

    Raises:
        CheckpointError: A source is gone, unreadable or not the one whose header was read.
        DiskFullError, OutputError: The target cannot be written.
    """
    for (source_path, stamp), neighbours in groupby(extents, lambda extent: (extent.path, extent.stamp)):
        with open_unchanged(source_path, stamp) as source:
            for extent in neighbours:
                done = _copy_in_kernel(source, extent, target, offset, check)
                if done < extent.nbytes:
                    rest = extent.part(done, extent.nbytes - done)
                    _copy_in_blocks(source, rest, target, offset + done, path, check)
                offset += extent.nbytes


def _copy_in_kernel(source: int, extent: Extent, target: int, offset: int, check: Callable[[], None]) -> int:
    """How many bytes the kernel copied by itself: all, or those before it refused or the source ended.

    It refuses between some file systems, and its error does not say which of the two files is at fault: whoever
    reads and writes from there on gets to know.
    """
    done = 0
    if not hasattr(os, "copy_file_range"):
        return done
    with suppress(OSError):
        while done < extent.nbytes:
            check()
            most = min(extent.nbytes - done, _MOST_PER_CALL)
            count = os.copy_file_range(source, target, most, extent.offset + done, offset + done)
            if count == 0:
                break
            done += count
    return done


def _copy_in_blocks(
    source: int, extent: Extent, target: int, offset: int, path: Path, check: Callable[[], None]
) -> None:
    done = 0
    while done < extent.nbytes:
        check()
        block = os.pread(source, min(extent.nbytes - done, _BLOCK), extent.offset + done)
        if not block:
            raise changed(extent.path)
        with writing(path):  # what is raised within is no OSError any more, so it is not the source's
            write_at(target, block, offset + done)
        done += len(block)
