"""What commands share that take a repository of the Hub where others take a path."""

from __future__ import annotations

from pathlib import Path

import click

from llamaconv.cli.options import PATH, given, refuse
from llamaconv.cli.output import Screen
from llamaconv.cli.signals import if_interrupted
from llamaconv.hub.reference import Reference, is_hub_reference, parse
from llamaconv.hub.settings import DownloadSettings

__all__ = ["Source", "cache_dir_option", "cached", "fetched", "kept", "require_hub_source", "source"]

Source = Path | Reference


def source(value: str) -> Source:
    """A path, or ``hf://org/name[@revision]``, which as a path would lose a slash."""
    if is_hub_reference(value):
        return parse(value)
    path = PATH.convert(value, None, None)
    assert isinstance(path, Path)
    return path


cache_dir_option = click.option(
    "--cache-dir",
    type=PATH,
    metavar="DIR",
    envvar="LLAMACONV_CACHE_DIR",
    show_default="LLAMACONV_CACHE_DIR, or the platform's cache",
    help="Where repositories of the Hub are kept.",
)


def require_hub_source(*places: Source | None) -> None:
    """Refuse ``--cache-dir`` where none of the sources is in the Hub.

    Raises:
        click.UsageError: It was given.
    """
    if given("cache_dir") and not any(isinstance(place, Reference) for place in places):
        refuse("Without effect but with an hf:// source: --cache-dir.")


def fetched(
    place: Source,
    cache_dir: Path | None,
    screen: Screen,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    beside: Source | None = None,
    data: str | None = None,
) -> Path:
    """The path of a source: a repository of the Hub is downloaded into the cache, as far as it is not there.

    Args:
        place: A path is returned as it is.
        cache_dir: The cache; None for the platform's.
        screen: Shows the progress.
        out, overwrite: What the command will write: hours of downloading must not end in finding that in the way.
        beside, data: What else it will read, another checkpoint and a file of text or tokens, nor in missing those.

    Raises:
        LlamaconvError: As :func:`llamaconv.tasks.download.download`; or what the command would raise for the others.
    """
    if isinstance(place, Path):
        return place
    from llamaconv.calibration import require_file
    from llamaconv.sinks.publish import Publication
    from llamaconv.sources.open import require_there
    from llamaconv.tasks.download import download

    if out is not None:
        Publication(out, overwrite, 0).require_free()
    if isinstance(beside, Path):
        require_there(beside)
    if data is not None:
        require_file(Path(data))
    directory = cached(place, cache_dir)
    with if_interrupted(kept), screen.progress() as report:
        download(place.repository, directory, DownloadSettings(revision=place.revision), report)
    return directory


def cached(reference: Reference, cache_dir: Path | None) -> Path:
    """The directory of a repository in the cache; None for the platform's."""
    if cache_dir is None:
        from platformdirs import user_cache_path

        cache_dir = user_cache_path("llamaconv")
    return cache_dir / reference.folder_name


def kept() -> str:
    """What an interrupted download leaves behind."""
    return "what was fetched stays; the same command goes on from there."
