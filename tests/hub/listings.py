"""Listings of repositories that are nowhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from llamaconv.hub.repository import Digest, Listing, RemoteFile


def remote_file(name: str, size: int | None = None) -> RemoteFile:
    """A file of that name; weights are in large file storage."""
    if name.endswith(".json"):
        digest = Digest("git-sha1", hashlib.sha1(name.encode()).hexdigest())
    else:
        digest = Digest("sha256", hashlib.sha256(name.encode()).hexdigest())
    return RemoteFile(name, len(name) if size is None else size, digest)


def listing_of(names: Iterable[str], repository: str = "org/name") -> Listing:
    """A repository with files of those names."""
    return Listing(repository, "c" * 40, tuple(remote_file(name) for name in sorted(names)))
