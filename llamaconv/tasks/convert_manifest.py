"""llamaconv.json of a converted checkpoint: from what, into what, and every hash."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from llamaconv.casts import Loss
from llamaconv.errors import ConfigError
from llamaconv.json_files import read_object
from llamaconv.sinks.manifest import MANIFEST
from llamaconv.tasks.convert_target import Target
from llamaconv.tasks.provenance import libraries, version
from llamaconv.tasks.source import Source

__all__ = ["manifest"]

logger = logging.getLogger(__name__)

# Settings that have no say in the bytes.
_LEFT_OUT = ("workers", "overwrite", "verify", "layout")


def manifest(
    settings: Mapping[str, Any],
    source: Source,
    target: Target,
    notes: Sequence[str],
    losses: Sequence[Loss],
    sources: Mapping[str, str],
    outputs: Mapping[str, str],
) -> dict[str, Any]:
    """No paths, no times, nothing that two runs could disagree on.

    Args:
        settings: All settings of the run, by name.
        source, target: What was converted, and into what.
        notes: What the user was told.
        losses: What the dtype lost.
        sources, outputs: sha256 of each file, by name.
    """
    return {
        "tool": "llamaconv",
        "version": version(),
        "libraries": libraries(),
        "task": "convert",
        "settings": {name: value for name, value in settings.items() if name not in _LEFT_OUT and value is not None},
        "source_layout": source.layout.name,
        "source": dict(sorted(sources.items())),
        "source_manifest": _of_source(source),
        "layout": target.layout.name,
        "losses": sorted(str(loss) for loss in losses),
        "notes": list(notes),
        "outputs": dict(sorted(outputs.items())),
    }


def _of_source(source: Source) -> dict[str, Any] | None:
    """How the source came to be, where it says so itself."""
    path = source.home / MANIFEST
    if not path.is_file():
        return None
    try:
        return read_object(path)[1]
    except ConfigError as error:
        logger.warning("%s is left out of the output's own: %s", path, error)
        return None
