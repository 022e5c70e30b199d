from __future__ import annotations

import gzip
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from time import monotonic

import httpx2
import pytest

from llamaconv.demo.repository import Repository
from tests.hub.fetching import Fetched, fetch, plain
from tests.hub.misbehaving import ANY, Fault, Kind, Listed, MisbehavingHub, Seeded

WEIGHTS = bytes(range(251)) * 400
FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": WEIGHTS}
SIZE = len(WEIGHTS)


def spoilt_fetch(fault: Fault, wanted: str | None = None) -> tuple[Fetched, Fetched]:
    """The weights, fetched with the fault and then without it."""
    with MisbehavingHub([Repository("org/m", FILES)], Listed({"model.safetensors": [fault]})) as hub:
        url = f"{hub.endpoint}/org/m/resolve/main/model.safetensors"
        with plain(timeout=0.3) as client:
            first, second = fetch(client, url, wanted), fetch(client, url, wanted)
        assert [played.fault for played in hub.played] == [fault]
    return first, second


@pytest.mark.parametrize(
    ("fault", "received", "error"),
    [
        (Fault(Kind.RESET, after=70_001), WEIGHTS[:70_001], httpx2.ReadError),
        (Fault(Kind.EARLY_EOF, after=0.5), WEIGHTS[: SIZE // 2], httpx2.RemoteProtocolError),
        (Fault(Kind.STALL, after=10, seconds=30), WEIGHTS[:10], httpx2.ReadTimeout),
        (Fault(Kind.STALL, after=10, seconds=0.1), WEIGHTS[:10], httpx2.RemoteProtocolError),
        (Fault(Kind.FLIP, after=3), b"\x00\x01\x02\x02" + WEIGHTS[4:], None),
        (Fault(Kind.REFUSE_CONNECTION), b"", httpx2.RemoteProtocolError),
        (Fault(Kind.CONTENT_LENGTH, extra=-7), WEIGHTS[:-7], None),
        (Fault(Kind.CONTENT_LENGTH, extra=7), WEIGHTS, httpx2.RemoteProtocolError),
        (Fault(Kind.TOO_LONG, extra=5), WEIGHTS + b"!!!!!", None),
        (Fault(Kind.TOO_LONG, extra=5, chunked=True), WEIGHTS + b"!!!!!", None),
    ],
)
def test_faults_of_the_body(fault: Fault, received: bytes, error: type[Exception] | None) -> None:
    """The client gets exactly so many bytes before it sees the fault, and all of them the next time."""
    first, second = spoilt_fetch(fault)
    assert (first.body, first.error) == (received, error)
    assert (second.body, second.error) == (WEIGHTS, None)


@pytest.mark.parametrize(
    ("fault", "status", "content_range", "received"),
    [
        (Fault(Kind.IGNORE_RANGE), 200, None, WEIGHTS),
        (Fault(Kind.NOT_SATISFIABLE), 416, f"bytes */{SIZE}", b""),
        (Fault(Kind.WRONG_RANGE, extra=2), 206, f"bytes 9-{SIZE - 1}/{SIZE}", WEIGHTS[9:]),
    ],
)
def test_faults_of_ranges(fault: Fault, status: int, content_range: str | None, received: bytes) -> None:
    """The answer to a range is everything, a refusal, or another range."""
    first, second = spoilt_fetch(fault, "bytes=7-")
    assert (first.status, first.headers.get("content-range"), first.body) == (status, content_range, received)
    assert (second.status, second.body) == (206, WEIGHTS[7:])


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504])
def test_bad_statuses(status: int) -> None:
    """The answer has the status asked for."""
    first, second = spoilt_fetch(Fault(Kind.STATUS, status=status))
    assert (first.status, second.status) == (status, 200)


def test_retry_later_in_both_forms() -> None:
    """Retry-After is a number of seconds, or a date so many seconds from now."""
    first, _ = spoilt_fetch(Fault(Kind.RETRY_LATER, status=429, seconds=3))
    assert (first.status, first.headers["retry-after"]) == (429, "3")
    first, _ = spoilt_fetch(Fault(Kind.RETRY_LATER, status=503, seconds=30, as_date=True))
    wait = parsedate_to_datetime(first.headers["retry-after"]) - datetime.now(UTC)
    assert first.status == 503
    assert timedelta(seconds=20) < wait <= timedelta(seconds=30)


def test_other_contents() -> None:
    """A captive portal answers with a page, a meddling proxy with a compressed body."""
    first, _ = spoilt_fetch(Fault(Kind.HTML))
    assert (first.status, first.headers["content-type"]) == (200, "text/html")
    assert first.body.startswith(b"<!DOCTYPE html>")
    first, _ = spoilt_fetch(Fault(Kind.COMPRESSED))
    assert (first.headers["content-encoding"], gzip.decompress(first.body)) == ("gzip", WEIGHTS)


def test_a_list_waits_for_the_request_it_suits() -> None:
    """Faults of one place come in their order, on the server named, and a fault of ranges waits for a range."""
    faults = {
        "storage/*.safetensors": [Fault(Kind.IGNORE_RANGE), Fault(Kind.STATUS, status=500)],
        "hub/api/*": [Fault(Kind.STATUS, status=502)],
    }
    with MisbehavingHub([Repository("org/m", FILES)], Listed(faults)) as hub, plain() as client:
        url = f"{hub.endpoint}/org/m/resolve/main/model.safetensors"
        statuses = [fetch(client, url, wanted).status for wanted in (None, "bytes=5-", "bytes=5-", "bytes=5-")]
        statuses += [fetch(client, f"{hub.endpoint}/api/models/org/m").status for _ in range(2)]
    assert statuses == [200, 200, 500, 206, 502, 200]
    assert [played.request.server for played in hub.played] == ["storage", "storage", "hub"]


def test_a_seed_draws_the_same_faults_in_any_order() -> None:
    """What the nth request to a file meets depends on the seed alone, and no file meets more faults than agreed."""

    def faults_by_file(seed: int, order: Sequence[str]) -> dict[str, list[Fault]]:
        quick = [fault for fault in ANY if fault.kind is Kind.STATUS]
        schedule = Seeded(seed, rate=0.7, most=3, among=quick)
        with MisbehavingHub([Repository("org/m", FILES)], schedule) as hub, plain() as client:
            for name in order:
                fetch(client, f"{hub.endpoint}/org/m/resolve/main/{name}")
        names = ("config.json", "model.safetensors")
        return {name: [p.fault for p in hub.played if p.request.path.endswith(name)] for name in names}

    one_way = faults_by_file(1, ["config.json"] * 9 + ["model.safetensors"] * 9)
    assert faults_by_file(1, ["config.json", "model.safetensors"] * 9) == one_way
    assert faults_by_file(2, ["config.json", "model.safetensors"] * 9) != one_way
    assert len(one_way["config.json"]) == 3


def test_a_slow_connection() -> None:
    """A rate is kept, so that the server's count is close to what the client has got."""
    with MisbehavingHub([Repository("org/m", FILES)], rate=500_000) as hub, plain() as client:
        begun = monotonic()
        assert fetch(client, f"{hub.endpoint}/org/m/resolve/main/model.safetensors").body == WEIGHTS
        assert monotonic() - begun > SIZE / 500_000 * 0.9
