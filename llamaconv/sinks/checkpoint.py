"""The weight files of a checkpoint, filled side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock

from torch import Tensor

from llamaconv.digests import sha256_file
from llamaconv.extents import Extent
from llamaconv.sinks.disk import writing
from llamaconv.sinks.in_place import InPlaceWriter
from llamaconv.sinks.manifest import write_json
from llamaconv.sinks.safetensors import SafetensorsWriter
from llamaconv.sinks.sharding import Shard, index, index_filename
from llamaconv.sinks.torch_zip import TorchZipWriter

__all__ = ["CheckpointWriter"]


class CheckpointWriter:
    """The weight files of a checkpoint; tensors come in any order, from any thread.

    A file is opened at its first tensor. With its last one it is final: a thread in the background completes it,
    makes it durable and hashes it, while others are written. What goes wrong there is raised by the next call.

    Args:
        directory: Where the files go; subfolders that they name are made.
        shards: The files. ``.safetensors`` is that format, any other suffix what ``torch.save`` writes. A tensor's
            name in the file lacks the shard's prefix.

    Raises:
        ValueError: Two shards share a tensor or a file name, one is empty, or a name lacks its shard's prefix.
    """

    def __init__(self, directory: Path, shards: Sequence[Shard]) -> None:
        self.directory = directory
        self._shards = tuple(shards)
        self._homes = {spec.name: part for part in shards for spec in part.specs}
        if len(self._homes) != sum(len(part.specs) for part in shards):
            raise ValueError("a tensor is in two shards")
        if len({part.filename for part in shards}) != len(shards) or not all(part.specs for part in shards):
            raise ValueError("two shards share a file name, or one holds nothing")
        for name, part in self._homes.items():
            if not name.startswith(part.prefix):
                raise ValueError(f"{name!r} does not begin with {part.prefix!r}, the prefix of {part.filename}")
        self._lock = Lock()  # guards what changes; no data moves under it
        self._writers: dict[str, InPlaceWriter] = {}
        self._digests: dict[str, Future[str]] = {}
        self._ended = False
        self._background = ThreadPoolExecutor(1, "llamaconv-close")

    def write(self, name: str, tensor: Tensor) -> None:
        """Write a tensor into its file.

        Raises:
            DiskFullError, OutputError: The file system refuses, now or while an earlier file was completed.
            ValueError: As ``InPlaceWriter.write``; or the checkpoint was finished or aborted.
        """
        with self._file_of(name) as (writer, stored):
            writer.write(stored, tensor)

    def copy(self, name: str, extents: Sequence[Extent]) -> None:
        """Copy a tensor from other files into its own: its values in row-major order, as they are there.

        Raises:
            CheckpointError: A source is gone, unreadable or not the one whose header was read.
            DiskFullError, OutputError: The file system refuses, now or while an earlier file was completed.
            ValueError: As ``InPlaceWriter.copy``; or the checkpoint was finished or aborted.
        """
        with self._file_of(name) as (writer, stored):
            writer.copy(stored, extents)

    @contextmanager
    def _file_of(self, name: str) -> Iterator[tuple[InPlaceWriter, str]]:
        """The open file that a tensor belongs to and its name there; closed afterwards if that was the last."""
        home = self._homes.get(name)
        with self._lock:
            if self._ended:
                raise ValueError(f"{self.directory}: {name!r} comes after the end")
            self._raise_failures()
            if home is None:
                raise ValueError(f"{self.directory}: {name!r} is in no shard")
            writer = self._writers.get(home.filename)
            if writer is None:
                writer = self._writers[home.filename] = self._created(home)
        yield writer, name.removeprefix(home.prefix)
        with self._lock:
            # Two threads may both have seen the last tensor in.
            if not writer.missing and home.filename not in self._digests and not self._ended:
                self._digests[home.filename] = self._background.submit(writer.close)

    def _raise_failures(self) -> None:
        for digest in self._digests.values():
            if digest.done():
                digest.result()

    def _created(self, part: Shard) -> InPlaceWriter:
        path = self.directory / part.filename
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        specs = [replace(spec, name=spec.name.removeprefix(part.prefix)) for spec in part.specs]
        return SafetensorsWriter(path, specs) if path.suffix == ".safetensors" else TorchZipWriter(path, specs)

    def finish(self) -> dict[str, str]:
        """Wait until all files are final; write the index file if they have one.

        Returns:
            The SHA-256 of each file by its name: the shards in order, then the index file.

        Raises:
            DiskFullError, OutputError: The file system refuses, now or while a file was completed.
            ValueError: Shards are incomplete; the descriptors are closed all the same.
        """
        try:
            with self._lock:
                completed = dict(self._digests)
            found = {filename: digest.result() for filename, digest in completed.items()}
            unfinished = [part.filename for part in self._shards if part.filename not in found]
            if unfinished:
                raise ValueError(f"{self.directory}: incomplete: {', '.join(unfinished)}")
            digests = {part.filename: found[part.filename] for part in self._shards}
        finally:
            self.abort()
        name = index_filename(self._shards)
        if name is not None:
            write_json(self.directory / name, index(self._shards))
            digests[name] = sha256_file(self.directory / name)
        return digests

    def abort(self) -> None:
        """Close all descriptors once no thread writes; the files stay as they are. Does nothing the second time."""
        with self._lock:
            self._ended = True
        self._background.shutdown(cancel_futures=True)
        for writer in self._writers.values():
            writer.abort()
