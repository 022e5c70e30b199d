"""Downloads that meet one fault of the network, a proxy or the server, once."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

import pytest

from llamaconv.demo.answers import Answer
from llamaconv.hub.result import DownloadResult
from llamaconv.tasks.download import download
from tests.hub.downloads import FILES, contents, impatient, repository
from tests.hub.faults import spoilt
from tests.hub.misbehaving import Fault, Kind, Listed, MisbehavingHub

REVISION, TREE = "hub/api/models/org/m/revision/main", "hub/api/models/org/m/tree/*"
SMALL, LARGE = "hub/org/m/resolve/*/tokenizer.json", "storage/org/m/*/model.safetensors"
REDIRECT = "hub/org/m/resolve/*/model.safetensors"
SMALL_SIZE, LARGE_SIZE = len(FILES["tokenizer.json"]), len(FILES["model.safetensors"])
PAGE_SIZE = int(spoilt(Fault(Kind.HTML), Answer(200)).headers["Content-Length"])

REFUSALS = [
    (Fault(Kind.REFUSE_CONNECTION), "{host} closed the connection without an answer"),
    (Fault(Kind.STATUS, status=408), "{host} answered 408 (Request Timeout)"),
    (Fault(Kind.STATUS, status=500), "{host} answered 500 (Internal Server Error)"),
    (Fault(Kind.STATUS, status=502), "{host} answered 502 (Bad Gateway)"),
    (Fault(Kind.STATUS, status=503), "{host} answered 503 (Service Unavailable)"),
    (Fault(Kind.STATUS, status=504), "{host} answered 504 (Gateway Timeout)"),
    (Fault(Kind.RETRY_LATER, status=429, seconds=30), "{host} answered 429 (Too Many Requests)"),
    (Fault(Kind.RETRY_LATER, status=429, seconds=30, as_date=True), "{host} answered 429 (Too Many Requests)"),
    (Fault(Kind.RETRY_LATER, status=503, seconds=30), "{host} answered 503 (Service Unavailable)"),
]
BROKEN_BODIES = [
    (Fault(Kind.RESET, after=0.5), "{host} reset the connection"),
    (Fault(Kind.RESET), "{host} reset the connection"),
    (Fault(Kind.EARLY_EOF, after=0.5), "{host} closed the connection in mid-body"),
    (Fault(Kind.STALL, after=0.5, seconds=30), "{host} was silent for 0.4 s"),
    (Fault(Kind.COMPRESSED), "the answer of {host} came compressed though it was not asked for"),
]


def survived(directory: Path, place: str, faults: Sequence[Fault]) -> tuple[DownloadResult, str]:
    """The result of a download that met exactly these faults there, and the host that played them."""
    with MisbehavingHub([repository()], Listed({place: faults})) as hub:
        silences = any(fault.kind is Kind.STALL for fault in faults)
        result = download("org/m", directory, impatient(hub, timeout=0.4 if silences else 10))
        assert [played.fault for played in hub.played] == list(faults)
        origin = hub.storage if place.startswith("storage") else hub.endpoint
    assert contents(directory) == FILES
    assert not list(directory.rglob("*.part"))
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("connection", "hash"))]
    return result, origin.removeprefix("http://")


def retried(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says of each retry before it says when the next is."""
    return [message.partition("; trying again in ")[0] for message in caplog.messages]


@pytest.mark.parametrize("place", [REVISION, TREE])
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        *REFUSALS,
        *BROKEN_BODIES,
        (Fault(Kind.HTML), "what {host} sent is no JSON"),
        (Fault(Kind.CONTENT_LENGTH, extra=-7), "what {host} sent is no JSON"),
        (Fault(Kind.CONTENT_LENGTH, extra=7), "{host} closed the connection in mid-body"),
        (Fault(Kind.TOO_LONG, extra=5, chunked=True), "what {host} sent is no JSON"),
    ],
)
def test_a_question_is_asked_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str, fault: Fault, reason: str
) -> None:
    """Whatever befalls a question to the API costs one retry, told in one line."""
    result, host = survived(tmp_path / "m", place, [fault])
    assert retried(caplog) == [f"org/m: {reason.format(host=host)}"]
    assert (result.retries, result.mismatches) == (1, 0)


@pytest.mark.parametrize(
    ("place", "name", "size"), [(SMALL, "tokenizer.json", SMALL_SIZE), (LARGE, "model.safetensors", LARGE_SIZE)]
)
@pytest.mark.parametrize(
    ("fault", "reason", "mismatches"),
    [
        *((fault, reason, 0) for fault, reason in REFUSALS + BROKEN_BODIES),
        (Fault(Kind.HTML), f"{{host}} announces {PAGE_SIZE} bytes where {{size:,}} belong", 0),
        (Fault(Kind.CONTENT_LENGTH, extra=-7), "{host} announces {less:,} bytes where {size:,} belong", 0),
        (Fault(Kind.CONTENT_LENGTH, extra=7), "{host} announces {more:,} bytes where {size:,} belong", 1),
        (Fault(Kind.TOO_LONG, extra=7), "{host} announces {more:,} bytes where {size:,} belong", 1),
        (Fault(Kind.TOO_LONG, chunked=True), "{host} sends more than the {size:,} bytes that the Hub promises", 1),
    ],
)
def test_a_file_is_asked_for_again(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    place: str,
    name: str,
    size: int,
    fault: Fault,
    reason: str,
    mismatches: int,
) -> None:
    """Whatever befalls a file costs one retry, told in one line; what is too long counts as a mismatch."""
    result, host = survived(tmp_path / "m", place, [fault])
    assert retried(caplog) == [f"{name}: {reason.format(host=host, size=size, less=size - 7, more=size + 7)}"]
    assert (result.retries, result.mismatches) == (1, mismatches)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault(Kind.REFUSE_CONNECTION), "{host} closed the connection without an answer"),
        (Fault(Kind.RETRY_LATER, status=429, seconds=30), "{host} answered 429 (Too Many Requests)"),
        (Fault(Kind.HTML), f"{{host}} announces {PAGE_SIZE} bytes where {LARGE_SIZE:,} belong"),
    ],
)
def test_a_redirect_is_asked_for_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: Fault, reason: str
) -> None:
    """What comes instead of the redirect to a large file costs one retry."""
    result, host = survived(tmp_path / "m", REDIRECT, [fault])
    assert retried(caplog) == [f"model.safetensors: {reason.format(host=host)}"]
    assert (result.retries, result.mismatches) == (1, 0)


