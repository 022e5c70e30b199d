"""One commit of a repository as the small Hub keeps it: files, and what git and git-lfs call their contents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llamaconv.digests import sha256_bytes, sha256_file

__all__ = ["Repository", "StoredFile"]

_LARGE_SUFFIXES = (".safetensors", ".bin")
_LARGE_BYTES = 10_000_000


@dataclass(frozen=True)
class StoredFile:
    """A file of a commit; hashes are computed when somebody asks for them.

    Attributes:
        name: Path in the repository.
        content: Its bytes, or the file that has them.
        large: Kept in large file storage; git has a pointer to it.
    """

    name: str
    content: bytes | Path
    large: bool

    @cached_property
    def size(self) -> int:
        """In bytes."""
        return _size(self.content)

    @cached_property
    def sha256(self) -> str:
        """Of the contents: its name in large file storage."""
        return sha256_bytes(self.content) if isinstance(self.content, bytes) else sha256_file(self.content)

    @cached_property
    def pointer(self) -> bytes:
        """What git keeps of a large file (git-lfs, docs/spec.md, The Pointer)."""
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    @cached_property
    def oid(self) -> str:
        """Name of git's blob: the contents, or the pointer of a large file."""
        data = self.pointer if self.large else self.content
        data = data if isinstance(data, bytes) else data.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Its entry in a tree listing."""
        entry: dict[str, Any] = {"type": "file", "oid": self.oid, "size": self.size, "path": self.name}
        if self.large:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": len(self.pointer)}
        return entry


class Repository:
    """One commit of a model repository.

    Args:
        name: ``org/name``.
        files: Contents by name: bytes, or the file that has them.
        large: Names kept in large file storage; None: ``.safetensors``, ``.bin`` and whatever has 10 MB.
        revisions: Branches and tags that point at this commit.
        gated: Everybody may see it, but only the holder of the Hub's token may fetch its files.
        private: It exists for the holder of the Hub's token only.
    """

    def __init__(
        self,
        name: str,
        files: Mapping[str, bytes | Path],
        *,
        large: frozenset[str] | None = None,
        revisions: tuple[str, ...] = ("main",),
        gated: bool = False,
        private: bool = False,
    ) -> None:
        self.name, self.revisions, self.gated, self.private = name, revisions, gated, private
        self.files = {
            file: StoredFile(file, content, _is_large(file, content) if large is None else file in large)
            for file, content in sorted(files.items())
        }

    @classmethod
    def of_directory(cls, name: str, directory: Path, **settings: Any) -> Repository:
        """Every file below ``directory``."""
        files = {str(file.relative_to(directory)): file for file in directory.rglob("*") if file.is_file()}
        return cls(name, files, **settings)

    def __iter__(self) -> Iterator[StoredFile]:
        return iter(self.files.values())

    @cached_property
    def commit(self) -> str:
        """40 hexadecimal digits that stand for names and contents."""
        listing = "".join(f"{file.oid} {file.name}\n" for file in self)
        return hashlib.sha1(listing.encode(), usedforsecurity=False).hexdigest()

    def tree(self) -> list[dict[str, Any]]:
        """The entries of a recursive listing: directories and files, by path."""
        folders = {file.name[:end] for file in self for end, char in enumerate(file.name) if char == "/" and end}
        entries = [{"type": "directory", "oid": _folder_id(folder), "size": 0, "path": folder} for folder in folders]
        entries += [file.to_json() for file in self]
        return sorted(entries, key=lambda entry: str(entry["path"]))


def _is_large(name: str, content: bytes | Path) -> bool:
    return name.endswith(_LARGE_SUFFIXES) or _size(content) >= _LARGE_BYTES


def _size(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _folder_id(folder: str) -> str:
    """In the place of a tree object's name, which nothing asks for."""
    return hashlib.sha1(folder.encode(), usedforsecurity=False).hexdigest()
