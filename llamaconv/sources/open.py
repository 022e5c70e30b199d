"""Find the weights under a path that a user gave."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llamaconv.errors import CheckpointError, InputError
from llamaconv.sources.base import CheckpointReader, one_per_line, torch_file
from llamaconv.sources.index import TORCH_SUFFIXES, open_index
from llamaconv.sources.safetensors import SafetensorsReader, read_header, read_headers

__all__ = ["Checkpoint", "open_checkpoint"]

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_NUMBERED = re.compile(r"(?P<stem>.*)-(?P<number>[0-9]{1,9})-of-(?P<count>[0-9]{1,9})\.safetensors")
_MOST_SHARDS = 100_000  # a file name alone must not cost memory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A model's weights and the folder where its config.json and tokenizer lie."""

    directory: Path
    reader: CheckpointReader


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a directory, a single safetensors file or an index.json. Only headers are read.

    In a directory the weights are ``model.safetensors.index.json``'s, else ``model.safetensors``, else all
    ``*.safetensors`` files together. Symbolic links are followed and not replaced by where they lead: in the
    Hub's cache config.json lies beside the link, not beside the blob.

    Raises:
        CheckpointError: Nothing there, or damaged or incomplete weights.
        UnsupportedError: The weights are torch files.
    """
    if os.path.isdir(path):
        return Checkpoint(path, _open_directory(path))
    if not os.path.lexists(path):
        raise CheckpointError(f"{path} does not exist.", file=str(path))
    if path.suffix in TORCH_SUFFIXES:
        raise torch_file(path)
    reader = open_index(path) if path.suffix == ".json" else SafetensorsReader([read_header(path)])
    return Checkpoint(path.parent, reader)


def _open_directory(directory: Path) -> SafetensorsReader:
    try:
        found = sorted(os.listdir(directory))
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be read: {error.strerror}.", file=str(directory)) from error
    if _INDEX in found:
        if _SINGLE in found:
            logger.warning("%s: %s is used, %s beside it is not", directory, _INDEX, _SINGLE)
        return open_index(directory / _INDEX)
    if _SINGLE in found:
        return SafetensorsReader([read_header(directory / _SINGLE)])
    names = [name for name in found if name.endswith(".safetensors")]
    if not names:
        raise _no_weights(directory, found)
    missing = _missing_numbers(names)
    if missing:
        message = one_per_line([f"{directory}: the shard {name!r} is missing." for name in missing])
        raise CheckpointError(message, hint="The checkpoint is incomplete: download it again.", missing=missing)
    return SafetensorsReader(read_headers([directory / name for name in names]))


def _no_weights(directory: Path, found: Sequence[str]) -> InputError:
    """The error for a directory without safetensors files, which says what was found instead."""
    if not found:
        return CheckpointError(f"{directory} is empty.", file=str(directory))
    pickles = [name for name in found if Path(name).suffix in TORCH_SUFFIXES]
    if pickles:
        return torch_file(directory / pickles[0])
    shown = ", ".join(found[:10]) + (f" and {len(found) - 10} more" if len(found) > 10 else "")
    hint = "Give the folder that holds the *.safetensors files."
    if "snapshots" in found:
        hint = "This is a folder of the Hub's cache: give the one below snapshots/."
    return CheckpointError(f"{directory}: no weights there, only {shown}.", hint=hint, file=str(directory))


def _missing_numbers(names: Sequence[str]) -> list[str]:
    """The shards that the numbering "…-00001-of-00005" of their siblings promises and ``names`` lacks."""
    present = set(names)
    matches = (match for name in names if (match := _NUMBERED.fullmatch(name)))
    series = {(match["stem"], len(match["number"]), match["count"]) for match in matches}
    return [
        sibling
        for stem, width, count in sorted(series)
        for number in range(1, min(int(count), _MOST_SHARDS) + 1)
        if (sibling := f"{stem}-{number:0{width}}-of-{count}.safetensors") not in present
    ]
