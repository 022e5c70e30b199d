"""Safetensors files written in place: the header first, then each tensor to its offset, in any order.

The bytes are those of ``safetensors.torch.save_file``; the peak memory is one tensor.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from llamaconv.digests import sha256_file
from llamaconv.sinks.disk import writing
from llamaconv.sinks.manifest import write_json
from llamaconv.sinks.sharding import Shard, index, index_filename
from llamaconv.sources.safetensors_header import DTYPES, MAX_HEADER_BYTES, METADATA_KEY
from llamaconv.tensors import TensorSpec

__all__ = ["PT_METADATA", "SafetensorsWriter", "ShardedWriter", "encode_header", "tensor_bytes"]

PT_METADATA: Mapping[str, str] = MappingProxyType({"format": "pt"})
"""What transformers writes, and older versions of it insist on, in the header of a weight file."""

# Linux moves at most 0x7ffff000 bytes in a call and macOS refuses more than it.
_MOST_PER_CALL = 1 << 30
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_RANKS = {dtype: rank for rank, dtype in enumerate(DTYPES.values())}


def encode_header(
    specs: Iterable[TensorSpec], metadata: Mapping[str, str] | None = PT_METADATA
) -> tuple[bytes, dict[str, int], int]:
    """The start of a safetensors file, as the library would write it (``prepare`` in its tensor.rs).

    Tensors are ordered by dtype, the widest first, then by name; the JSON has no spaces but those that pad it
    to eight bytes.

    Returns:
        The length and header; each tensor's offset in bytes from the start of the file; the file's size in
        bytes.

    Raises:
        ValueError: A name twice or reserved, or a dtype, shape or name that the format cannot hold.
    """
    ordered = sorted(specs, key=lambda spec: (-_rank(spec), spec.name))
    table: dict[str, object] = {} if metadata is None else {METADATA_KEY: dict(metadata)}
    begins: dict[str, int] = {}
    position = 0
    for spec in ordered:
        if spec.name in begins or spec.name == METADATA_KEY:
            raise ValueError(f"the tensor name {spec.name!r} is taken")
        begins[spec.name] = position
        offsets = [position, position + spec.nbytes]
        table[spec.name] = {"dtype": _CODES[spec.dtype], "shape": _shape(spec), "data_offsets": offsets}
        position += spec.nbytes
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {len(text)} bytes is over the {MAX_HEADER_BYTES} of the format")
    start = 8 + len(text)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: start + begin for name, begin in begins.items()}, start + position


def _rank(spec: TensorSpec) -> int:
    if spec.dtype not in _RANKS:
        raise ValueError(f"safetensors cannot hold {spec}")
    return _RANKS[spec.dtype]


def _shape(spec: TensorSpec) -> list[int]:
    if _CODES[spec.dtype] != "F4":
        return list(spec.shape)
    if not spec.shape:
        raise ValueError(f"safetensors cannot hold the scalar {spec}")
    return [*spec.shape[:-1], spec.shape[-1] * 2]  # torch counts pairs, the header elements


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The tensor's values as bytes in row-major order: its own memory where it is contiguous, else a copy."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return plain.view(-1).view(torch.uint8).numpy().data


class SafetensorsWriter:
    """One safetensors file, written tensor by tensor.

    Args:
        path: The file, created or overwritten; its whole size is reserved at once.
        specs: All tensors that it will hold.
        metadata: Strings for the header, in this order; None leaves them out.

    Raises:
        DiskFullError, OutputError: The file system refuses; a file that could not be reserved is removed.
        ValueError: The format cannot hold ``specs``.
    """

    def __init__(
        self, path: Path, specs: Iterable[TensorSpec], metadata: Mapping[str, str] | None = PT_METADATA
    ) -> None:
        announced = tuple(specs)
        header, self._offsets, size = encode_header(announced, metadata)
        self._missing = {spec.name: spec for spec in announced}
        self.path = path
        self.bytes_written = 0
        with writing(path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(path, flags, 0o666)
            try:
                _reserve(self._descriptor, size)
                _write_at(self._descriptor, memoryview(header), 0)
            except BaseException:
                self.abort()
                path.unlink()
                raise

    def write(self, name: str, tensor: Tensor) -> None:
        """Put a tensor's bytes where the header says.

        Raises:
            DiskFullError, OutputError: The file system refuses.
            ValueError: The name is unknown or was written already, or shape or dtype are not the announced
                ones.
        """
        spec = self._missing.get(name)
        if spec is None:
            state = "was written already" if name in self._offsets else "is not among this file's tensors"
            raise ValueError(f"{self.path}: {name!r} {state}")
        if TensorSpec.of(name, tensor) != spec or tensor.layout != torch.strided or tensor.is_meta:
            raise ValueError(f"{self.path}: announced {spec}, got {TensorSpec.of(name, tensor)} ({tensor.device})")
        with writing(self.path):
            if spec.nbytes:
                _write_at(self._descriptor, tensor_bytes(tensor), self._offsets[name])
        self.bytes_written += spec.nbytes
        del self._missing[name]

    @property
    def missing(self) -> tuple[str, ...]:
        """The names not written yet."""
        return tuple(self._missing)

    def close(self) -> None:
        """Make the file durable and close it.

        Raises:
            DiskFullError, OutputError: The device failed.
            ValueError: Tensors are missing; the file is closed all the same.
        """
        try:
            if self._missing:
                raise ValueError(f"{self.path}: never written: {', '.join(map(repr, self._missing))}")
            with writing(self.path):
                os.fsync(self._descriptor)
        finally:
            self.abort()

    def abort(self) -> None:
        """Close the descriptor; the file stays as it is. Does nothing the second time."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _reserve(descriptor: int, size: int) -> None:
    """Give the file its size, with real blocks where the file system can, so that a full disk shows now."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    os.ftruncate(descriptor, size)


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done : done + _MOST_PER_CALL], offset + done)


class ShardedWriter:
    """The weight files of a checkpoint; tensors come in any order.

    A file is opened at its first tensor. With its last one it is closed, durable and hashed: final on disk.

    Raises:
        ValueError: Two shards share a tensor or a file name, or one is empty.
    """

    def __init__(self, directory: Path, shards: Sequence[Shard]) -> None:
        self.directory = directory
        self.bytes_written = 0
        self._shards = tuple(shards)
        self._homes = {spec.name: part for part in shards for spec in part.specs}
        self._open: dict[str, SafetensorsWriter] = {}
        self._digests: dict[str, str] = {}
        if len(self._homes) != sum(len(part.specs) for part in shards):
            raise ValueError("a tensor is in two shards")
        if len({part.filename for part in shards}) != len(shards) or not all(part.specs for part in shards):
            raise ValueError("two shards share a file name, or one holds nothing")

    def write(self, name: str, tensor: Tensor) -> None:
        """Write a tensor into its shard.

        Raises:
            DiskFullError, OutputError: The file system refuses.
            ValueError: As ``SafetensorsWriter.write``.
        """
        home = self._homes.get(name)
        if home is None or home.filename in self._digests:
            state = "was written already" if home else "is in no shard"
            raise ValueError(f"{self.directory}: {name!r} {state}")
        writer = self._open.get(home.filename)
        if writer is None:
            writer = self._open[home.filename] = SafetensorsWriter(self.directory / home.filename, home.specs)
        before = writer.bytes_written
        writer.write(name, tensor)
        self.bytes_written += writer.bytes_written - before
        if not writer.missing:
            writer.close()
            del self._open[home.filename]
            self._digests[home.filename] = sha256_file(writer.path)

    def finish(self) -> dict[str, str]:
        """Write the index file if there are several shards.

        Returns:
            The SHA-256 of each file by its name: the shards in order, then the index file.

        Raises:
            DiskFullError, OutputError: The file system refuses.
            ValueError: Shards are incomplete; the descriptors are closed all the same.
        """
        unfinished = [part.filename for part in self._shards if part.filename not in self._digests]
        if unfinished:
            self.abort()
            raise ValueError(f"{self.directory}: incomplete: {', '.join(unfinished)}")
        digests = {part.filename: self._digests[part.filename] for part in self._shards}
        name = index_filename(self._shards)
        if name is not None:
            write_json(self.directory / name, index(self._shards))
            digests[name] = sha256_file(self.directory / name)
        return digests

    def abort(self) -> None:
        """Close all descriptors; the files stay as they are."""
        for writer in self._open.values():
            writer.abort()
        self._open.clear()
