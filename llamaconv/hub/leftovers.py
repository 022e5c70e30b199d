"""What earlier downloads left in a directory, and a model of another commit would be read with."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from llamaconv.hub.folder import Folder
from llamaconv.hub.repository import RemoteFile
from llamaconv.hub.selection import is_read_with
from llamaconv.hub.wanted import Wanted
from llamaconv.hub.weight_files import format_of, is_index
from llamaconv.weight_names import SAFETENSORS, TORCH

__all__ = ["are", "disturbing", "named", "tell", "tidy", "warn_of_others"]

_MOST_NAMED = 10

logger = logging.getLogger(__name__)


def disturbing(folder: Folder, wanted: Wanted) -> list[str]:
    """Names of files that an earlier download brought, unchanged since, that are not of this commit, nor harmless.

    Those that will be replaced are not among them.
    """
    outdated = set(folder.outdated(_current(wanted))).difference(wanted.names)
    return sorted(name for name in outdated if is_read_with(name, wanted.names))


def tell(folder: Folder, wanted: Wanted) -> None:
    """Name what is ``disturbing`` and stays: certain files were asked for, and the rest may be wanted as it is."""
    if left := disturbing(folder, wanted):
        logger.warning("%s: %s %s of another commit", folder.path, named(left), are(left))


def tidy(folder: Folder, wanted: Wanted) -> tuple[str, ...]:
    """Remove what is ``disturbing``, and unfinished files that the commit does not have or that are in place now.

    What else would be read instead of the model, is told.

    Returns:
        Names of the files that were removed.
    """
    removed = folder.clear_out(_current(wanted), partial(is_read_with, chosen=wanted.names))
    if removed:
        logger.warning("%s: removed %s, which %s of another commit", folder.path, named(removed), are(removed))
    in_place = set(wanted.names)
    for name, nbytes in folder.sweep(file for file in wanted.listing if file.name not in in_place):
        if nbytes:
            logger.warning("%s: removed %s unfinished bytes of %s", folder.path, f"{nbytes:,}", name)
    warn_of_others(folder, wanted)
    return tuple(removed)


def warn_of_others(folder: Folder, wanted: Wanted) -> None:
    """Name weights beside the model that are not of this commit, and yet may be read with it, or instead of it."""
    listed, outdated = {file.name for file in wanted.listing}, set(folder.outdated(_current(wanted)))
    others = [
        name
        for name in folder.top()
        if (name not in listed or name in outdated)
        and (is_index(name) or format_of(name) is not None)
        and is_read_with(name, wanted.names)
    ]
    if others:
        words = f"{are(others)} not of this commit, and may be read instead of it"
        logger.warning("%s: %s %s", folder.path, named(others), words)


def named(names: Sequence[str]) -> str:
    """Names as they are told, the first ten of them."""
    *others, last = [*names[:_MOST_NAMED], f"{len(names) - _MOST_NAMED} more"] if len(names) > _MOST_NAMED else names
    return f"{', '.join(others)} and {last}" if others else last


def are(names: Sequence[str]) -> str:
    """The verb for them."""
    return "is" if len(names) == 1 else "are"


def _current(wanted: Wanted) -> list[RemoteFile]:
    """The commit's files, less an index that is not of its weights: reading would believe it."""
    stale = {
        form.index for form in (SAFETENSORS, TORCH) if form.single in wanted.names and form.index not in wanted.names
    }
    return [file for file in wanted.listing if file.name not in stale]
