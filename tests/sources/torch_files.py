"""Torch files of every format, as torch writes them and as nobody should."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}."
"""The magic number, version 1001 and no facts about the machine: the object follows."""


def write_zip(path: Path, content: object, protocol: int = 2) -> Path:
    """Write a zip archive as ``torch.save`` does."""
    torch.save(content, path, pickle_protocol=protocol)
    return path


def write_legacy(path: Path, content: object) -> Path:
    """Write the format from before torch 1.6."""
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def write_ranks(directory: Path, ranks: Sequence[Mapping[str, Tensor]]) -> Path:
    """Write Meta's files of tensor-parallel ranks, ``consolidated.00.pth`` and so on."""
    directory.mkdir(parents=True, exist_ok=True)
    for rank, tensors in enumerate(ranks):
        write_zip(directory / f"consolidated.{rank:02}.pth", dict(tensors))
    return directory


def write_holes(path: Path, make: Callable[[], Mapping[str, Tensor]]) -> Path:
    """Write a zip archive of zeros that takes next to nothing on disk: ``make`` is called where tensors cost none."""
    with FakeTensorMode():
        tensors = dict(make())
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(tensors, path)
    return path


def write_archive(path: Path, records: Mapping[str, bytes], top: str = "archive", method: int = 0) -> Path:
    """Write any records below the folder ``top`` of a zip archive."""
    with zipfile.ZipFile(path, "w", compression=method) as archive:
        for name, data in records.items():
            archive.writestr(f"{top}/{name}", data)
    return path


class Storage:
    """A storage as a pickle names it, whether or not there is one."""

    def __init__(self, key: object, numel: object, kind: object = torch.FloatStorage, *more: object) -> None:
        self.reference = ("storage", kind, key, "cpu", numel, *more)


class Call:
    """Is pickled as a call of ``function``."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
        return self.call


def tensor_of(storage: object, offset: object, shape: object, stride: object) -> Call:
    """Is pickled as a tensor, however impossible."""
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, shape, stride, False, OrderedDict())


class _Pickler(pickle._Pickler):
    def persistent_id(self, obj: object) -> object:
        return obj.reference if isinstance(obj, Storage) else None


def pickled(value: object, protocol: int = 2) -> bytes:
    """The pickle of what ``Storage``, ``Call`` and plain values make up."""
    stream = io.BytesIO()
    _Pickler(stream, protocol).dump(value)
    return stream.getvalue()
