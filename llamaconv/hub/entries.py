"""Names in the folder of a local directory that is ours: one component for each file of a repository."""

from __future__ import annotations

import hashlib
import os

from llamaconv.errors import OutputError
from llamaconv.hub.beneath import components

__all__ = ["STATE", "checked", "entry"]

STATE = ".cache/llamaconv"
"""Folder in the local directory that is ours; no file of a repository may lie in it."""

_LONGEST = 200  # bytes, of the 255 that most file systems allow


def checked(name: str) -> str:
    """``name``, if a file of a repository may have it.

    Raises:
        OutputError: It would lie outside of the local directory, or in our own folder.
    """
    folders = "/".join(components(name)[:2])
    if folders.casefold() == STATE:
        raise OutputError(f"{name} lies where downloads keep their own notes ({STATE}).", file=name)
    return name


def entry(name: str, ending: str) -> str:
    """What stands for ``name``, which may have slashes, in one of our folders: another one for each name.

    What is too long is cut and told apart by its SHA-256, behind a percent sign that none of the others has there.
    """
    quoted = name.replace("%", "%25").replace("/", "%2F")
    data = os.fsencode(quoted)
    if len(data) > _LONGEST:
        quoted = f"{data[: _LONGEST // 2].decode('utf-8', 'ignore')}%-{hashlib.sha256(data).hexdigest()}"
    return quoted + ending
