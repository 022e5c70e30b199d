from __future__ import annotations

import hashlib
import re
import socket
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from llamaconv.demo.answers import Answer, Request
from llamaconv.demo.hub import Hub
from llamaconv.demo.repository import Repository
from llamaconv.errors import HubError, IntegrityError, NetworkError
from llamaconv.hub import part
from llamaconv.hub.result import DownloadResult
from llamaconv.tasks.download import download
from tests.hub.downloads import FILES, contents, fetches, impatient, repository
from tests.hub.faults import suits
from tests.hub.misbehaving import Fault, Kind, Listed, MisbehavingHub

WEIGHTS = "model.safetensors"
CUT = 100_000


@dataclass
class Dying:
    """A schedule: a file's connection is reset, and from then on nobody is answered."""

    name: str
    after: int
    dead: bool = False

    def fault(self, request: Request, answer: Answer) -> Fault | None:
        if self.dead:
            return Fault(Kind.REFUSE_CONNECTION)
        reset = Fault(Kind.RESET, after=self.after)
        if request.path.endswith(self.name) and suits(reset, request, answer):
            self.dead = True
            return reset
        return None


def from_both(directory: Path, first: Hub | str, second: Hub | str, **settings: Any) -> DownloadResult:
    """A download with a mirror."""
    endpoints = tuple(hub if isinstance(hub, str) else hub.endpoint for hub in (first, second))
    return download("org/m", directory, impatient(first, **{"endpoints": endpoints, "max_workers": 1, **settings}))


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was told, without the waiting times."""
    return [re.sub(r"in \d+\.\d s", "in … s", record.getMessage()) for record in caplog.records]


def host(hub: Hub) -> str:
    return hub.endpoint.removeprefix("http://")


def test_a_file_goes_on_at_the_mirror_in_mid_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where one server died, the other is asked from the first missing byte on, and for all that follows."""
    with MisbehavingHub([repository()], Dying(WEIGHTS, CUT)) as first, Hub([repository()]) as second:
        result = from_both(tmp_path, first, second)
        assert fetches(first) == [("config.json", None), (WEIGHTS, None)]
        assert fetches(second) == [(WEIGHTS, CUT), ("tokenizer.json", None)]
        storage = first.storage.removeprefix("http://")
        assert said(caplog) == [
            f"{WEIGHTS}: {storage} reset the connection; trying again at {second.endpoint} in … s (retry 1 of 8)"
        ]
    assert [request.range for request in second.log if request.server == "storage"] == [(CUT, len(FILES[WEIGHTS]) - 1)]
    assert (result.retries, result.mismatches) == (1, 0)
    assert sum(one.fetched for one in result.files) == sum(map(len, FILES.values()))
    assert contents(tmp_path) == FILES


def test_an_etag_holds_for_the_server_that_gave_it(tmp_path: Path) -> None:
    """If-Range goes to the same endpoint only: another one may have its own ETag for the same bytes."""
    etag = f'"{hashlib.sha256(FILES[WEIGHTS]).hexdigest()[:32]}-1"'
    assert validators(tmp_path / "same", same=True) == {etag}
    assert validators(tmp_path / "other", same=False) == {None}


def validators(directory: Path, *, same: bool) -> set[str | None]:
    """What If-Range said when a file went on after a reset, at the same endpoint or at another one."""
    faults = Listed({f"storage/*/{WEIGHTS}": [Fault(Kind.RESET, after=CUT)]})
    with MisbehavingHub([repository()], faults) as first, Hub([repository()]) as second:
        from_both(directory, first, first if same else second)
    resumed = [request for request in (*first.log, *second.log) if WEIGHTS in request.path and request.range]
    assert len(resumed) == 2  # at the Hub, which redirects to the storage
    return {request.headers.get("if-range") for request in resumed}


