"""``llamaconv download``: a model of the Hub, every byte of it what the Hub's hashes promise."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from llamaconv.cli.hub import cache_dir_option, cached, kept
from llamaconv.cli.options import PATH, FiniteRange, given, refuse, screened, text
from llamaconv.cli.output import Screen
from llamaconv.cli.signals import if_interrupted
from llamaconv.cli.tables import facts, grid, plural, size
from llamaconv.errors import UsageError
from llamaconv.hub.reference import Reference, parse
from llamaconv.hub.settings import DownloadSettings

if TYPE_CHECKING:
    from rich.console import RenderableType

_YEAR = 366 * 86_400  # seconds; clocks and sockets overflow far beyond it


def url(*schemes: str) -> Callable[[str], str]:
    """The type of a URL in one of ``schemes``. What is refused is not repeated: it may hold a password."""
    forms = f"It begins with {' or '.join(f'{scheme}://' for scheme in schemes)} and names a host."

    def convert(value: str) -> str:
        try:
            address = urlsplit(value)
            named = address.hostname and (address.port is None or address.port > 0)
        except ValueError:
            named = None
        if not named or address.scheme not in schemes or re.search(r"[^!-~]", value):
            raise click.BadParameter(f"This is no such URL. {forms} In a password, '#' is %23, and so on.")
        if address.query or address.fragment:
            raise click.BadParameter("This URL has a query or a fragment, which a server's address has not.")
        return value

    return convert


def token(value: str) -> str:
    """What may stand in a header."""
    if not re.fullmatch(r"[!-~]+", value):
        raise click.BadParameter("A token is one word of ASCII letters, digits and marks; this is none.")
    return value


@click.command("download", short_help="Download a model from the Hub.")
@click.argument("reference", metavar="REPO", type=parse)
@click.argument("files", type=text, nargs=-1)
@click.option("--local-dir", type=PATH, metavar="DIR", show_default="a folder of --cache-dir", help="Where files go.")
@click.option("--revision", type=text, show_default="main", help="Branch, tag or commit, as in REPO@REVISION.")
@click.option("--include", type=text, multiple=True, metavar="GLOB", help="Fetch files of such names; repeatable.")
@click.option("--exclude", type=text, multiple=True, metavar="GLOB", help="But none of such names; repeatable.")
@click.option(
    "--token",
    type=token,
    show_default="HF_TOKEN, or the login of huggingface_hub",
    help="Of a user. Better in HF_TOKEN: every user of the machine can read command lines.",
)
@click.option(
    "--proxy",
    type=url("http", "https", "socks5", "socks5h"),
    metavar="URL",
    show_default="HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, less NO_PROXY",
    help="For everything: http, https, socks5 or socks5h, with user and password if need be.",
)
@click.option(
    "--endpoint",
    "endpoints",
    type=url("http", "https"),
    multiple=True,
    metavar="URL",
    show_default="HF_ENDPOINT, or the Hub",
    help="The Hub or a mirror; repeatable: what one does not give is asked of the next.",
)
@click.option(
    "--retries",
    type=click.IntRange(0),
    default=8,
    metavar="N",
    help="How often one thing is tried again in a row; new bytes start the count anew.",
)
@click.option(
    "--timeout",
    type=FiniteRange(0, _YEAR, min_open=True),
    default=30.0,
    metavar="SECONDS",
    help="Longest silence of a connection.",
)
@click.option(
    "--max-wait",
    type=FiniteRange(0, _YEAR),
    default=60.0,
    metavar="SECONDS",
    help="Longest pause before a retry, whatever the server asks for.",
)
@click.option(
    "--deadline",
    type=FiniteRange(0, _YEAR, min_open=True),
    show_default="none",
    metavar="SECONDS",
    help="For all of it; what was fetched until then stays.",
)
@click.option("--max-workers", type=click.IntRange(1, 64), default=4, metavar="N", help="Connections at a time.")
@click.option("--verify", is_flag=True, help="Hash the files that are there, and fetch damaged ones again.")
@click.option("--dry-run", is_flag=True, help="Print the table of files, sizes and what is there; fetch nothing.")
@click.option("--lock", type=PATH, metavar="FILE", help="Record commit, sizes and hashes in it.")
@click.option("--locked", is_flag=True, help="Get exactly what the file of --lock records; exit 6 if that cannot be.")
@cache_dir_option
@screened
def command(
    reference: Reference,
    files: tuple[str, ...],
    local_dir: Path | None,
    revision: str | None,
    dry_run: bool,
    cache_dir: Path | None,
    screen: Screen,
    **settings: Any,
) -> None:
    """Download the model REPO (org/name[@revision]) and check every file against the hash that the Hub promises.

    Without FILES and patterns, one complete model: config, tokenizer and the weights once. What was fetched before,
    by a run that was interrupted too, is not fetched again.
    """
    _require_sense(reference, local_dir, revision, {**settings, "files": files, "dry_run": dry_run})
    if revision is not None:
        reference = replace(reference, revision=revision)
    directory = cached(reference, cache_dir) if local_dir is None else local_dir
    chosen = DownloadSettings(revision=reference.revision, files=files, **settings)
    from llamaconv.tasks.download import download, plan

    if dry_run:
        screen.result(plan(reference.repository, directory, chosen).to_json(), plan_tables)
        return
    with if_interrupted(kept), screen.progress() as report:
        result = download(reference.repository, directory, chosen, report).to_json()
    screen.result(result, result_tables)


def _require_sense(
    reference: Reference, local_dir: Path | None, revision: str | None, settings: Mapping[str, Any]
) -> None:
    """Refuse options that contradict each other."""
    if reference.revision is not None and revision is not None:
        refuse("REPO has a revision already: --revision.")
    if settings["locked"] and settings["lock"] is None:
        refuse("Without effect but with --lock: --locked.")
    if settings["dry_run"] and settings["lock"] is not None and not settings["locked"]:
        refuse("--lock has nothing to record of a --dry-run.")
    if settings["files"] and (settings["include"] or settings["exclude"]):
        raise UsageError(
            "FILES and patterns exclude each other.",
            hint="Repeat --include or --exclude for each pattern, and quote patterns: the shell makes names of them.",
        )
    if local_dir is not None and given("cache_dir"):
        refuse("Without effect with --local-dir: --cache-dir.")


def plan_tables(planned: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield grid(
        ("file", "state", "size", "there"),
        [(file["name"], file["state"], size(file["size"]), size(file["there"])) for file in planned["files"]],
        left=2,
    )
    yield ""
    yield facts(
        (
            *_whence(planned),
            ("to fetch", f"{size(planned['missing_bytes'])} of {size(planned['bytes'])}"),
            ("free space", size(planned["free_bytes"])),
            ("removes", ", ".join(planned["removes"]) or None),
            *_skipped(planned),
        )
    )


def result_tables(result: Mapping[str, Any]) -> Iterator[RenderableType]:
    files, seconds = result["files"], result["seconds"]
    fetched = sum(file["state"] != "there" for file in files)
    resumed = sum(file["state"] == "resumed" for file in files)
    rate = f", {size(result['fetched_bytes'] / seconds)}/s" if fetched and seconds > 0 else ""
    yield facts(
        (
            *_whence(result),
            ("holds", f"{plural(len(files), 'file')}, {size(result['bytes'])}"),
            ("fetched", f"{plural(fetched, 'file')}, {size(result['fetched_bytes'])}"),
            ("resumed", plural(resumed, "file") if resumed else None),
            ("retries", f"{result['retries']:,}" if result["retries"] else None),
            ("wrong hashes", f"{result['mismatches']:,}, fetched again" if result["mismatches"] else None),
            ("removed", ", ".join(result["removed"]) or None),
            ("lock", result["lock"]),
            *_skipped(result),
            ("took", f"{seconds:.1f} s{rate}"),
        )
    )


def _whence(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "model", f"{told['repository']}, {told['revision']} at {told['commit']}"
    yield "directory", told["directory"]


def _skipped(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for place, one in enumerate(told["skipped"]):
        yield "" if place else "skipped", f"{one['what']}: {one['why']}"
