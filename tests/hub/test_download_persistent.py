"""Downloads that meet a fault for ever, and what the next run makes of what they left."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, sleep

import pytest

from llamaconv.demo.answers import Answer, Request
from llamaconv.demo.hub import Hub
from llamaconv.errors import IntegrityError, NetworkError
from llamaconv.hub.result import DownloadResult
from llamaconv.tasks.download import download
from tests.hub.downloads import FILES, contents, impatient, repository
from tests.hub.misbehaving import Fault, Kind, Listed, MisbehavingHub

REVISION, TREE = "hub/api/models/org/m/revision/main", "hub/api/models/org/m/tree/*"
SMALL, LARGE = "hub/org/m/resolve/*/tokenizer.json", "storage/org/m/*/model.safetensors"
NAMES = {SMALL: "tokenizer.json", LARGE: "model.safetensors"}
GO_ON = "Run the same command again: it goes on from the byte where this one ended."
BREAK = Fault(Kind.RESET, after=1000)

NEVER_THERE = [
    (Fault(Kind.RESET), "{host} reset the connection"),
    (Fault(Kind.EARLY_EOF), "{host} closed the connection in mid-body"),
    (Fault(Kind.STALL, seconds=30), "{host} was silent for 0.4 s"),
    (Fault(Kind.REFUSE_CONNECTION), "{host} closed the connection without an answer"),
    (Fault(Kind.STATUS, status=408), "{host} answered 408 (Request Timeout)"),
    (Fault(Kind.STATUS, status=503), "{host} answered 503 (Service Unavailable)"),
    (Fault(Kind.RETRY_LATER, status=429, seconds=30, as_date=True), "{host} answered 429 (Too Many Requests)"),
    (Fault(Kind.COMPRESSED), "the answer of {host} came compressed though it was not asked for"),
]


class Misfortune:
    """A Hub that plays some faults at a place, and the last of them for ever, until it is healed."""

    def __init__(self, place: str, faults: Sequence[Fault]) -> None:
        self._faults = {place: [*faults, *[faults[-1]] * 99]}
        self.hub = MisbehavingHub([repository()], Listed(self._faults))
        self._of_storage = place.startswith("storage")

    @property
    def host(self) -> str:
        """That plays them."""
        return (self.hub.storage if self._of_storage else self.hub.endpoint).removeprefix("http://")

    def healed(self, directory: Path, mismatches: int = 0) -> DownloadResult:
        """The result of the next run, after the end of all faults."""
        self._faults.clear()
        self.hub.log.clear()
        result = download("org/m", directory, impatient(self.hub))
        assert contents(directory) == FILES
        assert (result.retries, result.mismatches) == (mismatches, mismatches)
        return result

    def asked(self, name: str) -> list[tuple[str | None, str | None]]:
        """Range and If-Range of the requests for a file's bytes since it was healed."""
        requests = [one for one in self.hub.log if one.path.endswith(name) and one.status != 302]
        return [(one.headers.get("range"), one.headers.get("if-range")) for one in requests]


def states(result: DownloadResult, name: str) -> tuple[str, int]:
    """What the result says of a file: its state, and the bytes that arrived for it."""
    return next((one.state, one.fetched) for one in result.files if one.file.name == name)


def require_only_right_bytes(directory: Path, bad: str) -> None:
    """Nothing lies under the name of the ``bad`` file, and what lies under other names is right."""
    found = contents(directory)
    assert bad not in found
    assert found.items() <= FILES.items()


@pytest.mark.parametrize("place", [REVISION, TREE])
@pytest.mark.parametrize(("fault", "reason"), [*NEVER_THERE, (Fault(Kind.HTML), "what {host} sent is no JSON")])
def test_an_api_that_never_answers(tmp_path: Path, place: str, fault: Fault, reason: str) -> None:
    """After the retries it is told what the last attempt met; the directory is as it was, and the next run is right."""
    misfortune, began = Misfortune(place, [fault]), monotonic()
    with misfortune.hub as hub:
        with pytest.raises(NetworkError) as caught:
            download("org/m", tmp_path / "m", impatient(hub, retries=2, timeout=0.4))
        assert monotonic() - began < 5
        assert str(caught.value) == f"org/m: {reason.format(host=misfortune.host)}; given up after 2 retries."
        assert (caught.value.hint, caught.value.exit_code) == (GO_ON, 5)
        assert len(hub.played) == 3
        assert not (tmp_path / "m").exists()
        misfortune.healed(tmp_path / "m")