def test_every_piece_goes_on_at_the_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in several pieces ends with the right bytes, none of them fetched twice."""
    monkeypatch.setattr(part, "PIECE", 60_000)
    with MisbehavingHub([repository()], Dying(WEIGHTS, 20_000)) as first, Hub([repository()]) as second:
        result = from_both(tmp_path, first, second, max_workers=3)
    begins = [begin for name, begin in fetches(second) if name == WEIGHTS]
    assert {len(FILES[WEIGHTS]) * number // 5 + 20_000 for number in range(3)} & set(begins)
    assert sum(one.fetched for one in result.files) == sum(map(len, FILES.values()))
    assert contents(tmp_path) == FILES


def test_after_a_wrong_hash_the_mirror_is_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All of the file comes from there then, and what had the wrong hash is thrown away."""
    flip = Listed({WEIGHTS: [Fault(Kind.FLIP, after=CUT)] * 9})
    with MisbehavingHub([repository()], flip) as first, Hub([repository()]) as second:
        result = from_both(tmp_path, first, second)
        assert fetches(first)[:2] == [("config.json", None), (WEIGHTS, None)]
        assert (WEIGHTS, None) in fetches(second)
        data = bytearray(FILES[WEIGHTS])
        data[CUT] ^= 1
        assert said(caplog) == [
            f"{WEIGHTS}: its sha256 is {hashlib.sha256(data).hexdigest()}, and the Hub promises "
            f"{hashlib.sha256(FILES[WEIGHTS]).hexdigest()}; trying again at {second.endpoint} in … s (retry 1 of 8)"
        ]
    assert len(first.played) == 1
    assert (result.retries, result.mismatches) == (1, 1)
    assert contents(tmp_path) == FILES


