"""The built-in corpus: written for this project, found in wheels and checkouts, verified when it is read."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterable
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from llamaconv.calibration.readers import Document
from llamaconv.digests import sha256_bytes
from llamaconv.errors import IntegrityError

__all__ = ["Split", "corpus_folder", "read_corpus"]

Split = Literal["calibration", "evaluation"]
_INDEX = "index.json"


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    file: str
    kind: str
    language: str
    split: Split
    bytes: int
    sha256: str


class _Index(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    licence: str
    documents: tuple[_Entry, ...]
    sha256: str


def corpus_folder(candidates: Iterable[Traversable] | None = None) -> Traversable:
    """Where the corpus is: the first of ``candidates`` that holds an index.

    By default ``_data/calibration`` in the installed package, else ``calibration/`` beside it, which is where
    an editable installation and a plain checkout have it.

    Raises:
        IntegrityError: It is in none of them.
    """
    if candidates is None:
        package = importlib.resources.files("llamaconv")
        candidates = (package / "_data" / "calibration", Path(__file__).parents[2] / "calibration")
    places = list(candidates)
    for place in places:
        if (place / _INDEX).is_file():
            return place
    looked = " and ".join(str(place) for place in places)
    raise _damaged([f"it is not there (looked in {looked})."])


def read_corpus(split: Split, folder: Traversable | None = None) -> tuple[Document, ...]:
    """The documents of one split, in the index's order, each checked against its SHA-256.

    Raises:
        IntegrityError: The corpus is missing, incomplete, or was changed; all faulty documents are named.
    """
    folder = corpus_folder() if folder is None else folder
    documents, faults = [], []
    for entry in _read_index(folder).documents:
        if entry.split != split:
            continue
        try:
            data = folder.joinpath(*entry.file.split("/")).read_bytes()
        except OSError as error:
            faults.append(f"{entry.file}: {error.strerror}.")
            continue
        if (digest := sha256_bytes(data)) != entry.sha256:
            faults.append(f"{entry.file}: its SHA-256 is {digest}, not {entry.sha256}.")
            continue
        documents.append(Document(entry.file, data.decode("utf-8")))
    if faults:
        raise _damaged(faults)
    return tuple(documents)


def _read_index(folder: Traversable) -> _Index:
    try:
        index = _Index.model_validate_json((folder / _INDEX).read_bytes())
    except (OSError, ValidationError) as error:
        raise _damaged([f"{_INDEX} cannot be read."]) from error
    lines = "".join(f"{entry.sha256}  {entry.file}\n" for entry in index.documents)
    if sha256_bytes(lines.encode()) != index.sha256:
        raise _damaged([f"{_INDEX} does not agree with its own digest."])
    return index


def _damaged(faults: list[str]) -> IntegrityError:
    return IntegrityError(
        "\n".join(f"the built-in calibration corpus: {fault}" for fault in faults),
        hint="Reinstall llamaconv, or give data of your own with --calibration.",
    )
