"""The unfinished files in a local directory: one part for each file of each repository."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock

from llamaconv.disk import writing
from llamaconv.errors import OutputError
from llamaconv.hub.beneath import Tree
from llamaconv.hub.entries import checked, entry
from llamaconv.hub.part import bytes_held

__all__ = ["Parts"]


class Parts:
    """The unfinished files of one repository; several threads may use them, each for files of its own.

    Args:
        state: The folder of the local directory that is ours.
        repository: Whose. Those of others are neither seen nor touched.
    """

    def __init__(self, state: Tree, repository: str) -> None:
        self._state = state
        self._folder = f"parts/{entry(repository, '')}"
        self._folders = Lock()  # one thread must not remove the empty folder that another has just made

    def open(self, name: str) -> int:
        """A descriptor to read and write the part of ``name``, made empty if there is none; the caller closes it."""
        place = self.place(name)
        with writing(self._state.path / place), self._folders:
            descriptor = self._state.open(place, os.O_RDWR | os.O_CREAT, make=True)
            if os.fstat(descriptor).st_nlink == 1:
                return descriptor
            os.close(descriptor)  # a copy by hard links: what it is elsewhere must not change
            self._state.remove(place)
            return self._state.open(place, os.O_RDWR | os.O_CREAT, make=True)

    @contextmanager
    def reading(self, name: str) -> Iterator[int | None]:
        """A descriptor to read the part of ``name``; None if there is none."""
        with self._reading(self.place(name)) as descriptor:
            yield descriptor

    def drop(self, name: str) -> None:
        """Throw away the part of ``name``, if there is one."""
        self._drop(self.place(name))

    def prune(self, name: str) -> None:
        """Remove the folders that the part of ``name`` lay in, as far as they are empty."""
        with self._folders:
            self._state.prune(self.place(name))

    def require_same(self, name: str, written: os.stat_result, size: int) -> None:
        """Raise if the part of ``name`` is not the file that was ``written``, of ``size`` bytes.

        Raises:
            OutputError: Another program changed it.
        """
        place = self.place(name)
        found = self._state.status(place)
        if found is None or not os.path.samestat(found, written) or written.st_size != size:
            path = self._state.path / place
            raise OutputError(
                f"{path} was changed by another program.",
                hint="Let nothing else write there, then start again.",
                file=str(path),
            )

    def sweep(self, names: Iterable[str]) -> list[tuple[str, int]]:
        """Throw away the parts that are of none of ``names``; returns what they were called, and their bytes."""
        kept = {entry(name, ".part") for name in names}
        with writing(self._state.path / self._folder):
            found = sorted(set(self._state.files(self._folder)).difference(kept))
        swept = []
        for part in found:
            if part.endswith(".part") and "/" not in part:
                swept.append((part.removesuffix(".part"), self._held(f"{self._folder}/{part}")))
                self._drop(f"{self._folder}/{part}")
        return swept

    def place(self, name: str) -> str:
        """Of the part of ``name``, in our folder."""
        return f"{self._folder}/{entry(checked(name), '.part')}"

    def _held(self, place: str) -> int:
        with suppress(OutputError), self._reading(place) as descriptor:  # a link, which is removed like the others
            return 0 if descriptor is None else bytes_held(descriptor)
        return 0

    @contextmanager
    def _reading(self, place: str) -> Iterator[int | None]:
        descriptor = None
        with writing(self._state.path / place), suppress(FileNotFoundError):
            descriptor = self._state.open(place, os.O_RDONLY)
        try:
            yield descriptor
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _drop(self, place: str) -> None:
        with writing(self._state.path / place), self._folders:
            self._state.remove(place)
            self._state.prune(place)