def test_of_three_mirrors_the_one_with_the_wrong_bytes_is_left(tmp_path: Path) -> None:
    """Not the one that would have been next when the file began: whoever gave its last bytes is to blame."""
    flip = Listed({WEIGHTS: [Fault(Kind.FLIP, after=CUT)] * 9})
    dead = Listed({WEIGHTS: [Fault(Kind.RESET, after=CUT // 2)] * 9})
    first, second = MisbehavingHub([repository()], dead), MisbehavingHub([repository()], flip)
    with first, second, Hub([repository()]) as third:
        endpoints = tuple(hub.endpoint for hub in (first, second, third))
        result = download("org/m", tmp_path, impatient(first, endpoints=endpoints, max_workers=1))
        assert (WEIGHTS, None) in fetches(third)
    assert (len(first.played), len(second.played)) == (1, 1)
    assert (result.retries, result.mismatches) == (2, 1)
    assert contents(tmp_path) == FILES


def test_two_mirrors_that_both_damage_a_file_are_refused(tmp_path: Path) -> None:
    """Both are asked in turn until the retries are used up; nothing is left under the file's name."""
    hubs = [MisbehavingHub([repository()], Listed({WEIGHTS: [Fault(Kind.FLIP, after=CUT)] * 9})) for _ in range(2)]
    with hubs[0] as first, hubs[1] as second, pytest.raises(IntegrityError, match="given up after 3 retries"):
        from_both(tmp_path, first, second, retries=3)
    assert [len(hub.played) for hub in hubs] == [2, 2]
    assert WEIGHTS not in contents(tmp_path)


def test_an_endpoint_that_is_down_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One retry for all: who answered last is asked first."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there, and nobody else will
        down = f"127.0.0.1:{taken.getsockname()[1]}"
        with Hub([repository()]) as second:
            result = from_both(tmp_path, f"http://{down}", second)
            assert said(caplog) == [
                f"org/m: {down}: no connection (Connection refused); "
                f"trying again at {second.endpoint} in … s (retry 1 of 8)"
            ]
    assert (result.retries, result.mismatches) == (1, 0)
    assert contents(tmp_path) == FILES


def test_when_all_are_down_the_download_fails(tmp_path: Path) -> None:
    """After as many retries as may be, with the network's error; nothing is made."""
    with socket.socket() as one, socket.socket() as other:
        for taken in (one, other):
            taken.bind(("127.0.0.1", 0))
        first, second = (f"127.0.0.1:{taken.getsockname()[1]}" for taken in (one, other))
        with pytest.raises(NetworkError) as caught:
            from_both(tmp_path / "there", f"http://{first}", f"http://{second}", retries=3)
    assert caught.value.message == f"org/m: {second}: no connection (Connection refused); given up after 3 retries."
    assert not (tmp_path / "there").exists()


def test_a_mirror_without_the_repository_is_asked_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A refusal is no failure: the next one is asked at once, and no retry is counted."""
    with Hub([repository("org/other")]) as first, Hub([repository()]) as second:
        result = from_both(tmp_path, first, second)
        assert said(caplog) == [
            f"org/m: {first.endpoint} refused ({host(first)} has no repository org/m, or it is private.); "
            f"asking {second.endpoint}"
        ]
    assert len(first.log) == 1
    assert result.retries == 0
    assert contents(tmp_path) == FILES


def test_a_mirror_that_lags_behind_is_left_for_the_hub(tmp_path: Path) -> None:
    """It has no such commit: after a reset the Hub is asked again, where the file goes on."""
    lagging = Repository("org/m", {**FILES, "config.json": b"{}"})
    reset = Listed({WEIGHTS: [Fault(Kind.RESET, after=CUT)]})
    with MisbehavingHub([repository()], reset) as first, Hub([lagging]) as second:
        result = from_both(tmp_path, first, second)
    assert [status for name, status in answers(second) if name == WEIGHTS] == [404]
    assert (WEIGHTS, CUT) in fetches(first)
    assert result.commit == repository().commit
    assert contents(tmp_path) == FILES


def answers(hub: Hub) -> list[tuple[str, int]]:
    """Names of the files that the Hub was asked for, and how it answered."""
    statuses = [request.status for request in hub.log if "/resolve/" in request.path]
    return [(name, status) for (name, _), status in zip(fetches(hub), statuses, strict=True)]


def test_when_all_refuse_the_first_one_is_quoted(tmp_path: Path) -> None:
    """The Hub comes first in the user's order, and knows best."""
    with Hub([repository(gated=True)]) as first, Hub([repository("org/other")]) as second:
        with pytest.raises(HubError) as caught:
            from_both(tmp_path, first, second)
        assert caught.value.message.startswith(f"org/m is gated: {host(first)} gives it only to those")
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("elsewhere", ["https://huggingface.co", "http://hub.invalid:1"])
def test_the_pages_of_a_listing_come_from_the_endpoint(tmp_path: Path, elsewhere: str) -> None:
    """A mirror passes on Links with the original's host: only their query is followed."""

    class Copying(Hub):
        def answer(self, request: Request) -> Answer:
            answer = super().answer(request)
            link = {"Link": answer.headers.get("Link", "").replace(self.endpoint, elsewhere)}
            return replace(answer, headers={**answer.headers, **link}) if link["Link"] else answer

    with Copying([repository()], page_size=1) as hub:
        download("org/m", tmp_path, impatient(hub))
        pages = [request.query for request in hub.log if "/tree/" in request.path]
    assert len(pages) == len(FILES)
    assert ["cursor=" in query for query in pages] == [False, True, True]
    assert contents(tmp_path) == FILES


def test_a_listing_goes_on_at_the_mirror(tmp_path: Path) -> None:
    """Between two pages the server changes: the next page is asked of the other one."""
    busy = Listed({"/tree/*cursor*": [], "hub/api/models/org/m/tree/*": [Fault(Kind.STATUS), Fault(Kind.STATUS)]})
    with MisbehavingHub([repository()], busy, page_size=1) as first, Hub([repository()], page_size=1) as second:
        result = from_both(tmp_path, first, second)
        assert [len([one for one in hub.log if "/tree/" in one.path]) for hub in (first, second)] == [1, 3]
    assert result.retries == 1
    assert contents(tmp_path) == FILES


def test_a_lock_file_is_reproduced_from_the_mirror_that_still_has_its_commit(tmp_path: Path) -> None:
    """The Hub has lost it; what counts is the bytes."""
    lock, newer = tmp_path / "lock.json", Repository("org/m", {**FILES, "config.json": b"{}"})
    with Hub([newer]) as first, Hub([repository()]) as second:
        from_both(tmp_path / "one", second, second, lock=lock)
        from_both(tmp_path / "two", first, second, lock=lock, locked=True)
    assert contents(tmp_path / "two") == FILES


@pytest.mark.parametrize(("deadline", "waited"), [(None, 0.9), (0.4, 0.3)])
def test_a_refusal_does_not_cut_another_ones_rest_short(tmp_path: Path, deadline: float | None, waited: float) -> None:
    """The Hub wants to be left alone for a second, the mirror has no such repository: the Hub gets its second."""
    later = Listed({"/revision/main": [Fault(Kind.RETRY_LATER, status=429, seconds=1)]})
    with MisbehavingHub([repository()], later) as first, Hub([repository("org/other")]) as second:
        begun = time.monotonic()
        with nullcontext() if deadline is None else pytest.raises(NetworkError, match=r"deadline of 0\.4 s is over"):
            from_both(tmp_path, first, second, max_wait=5.0, deadline=deadline)
        assert waited < time.monotonic() - begun < waited + 1
    assert len([request for request in first.log if "/revision/" in request.path]) == (2 if deadline is None else 1)
    assert contents(tmp_path) == (FILES if deadline is None else {})
