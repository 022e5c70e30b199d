"""Weight files written in place: tensors go to their offsets in any order, from any thread."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Condition

import torch
from torch import Tensor

from llamaconv.disk import reserve, write_at, writing
from llamaconv.extents import Extent
from llamaconv.sinks.copying import copy_extents
from llamaconv.sinks.sealing import Sealing, crc32
from llamaconv.sinks.skeleton import Skeleton
from llamaconv.tensors import TensorSpec

__all__ = ["InPlaceWriter", "tensor_bytes"]

_MOST_PER_CALL = 1 << 26  # a call cannot be given up


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The tensor's values as bytes in row-major order: its own memory where it is contiguous, else a copy."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    if plain.stride()[-1:] not in ((), (1,)):  # an axis of one value may have any stride
        plain = plain.clone(memory_format=torch.contiguous_format)
    return plain.view(-1).view(torch.uint8).numpy().data


class InPlaceWriter:
    """One weight file, written tensor by tensor. Each format has a function that lays it out, as a skeleton.

    Several threads may write different tensors at once. The peak memory is one tensor for each of them. Meanwhile
    one more thread may hash the file's front, all that lies before the first tensor to come, and one make it durable;
    what they leave is done when the file is closed.

    Args:
        path: The file, created or overwritten; its whole size is reserved at once.
        specs: All tensors that it will hold.
        skeleton: Where they go, and what lies around them.

    Raises:
        DiskFullError, OutputError: The file system refuses; a file that could not be reserved is removed.
    """

    def __init__(self, path: Path, specs: Iterable[TensorSpec], skeleton: Skeleton) -> None:
        self.path = path
        self.bytes_written = 0
        self._skeleton = skeleton
        self._missing = {spec.name: spec for spec in specs}
        filled = [name for name, spec in self._missing.items() if spec.nbytes]
        self._backwards = sorted(filled, key=skeleton.offsets.__getitem__, reverse=True)  # the front's tensor is last
        self._busy: set[str] = set()
        self._users = 0  # of the descriptor
        self._given_up = False
        self._durable = 0  # bytes of the front
        self._state = Condition()  # guards all that changes
        with writing(path):
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(path, flags, 0o666)
            self._sealing = Sealing(self._descriptor)
            try:
                reserve(self._descriptor, skeleton.nbytes)
                for offset, piece in skeleton.pieces:
                    write_at(self._descriptor, piece, offset)
            except BaseException:
                self.abort()
                path.unlink()
                raise

    def write(self, name: str, tensor: Tensor) -> None:
        """Put a tensor's bytes where they belong.

        Raises:
            DiskFullError, OutputError: The file system refuses.
            ValueError: The name is unknown or was written already, or shape or dtype are not the announced
                ones; or the file is given up meanwhile.
        """
        with self._filling(name) as spec:
            if TensorSpec.of(name, tensor) != spec or tensor.layout != torch.strided or tensor.is_meta:
                raise ValueError(f"{self.path}: announced {spec}, got {TensorSpec.of(name, tensor)} ({tensor.device})")
            with writing(self.path):
                if spec.nbytes:
                    self._put(tensor_bytes(tensor), self._skeleton.offsets[name])

    def copy(self, name: str, extents: Sequence[Extent]) -> None:
        """Put bytes of other files where a tensor's belong: its values in row-major order, as they are there.

        Raises:
            CheckpointError: A source is gone, unreadable or not the one whose header was read.
            DiskFullError, OutputError: The file system refuses.
            ValueError: The name is unknown or was written already, or the sizes do not add up to the announced
                one; or the file is given up meanwhile.
        """
        with self._filling(name) as spec:
            nbytes = sum(extent.nbytes for extent in extents)
            if nbytes != spec.nbytes:
                raise ValueError(f"{self.path}: announced {spec} of {spec.nbytes} bytes, got {nbytes}")
            copy_extents(extents, self._descriptor, self._skeleton.offsets[name], self.path, self._check)

    def _put(self, data: memoryview, offset: int) -> None:
        for begin in range(0, len(data), _MOST_PER_CALL):
            self._check()
            write_at(self._descriptor, data[begin : begin + _MOST_PER_CALL], offset + begin)

    def _check(self) -> None:
        if self._given_up:
            raise ValueError(f"{self.path}: given up")

    @contextmanager
    def _filling(self, name: str) -> Iterator[TensorSpec]:
        """Within it, the tensor is this thread's to write; it is written if nothing is raised."""
        with self._state:
            spec = self._missing.get(name)
            if spec is None or name in self._busy or self._given_up:
                raise ValueError(f"{self.path}: {name!r} {self._why_not(name)}")
            self._busy.add(name)
        try:
            with self._using():
                yield spec
                self._fill_in_checksum(spec)
        except BaseException:
            self._release(name)
            raise
        self._release(name, spec.nbytes)

    @contextmanager
    def _using(self) -> Iterator[None]:
        """Within it, the descriptor stays open."""
        with self._state:
            self._check()
            self._users += 1
        try:
            yield
        finally:
            with self._state:
                self._users -= 1
                self._state.notify_all()

    def _fill_in_checksum(self, spec: TensorSpec) -> None:
        places = self._skeleton.checksums.get(spec.name, ())
        if places:
            begin = self._skeleton.offsets[spec.name]
            with writing(self.path):
                crc = crc32(self._descriptor, begin, begin + spec.nbytes, self._check)
                for place in places:
                    write_at(self._descriptor, crc.to_bytes(4, "little"), place)

    def _why_not(self, name: str) -> str:
        if name not in self._skeleton.offsets:
            return "is not among this file's tensors"
        if name in self._busy:
            return "is being written"
        return "comes after the file was closed" if name in self._missing else "was written already"

    def _release(self, name: str, written: int | None = None) -> None:
        with self._state:
            if written is not None:
                del self._missing[name]
                self.bytes_written += written
            self._busy.remove(name)
            while self._backwards and self._backwards[-1] not in self._missing:
                self._backwards.pop()

    @property
    def missing(self) -> tuple[str, ...]:
        """The names not written yet."""
        with self._state:
            return tuple(self._missing)

    @property
    def complete(self) -> bool:
        """Whether all tensors are written."""
        return not self._missing

    @property
    def unsealed(self) -> int:
        """Bytes of the front that are not hashed yet."""
        return self._front - self._sealing.position

    @property
    def fleeting(self) -> int:
        """Bytes of the front that a power cut may still take."""
        return self._front - self._durable

    @property
    def _front(self) -> int:
        with self._state:
            return self._skeleton.offsets[self._backwards[-1]] if self._backwards else self._skeleton.nbytes

    def seal(self) -> None:
        """Hash the front as far as it is now. One thread at a time.

        Raises:
            OutputError: The file cannot be read.
            ValueError: The file is given up meanwhile.
        """
        with self._using(), writing(self.path):
            self._sealing.advance(self._front, self._check)

    def sync(self) -> None:
        """Make the front durable as far as it is now. One thread at a time.

        Raises:
            DiskFullError, OutputError: The device failed.
            ValueError: The file was given up before.
        """
        with self._using(), writing(self.path):
            front = self._front
            os.fsync(self._descriptor)
            self._durable = front

    def close(self) -> str:
        """Complete the file, make it durable and close it.

        Returns:
            Its SHA-256.

        Raises:
            DiskFullError, OutputError: The device failed.
            ValueError: Tensors are missing; the file is closed all the same.
        """
        try:
            missing = self.missing
            if missing:
                raise ValueError(f"{self.path}: never written: {', '.join(map(repr, missing))}")
            if self.unsealed:
                self.seal()
            if self.fleeting:
                self.sync()
            return self._sealing.hexdigest()
        finally:
            self.abort()

    def abort(self) -> None:
        """Close the descriptor; the file stays as it is. Does nothing the second time.

        Whoever is writing or hashing is stopped, which takes a moment, and waited for.
        """
        with self._state:
            self._given_up = True
            self._state.wait_for(lambda: not self._users)  # a closed descriptor's number may soon be another file's
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
