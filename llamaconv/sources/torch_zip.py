"""The zip archives that ``torch.save`` has written since torch 1.6, read without their data.

Under one folder lie ``data.pkl``, a record ``data/KEY`` for each storage and, of late, ``byteorder``. Where a storage's
bytes lie is looked up in the archive's directory. (``torch.load`` onto the meta device can tell too, not yet in torch
2.6, but it reckons the places from the order in which the pickle names the storages, whatever the directory says.)
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from llamaconv.errors import UnsupportedError
from llamaconv.extents import Extent, open_regular, read_extents
from llamaconv.sources.base import damaged
from llamaconv.sources.pickles import MAX_PICKLE_BYTES, unpickle
from llamaconv.sources.state_dict import named_tensors
from llamaconv.sources.torch_file import TorchFile
from llamaconv.sources.zip_directory import read_directory

__all__ = ["read_torch_zip"]

_PICKLE, _STORAGES, _BYTE_ORDER = "data.pkl", "data/", "byteorder"
_TORCHSCRIPT = "constants.pkl"


def read_torch_zip(path: Path) -> TorchFile:
    """A zip archive of ``torch.save``; only its directory and its pickle are read.

    Raises:
        CheckpointError: The file is unreadable, cut off, or contradicts itself.
        UnsupportedError: It is another zip archive or TorchScript, its numbers are big-endian, or it holds, or its
            pickle wants, more than plain tensors by name.
    """
    with open_regular(path) as (descriptor, stamp):
        records = _below_top(read_directory(descriptor, stamp, path))
    if _TORCHSCRIPT in records:
        raise _unsupported(path, "a TorchScript archive, which holds a program")
    if _PICKLE not in records:
        raise _unsupported(path, "a zip archive, but not one of torch.save")
    if records[_PICKLE].nbytes > MAX_PICKLE_BYTES:
        raise damaged(path, [f"a pickle of {records[_PICKLE].nbytes} bytes, where {MAX_PICKLE_BYTES} are enough."])
    _require_little_endian(path, records)
    value, _ = unpickle(io.BytesIO(_bytes_of(records[_PICKLE])), path)
    storages = {name.removeprefix(_STORAGES): record for name, record in records.items() if name.startswith(_STORAGES)}
    return TorchFile(path, stamp, named_tensors(value, path), storages)


def _below_top(records: Mapping[str, Extent]) -> dict[str, Extent]:
    """The records in the folder of the first one, by their names in it."""
    top = next(iter(records), "").partition("/")[0] + "/"
    return {name.removeprefix(top): record for name, record in records.items() if name.startswith(top)}


def _require_little_endian(path: Path, records: Mapping[str, Extent]) -> None:
    if _BYTE_ORDER not in records:
        return
    order = _bytes_of(records[_BYTE_ORDER].part(0, min(records[_BYTE_ORDER].nbytes, 16)))
    if order == b"big":
        raise _unsupported(path, "written with the bytes of each number in big-endian order")
    if order != b"little":
        raise damaged(path, [f"the byte order is {order!r}."])


def _bytes_of(extent: Extent) -> bytes:
    return read_extents([extent]).numpy().tobytes()


def _unsupported(path: Path, what: str) -> UnsupportedError:
    return UnsupportedError(f"{path}: {what}.", hint="Use a safetensors checkpoint of the model.", file=str(path))
