"""What the Hub says of a repository's files: name, size and hash, for one commit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

__all__ = ["Algorithm", "Digest", "Hasher", "Listing", "RemoteFile"]

Algorithm = Literal["sha256", "git-sha1"]


class Hasher(Protocol):
    """The part of hashlib's objects that is needed here."""

    def update(self, data: bytes | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


@dataclass(frozen=True)
class Digest:
    """The hash that a file's bytes must have.

    Attributes:
        algorithm: ``sha256`` of files in large file storage; ``git-sha1``, the name of git's blob, of the others:
            SHA-1 of ``blob <length>``, a NUL byte, and the contents (Pro Git, 10.2).
        hexdigest: Lower-case hexadecimal.
    """

    algorithm: Algorithm
    hexdigest: str

    def hasher(self, size: int) -> Hasher:
        """A new hash object for a file of ``size`` bytes."""
        if self.algorithm == "sha256":
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository at one commit.

    Attributes:
        name: Path in the repository, with slashes.
        size: In bytes.
        digest: Of its contents.
    """

    name: str
    size: int
    digest: Digest


@dataclass(frozen=True)
class Listing:
    """The files of a repository at one commit.

    Attributes:
        repository: ``org/name``.
        commit: 40 hexadecimal digits.
        files: Sorted by name.
    """

    repository: str
    commit: str
    files: tuple[RemoteFile, ...]

    def __iter__(self) -> Iterator[RemoteFile]:
        return iter(self.files)

    @property
    def size(self) -> int:
        """Of all files, in bytes."""
        return sum(file.size for file in self.files)