@pytest.mark.parametrize("place", [SMALL, LARGE])
@pytest.mark.parametrize(
    ("fault", "reason"), [*NEVER_THERE, (Fault(Kind.HTML), "{host} announces {page} bytes where {size:,} belong")]
)
def test_a_file_that_never_comes(tmp_path: Path, place: str, fault: Fault, reason: str) -> None:
    """After the retries it is told what the last attempt met, and the next run asks for the missing bytes only."""
    name = NAMES[place]
    size = len(FILES[name])
    misfortune, began = Misfortune(place, [BREAK, fault]), monotonic()
    with misfortune.hub as hub:
        with pytest.raises(NetworkError) as caught:
            download("org/m", tmp_path / "m", impatient(hub, retries=2, timeout=0.4))
        assert monotonic() - began < 5
        said = reason.format(host=misfortune.host, size=size, page=hub.played[-1].request.sent)
        assert str(caught.value) == f"{name}: {said}; given up after 2 retries."
        assert (caught.value.hint, caught.value.exit_code) == (GO_ON, 5)
        assert len(hub.played) == 3
        require_only_right_bytes(tmp_path / "m", name)
        result = misfortune.healed(tmp_path / "m")
        assert states(result, name) == ("resumed", size - 1000)
        [(wanted, validator)] = misfortune.asked(name)
        assert wanted == f"bytes=1000-{size - 1}"
        assert validator is not None


@pytest.mark.parametrize("place", [SMALL, LARGE])
def test_bytes_that_are_always_wrong(tmp_path: Path, place: str) -> None:
    """The error names the file and both hashes; the bytes are thrown away, and the next run fetches them all."""
    name = NAMES[place]
    flipped = bytearray(FILES[name])
    flipped[77] ^= 1
    misfortune = Misfortune(place, [Fault(Kind.FLIP, after=77)])
    with misfortune.hub as hub:
        with pytest.raises(IntegrityError) as caught:
            download("org/m", tmp_path / "m", impatient(hub, retries=2))
        digest = hashlib.sha256 if place == LARGE else lambda data: hashlib.sha1(b"blob %d\0" % len(data) + data)
        found, right = digest(bytes(flipped)).hexdigest(), digest(FILES[name]).hexdigest()
        algorithm = "sha256" if place == LARGE else "git-sha1"
        assert str(caught.value) == (
            f"{name}: its {algorithm} is {found}, and the Hub promises {right}; given up after 2 retries."
        )
        assert caught.value.hint == "Another --endpoint may have the right bytes."
        assert caught.value.facts == {"file": name, "expected": right, "found": found}
        assert caught.value.exit_code == 6
        assert len(hub.played) == 3
        require_only_right_bytes(tmp_path / "m", name)
        assert not list(tmp_path.rglob(f"{name}.part"))
        assert states(misfortune.healed(tmp_path / "m"), name) == ("fetched", len(FILES[name]))
        assert misfortune.asked(name) == [(None, None)]


@pytest.mark.parametrize("place", [SMALL, LARGE])
@pytest.mark.parametrize(
    ("faults", "reason", "kept"),
    [
        ([Fault(Kind.TOO_LONG, extra=7)], "{host} announces {more:,} bytes where {size:,} belong", 0),
        ([BREAK, Fault(Kind.TOO_LONG, extra=1007)], "{host} announces {more:,} bytes where {rest:,} belong", 1000),
        ([Fault(Kind.CONTENT_LENGTH, extra=7)], "{host} announces {more:,} bytes where {size:,} belong", 0),
        ([Fault(Kind.TOO_LONG, chunked=True)], "{host} sends more than the {size:,} bytes that the Hub promises", 0),
        (
            [BREAK, Fault(Kind.WRONG_RANGE, extra=3)],
            "{host} answers with bytes 1003-{last} of {size}, asked for 1000-{last} of {size}",
            1000,
        ),
    ],
)
def test_answers_that_are_always_wrong(
    tmp_path: Path, place: str, faults: Sequence[Fault], reason: str, kept: int
) -> None:
    """Too long a body or another range is not believed however often it comes; the next run keeps what was right."""
    name = NAMES[place]
    size = len(FILES[name])
    misfortune = Misfortune(place, faults)
    with misfortune.hub as hub:
        with pytest.raises(IntegrityError) as caught:
            download("org/m", tmp_path / "m", impatient(hub, retries=2))
        said = reason.format(host=misfortune.host, size=size, more=size + 7, rest=size - 1000, last=size - 1)
        assert str(caught.value) == f"{name}: {said}; given up after 2 retries."
        assert caught.value.exit_code == 6
        require_only_right_bytes(tmp_path / "m", name)
        result = misfortune.healed(tmp_path / "m")
        assert states(result, name) == ("resumed" if kept else "fetched", size - kept)


