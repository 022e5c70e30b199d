"""JSON files that come out the same for the same content."""

from __future__ import annotations

import json
from pathlib import Path

from llamaconv.disk import write_text, writing

__all__ = ["MANIFEST", "write_json"]

MANIFEST = "llamaconv.json"
"""Tells how an output came to be. It is written last, so its presence says that all is there."""


def write_json(path: Path, obj: object) -> None:
    """Write ``obj`` as UTF-8 JSON: indent 2, keys in their own order, a newline at the end; then fsync.

    Raises:
        DiskFullError, OutputError: It cannot be written.
        ValueError, TypeError: ``obj`` has no JSON form (NaN and infinities have none).
    """
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with writing(path):
        write_text(path, text)