@pytest.mark.parametrize(
    ("place", "name", "algorithm", "prefix"),
    [(SMALL, "tokenizer.json", "git-sha1", b"blob 5003\0"), (LARGE, "model.safetensors", "sha256", b"")],
)
def test_a_flipped_bit_is_a_mismatch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str, name: str, algorithm: str, prefix: bytes
) -> None:
    """The file is fetched once more as a whole, and the log names both hashes."""
    flipped = bytearray(FILES[name])
    flipped[1234] ^= 1
    result, _ = survived(tmp_path / "m", place, [Fault(Kind.FLIP, after=1234)])
    new = hashlib.sha256 if algorithm == "sha256" else hashlib.sha1
    found, right = (new(prefix + data).hexdigest() for data in (bytes(flipped), FILES[name]))
    assert retried(caplog) == [f"{name}: its {algorithm} is {found}, and the Hub promises {right}"]
    assert (result.retries, result.mismatches) == (1, 1)
    fetched = {one.file.name: one.fetched for one in result.files}
    assert fetched == {other: len(data) * (2 if other == name else 1) for other, data in FILES.items()}


@pytest.mark.parametrize(
    ("place", "name", "size"), [(SMALL, "tokenizer.json", SMALL_SIZE), (LARGE, "model.safetensors", LARGE_SIZE)]
)
@pytest.mark.parametrize(
    ("fault", "reasons", "mismatches", "again"),
    [
        (Fault(Kind.IGNORE_RANGE), [], 0, 1000),
        (Fault(Kind.NOT_SATISFIABLE), ["{host} has no such part of it (416), so it starts over"], 0, 1000),
        (
            Fault(Kind.WRONG_RANGE, extra=3),
            ["{host} answers with bytes 1003-{last} of {size}, asked for 1000-{last} of {size}"],
            1,
            0,
        ),
        (Fault(Kind.HTML), [f"{{host}} announces {PAGE_SIZE} bytes where {{size:,}} belong"], 0, 0),
        (Fault(Kind.TOO_LONG, extra=1), ["{host} announces {more:,} bytes where {rest:,} belong"], 1, 0),
    ],
)
def test_a_fault_of_what_continues(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    place: str,
    name: str,
    size: int,
    fault: Fault,
    reasons: Sequence[str],
    mismatches: int,
    again: int,
) -> None:
    """After a break, everything or a 416 as answer makes the file start over; for others no byte is given up."""
    result, host = survived(tmp_path / "m", place, [Fault(Kind.RESET, after=1000), fault])
    facts = {"host": host, "size": size, "last": size - 1, "rest": size - 1000, "more": size - 999}
    said = ["{host} reset the connection", *reasons]
    assert retried(caplog) == [f"{name}: {reason.format(**facts)}" for reason in said]
    assert (result.retries, result.mismatches) == (len(said), mismatches)
    assert [one.fetched for one in result.files if one.file.name == name] == [size + again]


def test_the_line_of_a_retry(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It says of which file, why, when, and how many there have been without a byte of progress."""
    faults = [Fault(Kind.STATUS), Fault(Kind.REFUSE_CONNECTION), Fault(Kind.RESET, after=1000), Fault(Kind.EARLY_EOF)]
    _, host = survived(tmp_path / "m", LARGE, faults)
    assert caplog.messages == [
        f"model.safetensors: {host} answered 503 (Service Unavailable); trying again in 0.0 s (retry 1 of 8)",
        f"model.safetensors: {host} closed the connection without an answer; trying again in 0.0 s (retry 2 of 8)",
        f"model.safetensors: {host} reset the connection; trying again in 0.0 s (retry 1 of 8)",
        f"model.safetensors: {host} closed the connection in mid-body; trying again in 0.0 s (retry 2 of 8)",
    ]


@pytest.mark.parametrize(
    ("fault", "max_wait", "shown", "least"),
    [
        (Fault(Kind.RETRY_LATER, status=429, seconds=1), 60.0, "1.0", 1.0),
        (Fault(Kind.RETRY_LATER, status=429, seconds=3600), 0.5, "0.5", 0.5),
        (Fault(Kind.RETRY_LATER, status=503, seconds=3600, as_date=True), 0.5, "0.5", 0.5),
    ],
)
def test_retry_after(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: Fault, max_wait: float, shown: str, least: float
) -> None:
    """The pause is what the server asks for, and never longer than the longest that the user allows."""
    began = monotonic()
    with MisbehavingHub([repository()], Listed({TREE: [fault]})) as hub:
        download("org/m", tmp_path / "m", impatient(hub, max_wait=max_wait))
    assert least <= monotonic() - began < least + 5
    assert [message.partition("; ")[2] for message in caplog.messages] == [f"trying again in {shown} s (retry 1 of 8)"]
