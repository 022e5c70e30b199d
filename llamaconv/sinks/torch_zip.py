"""The files that ``torch.save`` writes: a zip archive of a pickle and one uncompressed record per tensor.

``torch.save`` itself lays the file out, of tensors without data (``torch.serialization.skip_data``): a flat dict in
pickle protocol 2, which ``torch.load`` opens with its defaults and with ``mmap=True``. What it cannot know without
the data are the records' CRC-32s; each is filled in behind its data. The fields are those of PKWARE's APPNOTE.TXT.
"""

from __future__ import annotations

import io
import mmap
import struct
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from llamaconv.sinks.skeleton import Skeleton
from llamaconv.tensors import TensorSpec

__all__ = ["torch_refusals", "torch_skeleton"]

# Sections 4.3.9, 4.3.12, 4.3.14 to 4.3.16 of APPNOTE.TXT: sizes of records, and offsets of fields within them.
_DESCRIPTOR_CRC = 4
_ENTRY, _ENTRY_CRC, _ENTRY_LENGTHS = 46, 16, 28
_END, _END_DIRECTORY_SIZE = 22, 12
_LOCATOR, _LOCATOR_MAGIC = 20, b"PK\x06\x07"
_END64, _END64_DIRECTORY_SIZE = 56, 40


def torch_refusals(specs: Iterable[TensorSpec]) -> list[str]:
    """Why ``torch.save`` cannot hold the tensors, one by one."""
    announced = tuple(specs)
    savable = {dtype: _is_savable(dtype) for dtype in {spec.dtype for spec in announced}}
    return [f"torch.save cannot hold {spec}" for spec in announced if not savable[spec.dtype]]


def torch_skeleton(specs: Sequence[TensorSpec]) -> Skeleton:
    """The file that ``torch.save({name: tensor, …})`` would write, without the data; each has a storage of its own.

    It depends on the specs, in their order, alone, not on the file's name. (The archive's ``serialization_id``, which
    nobody compares, therefore knows nothing of the data.)

    Raises:
        ValueError: A name twice, or a dtype that ``torch.save`` does not take.
    """
    outline = _outline(specs)
    filled = [spec for spec in specs if spec.nbytes]  # nothing is left out for the others
    if [nbytes for _, nbytes in outline.gaps] != [spec.nbytes for spec in filled]:
        raise RuntimeError("torch.save did not write one record for each tensor, in their order")
    text, pieces = outline.getvalue(), list[tuple[int, bytes]]()
    begin = position = 0  # in what was written, and in the file
    offsets = dict.fromkeys((spec.name for spec in specs), 0)  # where nothing goes, nowhere is as good as any
    for spec, (end, nbytes) in zip(filled, outline.gaps, strict=True):
        pieces.append((position, text[begin:end]))
        offsets[spec.name] = position + end - begin
        begin, position = end, offsets[spec.name] + nbytes
    pieces.append((position, text[begin:]))
    size = position + len(text) - begin
    entries = _checksum_places(pieces[-1][1], position)
    keys = {spec.name: f"archive/data/{number}" for number, spec in enumerate(specs)}
    checksums = {
        spec.name: (offsets[spec.name] + spec.nbytes + _DESCRIPTOR_CRC, entries[keys[spec.name]]) for spec in filled
    }
    return Skeleton(tuple(pieces), offsets, size, checksums)


class _Outline(io.BytesIO):
    """A file for ``torch.save`` that holds what is written, and notes what is left out of it.

    Attributes:
        gaps: Of each record left out, how many bytes were written before it, and its size.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gaps: list[tuple[int, int]] = []

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence != io.SEEK_CUR:
            raise io.UnsupportedOperation("torch.save only ever goes forward")
        self.gaps.append((self.tell(), offset))
        return self.tell()


def _outline(specs: Sequence[TensorSpec]) -> _Outline:
    outline, tensors = _Outline(), dict[str, Tensor]()
    refusals = torch_refusals(specs)
    if refusals:
        raise ValueError("\n".join(refusals))
    rooms = {dtype: _room(spec for spec in specs if spec.dtype == dtype) for dtype in {spec.dtype for spec in specs}}
    for spec in specs:
        if spec.name in tensors:
            raise ValueError(f"the tensor name {spec.name!r} is taken")
        if spec.nbytes:
            # A storage of its own for each, although all of one dtype lie at one place.
            flat = torch.frombuffer(rooms[spec.dtype], dtype=torch.uint8, count=spec.nbytes)
            tensors[spec.name] = flat.view(spec.dtype).reshape(spec.shape)
        else:
            tensors[spec.name] = torch.empty(spec.shape, dtype=spec.dtype, device="cpu")
    with torch.serialization.skip_data():
        torch.save(tensors, outline, pickle_protocol=2)  # torch.load's default refuses protocol 5
    return outline


def _room(specs: Iterable[TensorSpec]) -> mmap.mmap:
    """Addresses for the largest of some tensors; what is never touched takes no memory."""
    return mmap.mmap(-1, max(1, *(spec.nbytes for spec in specs)), mmap.MAP_PRIVATE)


def _is_savable(dtype: torch.dtype) -> bool:
    """Whether ``torch.save`` takes it, it alone knows."""
    try:
        torch.save(torch.empty(0, dtype=dtype, device="cpu"), io.BytesIO())
    except (KeyError, RuntimeError):
        return False
    return True


def _checksum_places(tail: bytes, begin: int) -> dict[str, int]:
    """Where the central directory keeps the CRC of each record: offset from the start of the file by name.

    Args:
        tail: The end of the file, with at least the central directory.
        begin: Its offset in the file.
    """
    end = len(tail) - _END
    (nbytes,) = struct.unpack_from("<I", tail, end + _END_DIRECTORY_SIZE)
    if tail[end - _LOCATOR : end].startswith(_LOCATOR_MAGIC):
        end -= _LOCATOR + _END64
        (nbytes,) = struct.unpack_from("<Q", tail, end + _END64_DIRECTORY_SIZE)
    position, places = end - nbytes, {}
    while position < end:
        name, extra, comment = struct.unpack_from("<3H", tail, position + _ENTRY_LENGTHS)
        places[tail[position + _ENTRY :][:name].decode()] = begin + position + _ENTRY_CRC
        position += _ENTRY + name + extra + comment
    return places
