from __future__ import annotations

import os
from pathlib import Path

import pytest

from llamaconv.demo.hub import Hub
from llamaconv.errors import NetworkError
from llamaconv.tasks.download import download, plan
from tests.hub.downloads import FILES, contents, fetches, impatient, repository
from tests.hub.misbehaving import Fault, Kind, Listed, MisbehavingHub

WEIGHTS = "model.safetensors"


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """The directory of a finished download."""
    with Hub([repository()]) as hub:
        download("org/m", tmp_path, impatient(hub))
    return tmp_path


def damage(path: Path) -> None:
    """Flip a bit; size and modification time stay."""
    before, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_file_that_was_changed_is_mended(there: Path) -> None:
    """One that was written to, and one that was removed; nothing else is fetched."""
    (there / "config.json").write_bytes(FILES["config.json"].replace(b"llama", b"alpac"))
    (there / "tokenizer.json").unlink()
    with Hub([repository()]) as hub:
        result = download("org/m", there, impatient(hub))
    assert sorted(fetches(hub)) == [("config.json", None), ("tokenizer.json", None)]
    assert {one.file.name: one.state for one in result.files} == {
        "config.json": "fetched",
        WEIGHTS: "there",
        "tokenizer.json": "fetched",
    }
    assert contents(there) == FILES


def test_a_file_that_was_only_touched_is_not_fetched(there: Path) -> None:
    """Another modification time has it hashed, once, and no more."""
    os.utime(there / WEIGHTS)
    with Hub([repository()]) as hub:
        assert [one.state for one in plan("org/m", there, impatient(hub)).files] == ["there", "to check", "there"]
        assert {one.state for one in download("org/m", there, impatient(hub)).files} == {"there"}
        assert {one.state for one in plan("org/m", there, impatient(hub)).files} == {"there"}
    assert fetches(hub) == []


def test_a_damaged_file_is_found_by_verify_alone(there: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A flipped bit behind the same size and time: without ``verify`` nobody looks, with it that file is fetched."""
    damage(there / WEIGHTS)
    with Hub([repository()]) as hub:
        assert {one.state for one in download("org/m", there, impatient(hub)).files} == {"there"}
        assert fetches(hub) == []
        assert contents(there) != FILES
        result = download("org/m", there, impatient(hub, verify=True))
        assert fetches(hub) == [(WEIGHTS, None)]
    assert [record.getMessage() for record in caplog.records] == [
        f"{there / WEIGHTS} is damaged; it must be fetched again"
    ]
    assert [one.state for one in result.files] == ["there", "fetched", "there"]
    assert contents(there) == FILES


def test_what_is_damaged_stays_until_the_right_one_is_there(there: Path) -> None:
    """A verification that cannot fetch the file again does not take it away; the next one knows that it is damaged."""
    damage(there / WEIGHTS)
    damaged = contents(there)
    with MisbehavingHub([repository()], Listed({WEIGHTS: [Fault(Kind.STATUS, status=503)]})) as hub:
        with pytest.raises(NetworkError):
            download("org/m", there, impatient(hub, verify=True, retries=0))
        assert contents(there) == damaged
        download("org/m", there, impatient(hub))
    assert contents(there) == FILES
