"""Weight files written in place: tensors go to their offsets in any order, from any thread."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Condition

import torch
from torch import Tensor

from llamaconv.extents import Extent
from llamaconv.sinks.copying import copy_extents
from llamaconv.sinks.disk import reserve, write_at, writing
from llamaconv.sinks.skeleton import Skeleton, seal
from llamaconv.tensors import TensorSpec

__all__ = ["InPlaceWriter", "tensor_bytes"]


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The tensor's values as bytes in row-major order: its own memory where it is contiguous, else a copy."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    if plain.stride()[-1:] not in ((), (1,)):  # an axis of one value may have any stride
        plain = plain.clone(memory_format=torch.contiguous_format)
    return plain.view(-1).view(torch.uint8).numpy().data


class InPlaceWriter:
    """One weight file, written tensor by tensor. Each format has a subclass that lays the file out.

    Several threads may write different tensors at once. The peak memory is one tensor for each of them.

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
        self._busy: set[str] = set()
        self._state = Condition()  # guards all that changes
        with writing(path):
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(path, flags, 0o666)
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
                ones.
        """
        with self._filling(name) as spec:
            if TensorSpec.of(name, tensor) != spec or tensor.layout != torch.strided or tensor.is_meta:
                raise ValueError(f"{self.path}: announced {spec}, got {TensorSpec.of(name, tensor)} ({tensor.device})")
            with writing(self.path):
                if spec.nbytes:
                    write_at(self._descriptor, tensor_bytes(tensor), self._skeleton.offsets[name])

    def copy(self, name: str, extents: Sequence[Extent]) -> None:
        """Put bytes of other files where a tensor's belong: its values in row-major order, as they are there.

        Raises:
            CheckpointError: A source is gone, unreadable or not the one whose header was read.
            DiskFullError, OutputError: The file system refuses.
            ValueError: The name is unknown or was written already, or the sizes do not add up to the announced
                one.
        """
        with self._filling(name) as spec:
            nbytes = sum(extent.nbytes for extent in extents)
            if nbytes != spec.nbytes:
                raise ValueError(f"{self.path}: announced {spec} of {spec.nbytes} bytes, got {nbytes}")
            copy_extents(extents, self._descriptor, self._skeleton.offsets[name], self.path)

    @contextmanager
    def _filling(self, name: str) -> Iterator[TensorSpec]:
        """Within it, the tensor is this thread's to write; it is written if nothing is raised."""
        with self._state:
            spec = self._missing.get(name)
            if spec is None or name in self._busy or self._descriptor < 0:
                raise ValueError(f"{self.path}: {name!r} {self._why_not(name)}")
            self._busy.add(name)
        try:
            yield spec
        except BaseException:
            self._release(name)
            raise
        self._release(name, spec.nbytes)

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
            self._state.notify_all()

    @property
    def missing(self) -> tuple[str, ...]:
        """The names not written yet."""
        with self._state:
            return tuple(self._missing)

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
            with writing(self.path):
                digest = seal(self._descriptor, self._skeleton)
                os.fsync(self._descriptor)
            return digest
        finally:
            self.abort()

    def abort(self) -> None:
        """Close the descriptor once no thread writes; the file stays as it is. Does nothing the second time."""
        with self._state:
            self._state.wait_for(lambda: not self._busy)  # a closed descriptor's number may soon be another file's
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
