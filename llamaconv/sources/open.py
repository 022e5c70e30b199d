"""Find the weights under a path that a user gave."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from llamaconv.errors import CheckpointError
from llamaconv.sources.base import CheckpointReader
from llamaconv.sources.directory import Choice, choose, listed, weight_names
from llamaconv.sources.files import FilesReader
from llamaconv.sources.index import open_index
from llamaconv.sources.weights import open_weights, open_weights_together

__all__ = ["Checkpoint", "open_checkpoint", "require_there"]

_INDEX = ".json"
_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", _INDEX)
_MOST_NAMED = 3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A model's weights and the folder where its config.json and tokenizer lie."""

    directory: Path
    reader: CheckpointReader


def open_checkpoint(path: Path, prefer: str | None = None) -> Checkpoint:
    """Open a directory, a single safetensors or torch file, or an index.json. Only what describes tensors is read.

    Which files of a directory are its weights, ``choose`` says, those of the layout ``prefer`` first; what they are,
    their content. Files of tensor-parallel ranks are one checkpoint whose names begin with the rank ("00/"). Symbolic
    links are followed and not replaced by where they lead: in the Hub's cache config.json lies beside the link, not
    beside the blob.

    Raises:
        CheckpointError: Nothing there, or damaged or incomplete weights.
        UnsupportedError: The weights are of a kind that is not read, or hold more than tensors.
    """
    if os.path.isdir(path):
        return _open_directory(path, prefer)
    require_there(path)
    reader = open_index(path) if path.suffix == _INDEX else FilesReader([open_weights(path)])
    return Checkpoint(path.parent, reader)


def require_there(path: Path) -> None:
    """Refuse a path under which there is nothing.

    Raises:
        CheckpointError: There is not.
    """
    if os.path.lexists(path):
        return
    hint = "A repository of the Hub is given as hf://org/name." if _may_mean_a_repository(path) else None
    raise CheckpointError(f"{path} does not exist.", hint=hint, file=str(path))


def _may_mean_a_repository(path: Path) -> bool:
    parts = path.parts
    if parts[:1] == ("hf:",):  # two slashes in a row are one in a path
        return True
    return len(parts) == 2 and parts[0] not in (os.sep, os.pardir) and path.suffix not in _WEIGHTS


def _open_directory(directory: Path, prefer: str | None) -> Checkpoint:
    choice = choose(directory, prefer)
    paths = [choice.directory / name for name in choice.names]
    if paths[0].suffix == _INDEX:
        reader = open_index(paths[0])
    else:
        reader = FilesReader(open_weights_together(paths), prefixes=choice.prefixes)
    _warn_of_others(directory, choice, reader)
    return Checkpoint(choice.directory, reader)


def _warn_of_others(directory: Path, choice: Choice, reader: FilesReader) -> None:
    """Say which weights were passed over, in the folder that was given and in the one that was chosen."""
    folders = dict.fromkeys((directory, choice.directory))
    weights = [folder / name for folder in folders for name in weight_names(listed(folder))]
    others = [str(path.relative_to(directory)) for path in weights if path not in reader.files]
    if others:
        used = (choice.directory / choice.label).relative_to(directory)
        shown = ", ".join(others[:_MOST_NAMED])
        more = f" and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
        is_used = "is" if len(choice.names) == 1 else "are"
        is_not = "is" if len(others) == 1 else "are"
        message = "%s: %s %s used, %s%s beside it %s not"
        logger.warning(message, directory, used, is_used, shown, more, is_not)
