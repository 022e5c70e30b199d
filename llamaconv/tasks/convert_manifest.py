"""llamaconv.json of a converted checkpoint: from what, into what, and every hash."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from llamaconv.casts import Loss
from llamaconv.digests import sha256_file
from llamaconv.errors import ConfigError
from llamaconv.json_files import read_object
from llamaconv.plan.base import Plan
from llamaconv.sinks.manifest import MANIFEST
from llamaconv.tasks.companions import companions
from llamaconv.tasks.convert_target import Target
from llamaconv.tasks.provenance import downloaded_from, libraries, version
from llamaconv.tasks.settings import ConvertSettings
from llamaconv.tasks.source import Source

__all__ = ["manifest"]

logger = logging.getLogger(__name__)

_LEFT_OUT = ("workers", "overwrite", "verify", "layout")


def manifest(
    settings: ConvertSettings,
    source: Source,
    target: Target,
    plan: Plan,
    losses: Sequence[Loss],
    outputs: Mapping[str, str],
) -> dict[str, Any]:
    """No paths, no times, nothing that two runs could disagree on.

    Args:
        settings: Of the run.
        source, target, plan: What was converted, into what, and how.
        losses: What the dtype lost.
        outputs: sha256 of each file, by name.
    """
    files = _files(source, settings)
    return {
        "tool": "llamaconv",
        "version": version(),
        "libraries": libraries(),
        "task": "convert",
        "layout": target.layout.name,
        "settings": _settings(settings),
        "source_layout": source.layout.name,
        "verified": settings.verify,
        "source": files,
        "downloaded_from": downloaded_from(source.checkpoint.directory, files),
        "source_manifest": _of_source(source),
        "losses": sorted(str(loss) for loss in losses),
        "notes": list(plan.notes),
        "outputs": dict(sorted(outputs.items())),
    }


def _settings(settings: ConvertSettings) -> dict[str, Any]:
    """Those that have a say in the bytes: what was left at its default has said nothing."""
    defaults = ConvertSettings(settings.to)
    chosen = {name: value for name, value in asdict(settings).items() if value != getattr(defaults, name)}
    return {name: value for name, value in chosen.items() if name not in _LEFT_OUT}


def _files(source: Source, settings: ConvertSettings) -> dict[str, Any]:
    """Each file of the source: its size, and with ``--verify``, which reads it again anyway, its sha256."""
    directory = source.checkpoint.directory
    paths = [*source.stored.files, *source.descriptions, *companions(source.home)]
    told = {}
    for path in paths:
        name = str(path.relative_to(directory)) if path.is_relative_to(directory) else path.name
        told[name] = {"bytes": path.stat().st_size} | ({"sha256": sha256_file(path)} if settings.verify else {})
    return dict(sorted(told.items()))


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
