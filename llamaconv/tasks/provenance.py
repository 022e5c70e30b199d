"""Which software made an artifact, and where its source came from."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import version as installed
from pathlib import Path

import llamaconv
from llamaconv.errors import OutputError
from llamaconv.hub.folder import Folder, Standing

__all__ = ["downloaded_from", "libraries", "version"]


def version() -> str:
    """llamaconv's version."""
    return llamaconv.__version__


def libraries(*used: str) -> dict[str, str]:
    """Versions of the libraries that have a say in the bytes, build tags included."""
    return {name: installed(name) for name in sorted({"torch", "transformers", "safetensors", "numpy", *used})}


def downloaded_from(directory: Path, names: Iterable[str]) -> dict[str, str] | None:
    """Repository and commit that the files ``names`` in ``directory`` are; None unless all are as they were downloaded.

    Nothing is hashed: they have the sizes and modification times that they had when their hashes were right.
    """
    with suppress(OutputError):  # of a directory that is no download's, such as the Hub's cache with its links
        with Folder.look(directory, "") as folder:
            stored = folder.read_listing()
        if stored is None:
            return None
        listed = {file.name: file for file in stored.listing}
        with Folder.look(directory, stored.listing.repository) as folder:
            if all(name in listed and folder.standing(listed[name]) is Standing.DONE for name in names):
                return {"repository": stored.listing.repository, "commit": stored.listing.commit}
    return None
