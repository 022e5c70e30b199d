"""Faults that meet a file on its way in several pieces."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from llamaconv.demo.repository import Repository
from llamaconv.errors import NetworkError
from llamaconv.hub import part
from llamaconv.tasks.download import download
from tests.hub.downloads import FILES, contents, impatient
from tests.hub.misbehaving import Fault, Kind, Listed, MisbehavingHub

PIECE = 100_000
MODEL = {**FILES, "model.safetensors": random.Random(2).randbytes(1_000_003)}
SIZE = len(MODEL["model.safetensors"])
BOUNDS = [SIZE * number // 10 for number in range(11)]
WEIGHTS = "storage/org/m/*/model.safetensors"


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten pieces of the weights, four connections for them."""
    monkeypatch.setattr(part, "PIECE", PIECE)


def asked(hub: MisbehavingHub) -> list[str | None]:
    """The ranges that the storage was asked for, in order of coming."""
    return [request.headers.get("range") for request in hub.log if request.server == "storage"]


def test_each_piece_is_asked_for_once(tmp_path: Path) -> None:
    """Without faults ten pieces are ten requests, for all bytes and none twice, some at a time."""
    with MisbehavingHub([Repository("org/m", MODEL)], rate=400_000) as hub:
        result = download("org/m", tmp_path / "m", impatient(hub))
        assert sorted(map(str, asked(hub))) == sorted(f"bytes={one}-{end - 1}" for one, end in pairwise(BOUNDS))
    assert contents(tmp_path / "m") == MODEL
    assert [one.fetched for one in result.files] == [len(data) for data in MODEL.values()]
    assert result.seconds < 0.9 * SIZE / 400_000


@pytest.mark.parametrize(
    ("faults", "retries", "mismatches"),
    [
        ([Fault(Kind.RESET, after=0.3)] * 7, 7, 0),
        ([Fault(Kind.EARLY_EOF)] * 3, 3, 0),
        ([Fault(Kind.STALL, after=0.9, seconds=30)] * 4, 4, 0),
        ([Fault(Kind.REFUSE_CONNECTION), Fault(Kind.STATUS, status=503)], 2, 0),
        ([Fault(Kind.FLIP, after=0.5)], 1, 1),
        ([Fault(Kind.FLIP, after=0.5)] * 10, 1, 1),
        ([Fault(Kind.IGNORE_RANGE)], 0, 0),
        ([Fault(Kind.NOT_SATISFIABLE)], 1, 0),
        ([Fault(Kind.WRONG_RANGE, extra=50_000)] * 2, 2, 2),
        ([Fault(Kind.CONTENT_LENGTH, extra=7)], 1, 1),
        ([Fault(Kind.CONTENT_LENGTH, extra=-7)], 1, 0),
        ([Fault(Kind.TOO_LONG, chunked=True)], 1, 1),
        ([Fault(Kind.HTML)] * 4, 4, 0),
    ],
)
def test_faults_of_pieces(tmp_path: Path, faults: Sequence[Fault], retries: int, mismatches: int) -> None:
    """A piece is asked for again, or the whole file where bytes were wrong or ranges are not to be had."""
    with MisbehavingHub([Repository("org/m", MODEL)], Listed({WEIGHTS: faults})) as hub:
        result = download("org/m", tmp_path / "m", impatient(hub, timeout=0.5))
        assert len(hub.played) == len(faults)
    assert contents(tmp_path / "m") == MODEL
    assert (result.retries, result.mismatches) == (retries, mismatches)


@pytest.mark.parametrize("kind", [Kind.IGNORE_RANGE, Kind.NOT_SATISFIABLE])
def test_a_storage_without_ranges(tmp_path: Path, kind: Kind) -> None:
    """Whichever connection learns of it first fetches the whole file, and the others let go of their pieces."""
    with MisbehavingHub([Repository("org/m", MODEL)], Listed({WEIGHTS: [Fault(kind)] * 99}), rate=2_000_000) as hub:
        result = download("org/m", tmp_path / "m", impatient(hub))
        assert 1 <= len(hub.played) <= 4
        assert len(asked(hub)) == len(hub.played) + (kind is Kind.NOT_SATISFIABLE)
    assert contents(tmp_path / "m") == MODEL
    assert (result.retries, result.mismatches) == (int(kind is Kind.NOT_SATISFIABLE), 0)


def test_pieces_are_resumed_each(tmp_path: Path) -> None:
    """When all connections break for ever, the next run asks for what is missing of each piece, and no byte twice."""
    faults = [Fault(Kind.RESET, after=7_000)] * 4 + [Fault(Kind.STATUS)] * 99
    broken = MisbehavingHub([Repository("org/m", MODEL)], Listed({WEIGHTS: faults}))
    with broken, pytest.raises(NetworkError):
        download("org/m", tmp_path / "m", impatient(broken, retries=2))
    there = Counter(played.request.range for played in broken.played if played.fault.kind is Kind.RESET)
    with MisbehavingHub([Repository("org/m", MODEL)]) as hub:
        result = download("org/m", tmp_path / "m", impatient(hub))
        begins = [begin + 7_000 * there[begin, end - 1] for begin, end in pairwise(BOUNDS)]
        expected = [f"bytes={begin}-{end - 1}" for begin, end in zip(begins, BOUNDS[1:], strict=True)]
        assert sorted(map(str, asked(hub))) == sorted(expected)
    assert contents(tmp_path / "m") == MODEL
    [weights] = [one for one in result.files if one.file.name == "model.safetensors"]
    assert (weights.state, weights.fetched) == ("resumed", SIZE - 4 * 7_000)
