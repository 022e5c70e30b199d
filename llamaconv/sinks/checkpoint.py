"""The weight files of a checkpoint, filled side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Condition

from torch import Tensor

from llamaconv.digests import sha256_file
from llamaconv.disk import writing
from llamaconv.errors import UnsupportedError
from llamaconv.extents import Extent
from llamaconv.sinks.in_place import InPlaceWriter
from llamaconv.sinks.manifest import write_json
from llamaconv.sinks.safetensors import safetensors_refusals, safetensors_skeleton
from llamaconv.sinks.sharding import Shard, index, index_filename
from llamaconv.sinks.skeleton import Skeleton
from llamaconv.sinks.torch_zip import torch_refusals, torch_skeleton
from llamaconv.tensors import TensorSpec

__all__ = ["CheckpointWriter", "require_writable"]

_SEALED_AT_ONCE = 1 << 24  # bytes, beside which the change of threads is nothing
_SYNCED_AT_ONCE = 1 << 28  # bytes; with less the file system is busier with its journal than with them
_MOST_SEALING = 4  # a disk is no faster


def require_writable(shards: Iterable[Shard]) -> None:
    """Find out, without touching the disk, whether the files can be written: their formats can hold the tensors.

    Args:
        shards: The files, as :class:`CheckpointWriter` takes them.

    Raises:
        UnsupportedError: They cannot; each tensor that is refused stands on a line of its own.
    """
    faults, torch_helps = list[str](), set[bool]()
    for part in shards:
        specs, safetensors = _stored(part), _is_safetensors(part)
        refusals = safetensors_refusals(specs) if safetensors else torch_refusals(specs)
        if not refusals:
            try:
                _skeleton(part)
            except ValueError as error:
                refusals = [str(error)]
        faults += [f"{part.filename}: {refusal}." for refusal in refusals]
        if refusals:
            torch_helps.add(safetensors and not torch_refusals(specs))
    if faults:
        hints = {
            True: "Files of torch can hold them: --format torch, where the layout has it.",
            False: "Convert to a dtype that the file can hold, such as --dtype bfloat16.",
        }
        raise UnsupportedError("\n".join(faults), hint=" ".join(hints[one] for one in sorted(torch_helps)))


def _is_safetensors(part: Shard) -> bool:
    return part.filename.endswith(".safetensors")


def _stored(part: Shard) -> list[TensorSpec]:
    """As the file knows them."""
    return [replace(spec, name=spec.name.removeprefix(part.prefix)) for spec in part.specs]


def _skeleton(part: Shard) -> Skeleton:
    return safetensors_skeleton(_stored(part)) if _is_safetensors(part) else torch_skeleton(_stored(part))


class CheckpointWriter:
    """The weight files of a checkpoint; tensors come in any order, from any thread.

    A file is opened at its first tensor. Threads in the background hash it and make it durable, as far as it goes
    without a gap, while more is written; soon after its last tensor it is final. What goes wrong there is raised by
    the next call.

    Args:
        directory: Where the files go; subfolders that they name are made.
        shards: The files. ``.safetensors`` is that format, any other suffix what ``torch.save`` writes. A tensor's
            name in the file lacks the shard's prefix.

    Raises:
        ValueError: Two shards share a tensor or a file name, one is empty, a name lacks its shard's prefix, or a
            format cannot hold the tensors (:func:`require_writable` tells before).
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
        self._skeletons = {part.filename: _skeleton(part) for part in shards}
        self._state = Condition()  # guards what changes; no data moves under it
        self._writers: dict[str, InPlaceWriter] = {}
        self._digests: dict[str, str] = {}
        self._failures: list[BaseException] = []
        self._at_work: set[Callable[[], None]] = set()  # in one of the pools; one of a kind for each file
        self._ended = False
        self._sealing = ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_SEALING), "llamaconv-seal")
        self._syncing = ThreadPoolExecutor(1, "llamaconv-sync")

    def write(self, name: str, tensor: Tensor) -> None:
        """Write a tensor into its file.

        Raises:
            DiskFullError, OutputError: The file system refuses, now or in the background.
            ValueError: As ``InPlaceWriter.write``; or the checkpoint was finished or aborted.
        """
        with self._file_of(name) as (writer, stored):
            writer.write(stored, tensor)

    def copy(self, name: str, extents: Sequence[Extent]) -> None:
        """Copy a tensor from other files into its own: its values in row-major order, as they are there.

        Raises:
            CheckpointError: A source is gone, unreadable or not the one whose header was read.
            DiskFullError, OutputError: The file system refuses, now or in the background.
            ValueError: As ``InPlaceWriter.copy``; or the checkpoint was finished or aborted.
        """
        with self._file_of(name) as (writer, stored):
            writer.copy(stored, extents)

    @contextmanager
    def _file_of(self, name: str) -> Iterator[tuple[InPlaceWriter, str]]:
        """The open file that a tensor belongs to and its name there."""
        home = self._homes.get(name)
        with self._state:
            if self._ended:
                raise ValueError(f"{self.directory}: {name!r} comes after the end")
            self._raise_failures()
            if home is None:
                raise ValueError(f"{self.directory}: {name!r} is in no shard")
            writer = self._writers.get(home.filename)
            if writer is None:
                writer = self._writers[home.filename] = self._created(home)
        yield writer, name.removeprefix(home.prefix)
        with self._state:
            self._follow(home.filename)

    def _raise_failures(self) -> None:
        for failure in self._failures:
            raise failure

    def _follow(self, filename: str) -> None:
        """Have done what can be done for a file, as far as it was written; call it with the lock held."""
        if self._ended or self._failures or filename in self._digests:
            return
        writer = self._writers[filename]
        if writer.complete and not writer.unsealed and not writer.fleeting:
            self._digests[filename] = writer.close()
            return
        for pool, work, left, enough in [
            (self._sealing, writer.seal, writer.unsealed, _SEALED_AT_ONCE),
            (self._syncing, writer.sync, writer.fleeting, _SYNCED_AT_ONCE),
        ]:
            if work not in self._at_work and left >= (1 if writer.complete else enough):
                self._at_work.add(work)
                pool.submit(self._do, work, filename)

    def _do(self, work: Callable[[], None], filename: str) -> None:
        failure: BaseException | None = None
        try:
            work()
        except BaseException as error:  # the next call raises it
            failure = error
        with self._state:
            self._at_work.remove(work)
            try:
                if failure is not None:
                    raise failure
                self._follow(filename)
            except BaseException as error:
                if not self._ended:  # who is given up says so
                    self._failures.append(error)
            self._state.notify_all()

    def _created(self, part: Shard) -> InPlaceWriter:
        path = self.directory / part.filename
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return InPlaceWriter(path, _stored(part), self._skeletons[part.filename])

    def finish(self) -> dict[str, str]:
        """Wait until all files are final; write the index file if they have one.

        Returns:
            The SHA-256 of each file by its name: the shards in order, then the index file.

        Raises:
            DiskFullError, OutputError: The file system refuses, now or in the background.
            ValueError: Shards are incomplete; the descriptors are closed all the same.
        """
        try:
            with self._state:
                self._state.wait_for(lambda: not self._at_work or self._failures or self._ended)
                self._raise_failures()
                unfinished = [part.filename for part in self._shards if part.filename not in self._digests]
                if unfinished:
                    raise ValueError(f"{self.directory}: incomplete: {', '.join(unfinished)}")
                digests = {part.filename: self._digests[part.filename] for part in self._shards}
        finally:
            self.abort()
        name = index_filename(self._shards)
        if name is not None:
            write_json(self.directory / name, index(self._shards))
            digests[name] = sha256_file(self.directory / name)
        return digests

    def abort(self) -> None:
        """Close all descriptors; the files stay as they are. Does nothing the second time.

        Whoever is writing or hashing is stopped, which takes a moment; what the system is putting on the disk right
        then is waited for.
        """
        with self._state:
            self._ended = True
            self._state.notify_all()
        for pool in (self._sealing, self._syncing):
            pool.shutdown(wait=False, cancel_futures=True)
        for writer in self._writers.values():
            writer.abort()
        for pool in (self._sealing, self._syncing):
            pool.shutdown()
