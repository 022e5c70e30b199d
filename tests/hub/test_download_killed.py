from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.hub.downloads import FILES, contents, environment, fetches, repository, wait_until
from tests.hub.holding import HoldingHub
from tests.hub.killing import WEIGHTS, kill_and_resume, left, remote, runner
from tests.hub.misbehaving import Fault, Kind, Listed, MisbehavingHub

MOST_TWICE = 1 << 20


@pytest.mark.parametrize("pieces", [1, 8])
def test_a_killed_download_goes_on_from_its_last_byte(tmp_path: Path, pieces: int) -> None:
    """Killed at 20 places, it ends with the right bytes; what was on record is never asked for again, and what was
    on its way, all that the Hub sent twice, is less than 1 MiB for each kill."""
    size = 12_000_003
    killed = kill_and_resume(tmp_path, size=size, piece=size // pieces, kills=20, seed=pieces, rate=12_000_000)
    assert len(killed) == 20
    assert [one.again for one in killed] == [0] * 20
    assert sum(one.twice for one in killed) <= 20 * MOST_TWICE


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_download_ends_at_once_and_goes_on_later(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Although the server is silent, it lets go in 3 s and says what to do; doing so fetches the rest only."""
    there, held, size = tmp_path / "there", 100_000, len(FILES[WEIGHTS])
    with HoldingHub([repository()], after=held) as hub:
        command = runner(1 << 30, "org/m", "--local-dir", there, "--endpoint", hub.endpoint, "-q", "--json")
        with subprocess.Popen(
            command, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as child:
            hub.wait()
            wait_until(lambda: on_record(there) == held)
            child.send_signal(number)
            begun = time.monotonic()
            out, err = child.communicate(timeout=30)
            assert time.monotonic() - begun < 3
        said = "Interrupted; what was fetched stays; the same command goes on from there."
        assert (child.returncode, err) == (code, f"{said}\n")
        assert json.loads(out)["error"]["message"] == said
        assert WEIGHTS not in contents(there)
        again = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, check=True)
    assert json.loads(again.stdout)["fetched_bytes"] == size - held
    assert fetches(hub)[-1] == (WEIGHTS, held)
    assert contents(there) == FILES


@pytest.mark.parametrize("place", ["/revision/main", "/tree/*"])
def test_an_interruption_is_heard_before_the_first_file(tmp_path: Path, place: str) -> None:
    """While the API is silent too; nothing was made then."""
    silence = Listed({place: [Fault(Kind.STALL, after=2, seconds=60.0)]})
    with MisbehavingHub([repository()], silence) as hub:
        command = runner(1 << 30, "org/m", "--local-dir", tmp_path / "there", "--endpoint", hub.endpoint, "-q")
        with subprocess.Popen(command, env=environment(tmp_path), stderr=subprocess.PIPE, text=True) as child:
            wait_until(lambda: bool(hub.played))
            child.send_signal(signal.SIGINT)
            begun = time.monotonic()
            _, err = child.communicate(timeout=30)
            assert time.monotonic() - begun < 3
    assert child.returncode == 130
    assert err == "Interrupted; what was fetched stays; the same command goes on from there.\n"
    assert not (tmp_path / "there").exists()


def on_record(directory: Path) -> int:
    """Bytes of the weights that the part says are there."""
    return sum(piece.done for piece in left(directory, remote(repository(), WEIGHTS)))
