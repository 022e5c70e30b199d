from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamaconv.demo.hub import Hub
from llamaconv.demo.repository import Repository
from llamaconv.errors import IntegrityError, NetworkError
from llamaconv.hub.result import DownloadPlan, DownloadResult
from llamaconv.tasks.download import download, plan
from tests.hub.downloads import FILES, contents, impatient, repository, run
from tests.hub.misbehaving import Fault, Kind, Listed, MisbehavingHub

WEIGHTS = "model.safetensors"
HINT = "HF_HUB_OFFLINE is set: unset it to download."
MANY = {**FILES, "README.md": b"# m\n"}


@pytest.fixture
def silent() -> Iterator[str]:
    """An endpoint to which nobody may connect."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """The directory of a finished download."""
    with Hub([Repository("org/m", MANY, revisions=("main", "v1"))]) as hub:
        download("org/m", tmp_path / "there", impatient(hub))
    return tmp_path / "there"


def offline(endpoint: str, directory: Path, **settings: Any) -> DownloadResult:
    """A download that may not ask."""
    return download("org/m", directory, impatient(endpoint, offline=True, **settings))


def test_what_is_there_is_enough(tmp_path: Path, there: Path, silent: str) -> None:
    """With HF_HUB_OFFLINE=1 the command succeeds without a connection, and says what is there."""
    settings = ("org/m", "--local-dir", there, "--json", "-q")
    done = run(tmp_path, *settings, HF_HUB_OFFLINE="1", HF_ENDPOINT=silent)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert {file["name"]: file["state"] for file in told["files"]} == dict.fromkeys(FILES, "there")
    assert (told["fetched_bytes"], told["revision"]) == (0, "main")
    assert [one["what"] for one in told["skipped"]] == ["README.md"]
    assert contents(there) == FILES


def test_a_missing_file_is_named(tmp_path: Path, there: Path, silent: str) -> None:
    """With HF_HUB_OFFLINE=1 the command fails with 5 and one sentence."""
    (there / WEIGHTS).unlink()
    done = run(tmp_path, "org/m", "--local-dir", there, "-q", HF_HUB_OFFLINE="1", HF_ENDPOINT=silent)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr == (
        f"Error: {there}: of org/m {WEIGHTS} is missing, and the Hub must not be asked.\nHint: {HINT}\n"
    )


@pytest.mark.parametrize("names", [("README.md",), ("README.md", "config.json")])
def test_a_file_that_was_not_chosen_before_is_missing(there: Path, silent: str, names: tuple[str, ...]) -> None:
    """The listing is known; only the file is not there."""
    with pytest.raises(NetworkError) as caught:
        offline(silent, there, files=names)
    assert caught.value.message == f"{there}: of org/m README.md is missing, and the Hub must not be asked."
    assert (caught.value.hint, caught.value.facts) == (HINT, {"missing": ["README.md"], "damaged": []})


def test_several_missing_files_are_all_named(there: Path, silent: str) -> None:
    """In one error."""
    for name in ("config.json", "tokenizer.json"):
        (there / name).unlink()
    with pytest.raises(NetworkError) as caught:
        offline(silent, there)
    assert caught.value.message == (
        f"{there}: of org/m config.json and tokenizer.json are missing, and the Hub must not be asked."
    )


CHANGED = FILES["config.json"].replace(b"llama", b"alpac")


def test_damaged_files_are_told_from_missing_ones(there: Path, silent: str, caplog: pytest.LogCaptureFixture) -> None:
    """Bytes that are not what the Hub promised stay, be they as many or not; nobody says that they will be replaced."""
    (there / "config.json").write_bytes(CHANGED)
    (there / "tokenizer.json").write_bytes(b"short")
    (there / WEIGHTS).unlink()
    with pytest.raises(NetworkError) as caught:
        offline(silent, there)
    assert caught.value.message == (
        f"{there}: of org/m {WEIGHTS} is missing, config.json and tokenizer.json are damaged, "
        "and the Hub must not be asked."
    )
    assert (caught.value.hint, caught.value.facts) == (
        HINT,
        {"missing": [WEIGHTS], "damaged": ["config.json", "tokenizer.json"]},
    )
    assert (there / "config.json").read_bytes() == CHANGED
    assert caplog.records == []


def test_what_is_not_as_the_lock_file_says_is_a_broken_promise(tmp_path: Path, there: Path, silent: str) -> None:
    """The command fails with 6, as it would with the network."""
    lock = tmp_path / "lock.json"
    offline(silent, there, lock=lock)
    (there / "config.json").write_bytes(CHANGED)
    with pytest.raises(IntegrityError) as caught:
        offline(silent, there, lock=lock, locked=True)
    assert caught.value.message == f"{there}: of org/m config.json is damaged, and the Hub must not be asked."
    assert (caught.value.hint, caught.value.exit_code) == (HINT, 6)
    assert caught.value.facts == {"missing": [], "damaged": ["config.json"]}


def test_an_interrupted_download_lacks_what_it_lacks(tmp_path: Path, silent: str) -> None:
    """Its listing is known from the first byte on, its unfinished files stay; online, it goes on there."""
    there, cut = tmp_path / "there", 100_000
    with MisbehavingHub([repository()], Listed({WEIGHTS: [Fault(Kind.RESET, after=cut)]})) as hub:
        with pytest.raises(NetworkError):
            download("org/m", there, impatient(hub, retries=0, max_workers=1))
        with pytest.raises(NetworkError) as caught:
            offline(silent, there)
        names = f"{WEIGHTS} and tokenizer.json"
        assert caught.value.message == f"{there}: of org/m {names} are missing, and the Hub must not be asked."
        result = download("org/m", there, impatient(hub))
    assert {one.file.name: one.fetched for one in result.files}[WEIGHTS] == len(FILES[WEIGHTS]) - cut
    assert contents(there) == FILES


@pytest.mark.parametrize(
    ("name", "revision", "shown"),
    [("org/m", "v2", "org/m at v2"), ("org/m", "v1", "org/m at v1"), ("org/other", None, "org/other at main")],
)
def test_another_revision_or_repository_is_not_there(
    there: Path, silent: str, name: str, revision: str | None, shown: str
) -> None:
    """Not even a name that was the same commit: nobody knows what it is now."""
    with pytest.raises(NetworkError) as caught:
        download(name, there, impatient(silent, offline=True, revision=revision))
    assert caught.value.message == f"{there} holds no earlier download of {shown}, and the Hub must not be asked."
    assert caught.value.hint == HINT


def test_without_an_earlier_download_nothing_is_made(tmp_path: Path, silent: str) -> None:
    """The directory stays absent."""
    there = tmp_path / "there"
    with pytest.raises(NetworkError) as caught:
        offline(silent, there)
    assert caught.value.message == f"{there} holds no earlier download of org/m at main, and the Hub must not be asked."
    assert not there.exists()


def test_a_commit_is_known_by_its_hash_and_by_its_name(there: Path, silent: str) -> None:
    """Asking for one does not make the other unknown."""
    commit = Repository("org/m", MANY).commit
    assert offline(silent, there, revision=commit).commit == commit
    assert offline(silent, there).commit == commit


def test_a_lock_file_is_reproduced_from_what_is_there(tmp_path: Path, there: Path, silent: str) -> None:
    """It can be written, and followed, without asking; what is missing is named."""
    lock = tmp_path / "lock.json"
    offline(silent, there, lock=lock)
    locked = offline(silent, there, lock=lock, locked=True)
    assert {one.state for one in locked.files} == {"there"}
    with pytest.raises(NetworkError) as caught:
        offline(silent, tmp_path / "elsewhere", lock=lock, locked=True)
    assert caught.value.facts == {"missing": sorted(FILES), "damaged": []}
    with pytest.raises(NetworkError, match=r"README\.md is missing"):  # of which the lock file knows nothing
        offline(silent, there, files=("README.md",))


def test_verification_needs_no_network(there: Path, silent: str) -> None:
    """It hashes what is there."""
    assert {one.state for one in offline(silent, there, verify=True).files} == {"there"}


def test_the_plan_needs_no_network(there: Path, silent: str) -> None:
    """It tells what is there and what is missing."""
    (there / WEIGHTS).unlink()
    planned: DownloadPlan = plan("org/m", there, replace(impatient(silent), offline=True))
    assert {one.file.name: (one.state, one.there) for one in planned.files} == {
        "config.json": ("there", len(FILES["config.json"])),
        WEIGHTS: ("missing", 0),
        "tokenizer.json": ("there", len(FILES["tokenizer.json"])),
    }


@pytest.mark.parametrize("verify", [False, True])
def test_not_a_byte_is_written(tmp_path: Path, there: Path, silent: str, verify: bool) -> None:
    """The directory may lie where nothing can be: no lock is taken, no record renewed, whatever was hashed."""
    (there / "config.json").touch()  # doubtful
    (there / "tokenizer.json").write_bytes(FILES["tokenizer.json"].swapcase())
    before = written(there)
    with pytest.raises(NetworkError, match=r"of org/m tokenizer\.json is damaged"):
        offline(silent, there, verify=verify)
    assert written(there) == before
    with pytest.raises(NetworkError, match="of org/m"):
        offline(silent, there, verify=verify, files=("README.md",), lock=tmp_path / "model.lock")
    assert not (tmp_path / "model.lock").exists()


def written(directory: Path) -> dict[Path, tuple[int, int]]:
    """When everything in a directory was last changed, and what it is."""
    places = [directory, *directory.rglob("*")]
    return {place: (place.stat().st_mtime_ns, place.stat().st_ino) for place in places}
