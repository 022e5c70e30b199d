"""Downloads that meet faults drawn by chance on their way, and what those must cost them."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from llamaconv.demo.repository import Repository
from llamaconv.errors import LlamaconvError
from llamaconv.hub.result import DownloadResult
from llamaconv.tasks.download import download
from tests.hub.downloads import contents, impatient
from tests.hub.misbehaving import ANY, Fault, Kind, MisbehavingHub, Played, Seeded

__all__ = ["AMONG", "MODEL", "Survived", "survive", "survive_all"]

_SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")

MODEL = {
    "config.json": random.Random(3).randbytes(601),
    "generation_config.json": random.Random(4).randbytes(173),
    _SHARDS[0]: random.Random(5).randbytes(400_009),
    _SHARDS[1]: random.Random(6).randbytes(150_001),
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {f"model.layers.{layer}.weight": _SHARDS[layer // 20] for layer in range(40)}}
    ).encode(),
    "tokenizer.json": random.Random(8).randbytes(40_009),
}
"""Longer, each, than the page of a captive portal."""

AMONG = (
    *ANY,
    Fault(Kind.RETRY_LATER, status=503, seconds=1),
    Fault(Kind.HTML),
    Fault(Kind.COMPRESSED),
    Fault(Kind.TOO_LONG, extra=5),
    Fault(Kind.TOO_LONG, extra=5, chunked=True),
)
"""All faults there are."""

_MOST = 4  # faults for a path: with those of the redirect no more than the 8 retries of a file
_PAGE_SIZE = 4  # entries in a page of the listing, which has two
_AT_A_TIME = 20
_TIMEOUT = 2.0


@dataclass(frozen=True)
class Survived:
    """A download that came to its end.

    Attributes:
        seed: Of the faults.
        result: What the download says of itself.
        played: The faults that it met.
        right: Whether the directory holds the wanted bytes and nothing else, and no unfinished file.
    """

    seed: int
    result: DownloadResult
    played: tuple[Played, ...]
    right: bool

    @property
    def kinds(self) -> Counter[Kind]:
        """How often it met each kind of fault."""
        return Counter(played.fault.kind for played in self.played)

    @property
    def fetched(self) -> int:
        """Bytes of files that arrived, thrown away ones included."""
        return sum(one.fetched for one in self.result.files)

    @property
    def retries_due(self) -> int:
        """How often something had to be tried again: a file that starts over with the answer in hand is none."""
        return sum(played.fault.kind is not Kind.IGNORE_RANGE for played in self.played)

    @property
    def mismatches_due(self) -> int:
        """How often a file had other bytes than promised, or was announced to have."""
        return sum(_is_mismatch(played) for played in self.played)


def survive(seed: int, directory: Path) -> Survived:
    """Download ``MODEL`` into a new directory below ``directory`` while the faults of ``seed`` are played.

    Raises:
        LlamaconvError: They were too much for it.
    """
    target = directory / str(seed)
    schedule = Seeded(seed, most=_MOST, among=AMONG)
    with MisbehavingHub([Repository("org/m", MODEL)], schedule, page_size=_PAGE_SIZE) as hub:
        try:
            result = download("org/m", target, impatient(hub, timeout=_TIMEOUT))
        except LlamaconvError as error:
            error.add_note(f"The seed is {seed}.")
            raise
    right = contents(target) == MODEL and not list(target.rglob("*.part"))
    return Survived(seed, result, tuple(hub.played), right)


def survive_all(seeds: Iterable[int], directory: Path) -> Iterator[Survived]:
    """``survive`` each seed, some at a time.

    Raises:
        LlamaconvError: As ``survive``.
    """
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        yield from pool.map(lambda seed: survive(seed, directory), seeds)


def _is_mismatch(played: Played) -> bool:
    if played.request.path.startswith("/api/"):
        return False
    if played.fault.kind is Kind.CONTENT_LENGTH:
        return played.fault.extra > 0
    return played.fault.kind in (Kind.FLIP, Kind.WRONG_RANGE, Kind.TOO_LONG)
