"""Listings of repositories that are nowhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

import pytest

from llamaconv.errors import LlamaconvError
from llamaconv.hub.repository import Digest, Listing, RemoteFile
from llamaconv.hub.selection import Selection, select

__all__ = ["choose_from", "chosen", "index_of", "listing_of", "refusal", "remote_file", "shards"]


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


def shards(stem: str, count: int, suffix: str = ".safetensors", first: int = 1) -> list[str]:
    """Names of a series as the Hub gives them."""
    return [f"{stem}-{number:05}-of-{count:05}{suffix}" for number in range(first, first + count)]


def index_of(names: Iterable[str]) -> bytes:
    """An index of two tensors in each of these files."""
    return json.dumps({"weight_map": {f"{part}.{name}": name for name in names for part in ("a", "b")}}).encode()


def choose_from(
    names: Iterable[str],
    files: Sequence[str] = (),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    indexes: Mapping[str, Iterable[str]] | None = None,
) -> Selection:
    """The selection from files of those names; ``indexes`` says which names stand in an index."""
    contents = {name: index_of(shards) for name, shards in (indexes or {}).items()}
    return select(listing_of(names), files, include, exclude, lambda file: contents[file.name])


def chosen(selection: Selection) -> list[str]:
    """The names of what was chosen."""
    return [file.name for file in selection.chosen]


def refusal(
    names: Sequence[str], *asked: Sequence[str], indexes: Mapping[str, Iterable[str]] | None = None
) -> LlamaconvError:
    """The error of a selection from files of those names."""
    files, include, exclude = (*asked, (), (), ())[:3]
    with pytest.raises(LlamaconvError) as caught:
        choose_from(names, files, include, exclude, indexes)
    return caught.value