@pytest.mark.parametrize("place", [SMALL, LARGE])
def test_damage_to_what_an_earlier_run_left(tmp_path: Path, place: str) -> None:
    """A part is continued in good faith, and thrown away when the hash of the whole tells that it was no good."""
    name = NAMES[place]
    misfortune = Misfortune(place, [BREAK, Fault(Kind.STATUS)])
    with misfortune.hub as hub:
        with pytest.raises(NetworkError):
            download("org/m", tmp_path / "m", impatient(hub, retries=2))
        [unfinished] = tmp_path.rglob(f"{name}.part")
        damaged = bytearray(unfinished.read_bytes())
        damaged[500] ^= 1
        unfinished.write_bytes(damaged)
        result = misfortune.healed(tmp_path / "m", mismatches=1)
        assert states(result, name) == ("resumed", 2 * len(FILES[name]) - 1000)
        assert [wanted for wanted, _ in misfortune.asked(name)] == [f"bytes=1000-{len(FILES[name]) - 1}", None]


@pytest.mark.parametrize("place", [REVISION, TREE, SMALL, LARGE])
def test_deadline_against_silence(tmp_path: Path, place: str) -> None:
    """A server that says nothing for ever does not keep the download beyond its deadline."""
    misfortune, began = Misfortune(place, [Fault(Kind.STALL, seconds=30)]), monotonic()
    with misfortune.hub as hub:
        with pytest.raises(NetworkError, match=r"^The deadline of 0\.5 s is over") as caught:
            download("org/m", tmp_path / "m", impatient(hub, timeout=30, deadline=0.5))
        assert 0.5 <= monotonic() - began < 1.5
        assert (caught.value.hint, caught.value.exit_code) == (GO_ON, 5)
        misfortune.healed(tmp_path / "m")


@pytest.mark.parametrize("as_date", [False, True])
@pytest.mark.parametrize(("place", "subject"), [(TREE, "org/m"), (LARGE, "model.safetensors")])
def test_deadline_against_a_long_pause(tmp_path: Path, place: str, subject: str, as_date: bool) -> None:
    """Where the pause asked for would pass the deadline, the download ends at once."""
    fault = Fault(Kind.RETRY_LATER, status=429, seconds=3600, as_date=as_date)
    misfortune, began = Misfortune(place, [fault]), monotonic()
    with misfortune.hub as hub:
        with pytest.raises(NetworkError) as caught:
            download("org/m", tmp_path / "m", impatient(hub, max_wait=3600, deadline=20))
        assert monotonic() - began < 5
        assert str(caught.value) == (
            f"The deadline of 20 s is over: {subject}: {misfortune.host} answered 429 (Too Many Requests)."
        )
        misfortune.healed(tmp_path / "m")


class Roundabout(Hub):
    """Redirects each question once more, after a while, as long as the Hub is ``winding``."""

    winding = True

    def answer(self, request: Request) -> Answer:
        if not self.winding:
            return super().answer(request)
        sleep(0.3)
        return Answer(302, {"Location": f"{request.path}?{request.query}1", "Content-Length": "0"})


def test_deadline_against_redirects(tmp_path: Path) -> None:
    """A server that is never silent for long, and never comes to the point, is left at the deadline too."""
    began = monotonic()
    with Roundabout([repository()]) as hub:
        with pytest.raises(NetworkError, match=r"^The deadline of 0\.5 s is over"):
            download("org/m", tmp_path / "m", impatient(hub, deadline=0.5))
        assert 0.5 <= monotonic() - began < 1.5
        hub.winding = False
        download("org/m", tmp_path / "m", impatient(hub, deadline=60))
    assert contents(tmp_path / "m") == FILES


def test_deadline_against_a_trickle(tmp_path: Path) -> None:
    """A server that is slow and never silent is left at the deadline too, and what it gave is not asked for again."""
    began = monotonic()
    with MisbehavingHub([repository()], rate=50_000) as hub:
        with pytest.raises(NetworkError, match=r"^The deadline of 1 s is over"):
            download("org/m", tmp_path / "m", impatient(hub, deadline=1))
        assert 1 <= monotonic() - began < 2
    with MisbehavingHub([repository()]) as hub:
        state, fetched = states(download("org/m", tmp_path / "m", impatient(hub)), "model.safetensors")
        [request] = [one for one in hub.log if one.server == "storage"]
    size = len(FILES["model.safetensors"])
    assert state == "resumed"
    assert 0 < fetched < size
    assert request.headers["range"] == f"bytes={size - fetched}-{size - 1}"
    assert contents(tmp_path / "m") == FILES
