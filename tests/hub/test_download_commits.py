from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from llamaconv.demo.hub import Hub
from llamaconv.demo.repository import Repository
from llamaconv.errors import NetworkError
from llamaconv.progress import Progress
from llamaconv.tasks.download import download, plan
from tests.hub.downloads import FILES, contents, fetches, impatient, repository
from tests.hub.misbehaving import Fault, Kind, Listed, MisbehavingHub
from tests.hub.test_download_full_disk import disk

INDEX = b'{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
SHARDS = {
    "model-00001-of-00002.safetensors": b"first half",
    "model-00002-of-00002.safetensors": b"second half",
    "model.safetensors.index.json": INDEX,
}
AROUND = {name: FILES[name] for name in ("config.json", "tokenizer.json")}
SHARDED = Repository("org/m", {**AROUND, **SHARDS})
WEIGHTS = "model.safetensors"
ANOTHER = "is another file of that name; it will be replaced"


def states(directory: Path, hub: Hub, name: str = "org/m") -> dict[str, str]:
    """As a plan has them."""
    return {one.file.name: one.state for one in plan(name, directory, impatient(hub)).files}


def test_a_directory_holds_one_commit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When shards become one file, the shards go: they would be read instead of it, or beside it."""
    with Hub([SHARDED]) as hub:
        download("org/m", tmp_path, impatient(hub))
        assert contents(tmp_path) == {**AROUND, **SHARDS}
        hub.push(repository())
        download("org/m", tmp_path, impatient(hub))
    assert contents(tmp_path) == FILES
    *most, last = SHARDS
    assert caplog.messages == [f"{tmp_path}: removed {', '.join(most)} and {last}, which are of another commit"]


def test_who_asks_for_certain_files_loses_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The others may be wanted as they are; that they are of another commit is told."""
    changed = {**FILES, "tokenizer.json": b"{}"}
    with Hub([repository()]) as hub:
        download("org/m", tmp_path, impatient(hub))
        hub.push(Repository("org/m", changed))
        download("org/m", tmp_path, impatient(hub, files=("config.json",)))
        assert contents(tmp_path) == FILES
        assert caplog.messages == [f"{tmp_path}: tokenizer.json is of another commit"]
        download("org/m", tmp_path, impatient(hub))
    assert contents(tmp_path) == changed


def test_a_file_that_the_model_does_not_need_stays_if_the_commit_has_it(tmp_path: Path) -> None:
    """Of what was asked for earlier, only what would be read with the model goes; a log is harmless."""
    more = {"LOG.md": b"1", "README.md": b"2"}
    with Hub([Repository("org/m", {**FILES, **more})]) as hub:
        download("org/m", tmp_path, impatient(hub, include=("*",)))
        hub.push(Repository("org/m", {**FILES, **more, "LOG.md": b"3"}))
        download("org/m", tmp_path, impatient(hub))
    assert contents(tmp_path) == {**FILES, **more}


def test_what_somebody_changed_stays(tmp_path: Path) -> None:
    """It is the user's since, and so is what no download brought, though it was found to be right."""
    edited, _, found = SHARDS
    (tmp_path / found).write_bytes(SHARDS[found])
    with Hub([SHARDED]) as hub:
        assert [one.file.name for one in download("org/m", tmp_path, impatient(hub)).files if one.state == "there"] == [
            found
        ]
        (tmp_path / edited).write_bytes(b"better weights")
        hub.push(repository())
        download("org/m", tmp_path, impatient(hub))
    assert contents(tmp_path) == {**FILES, edited: b"better weights", found: SHARDS[found]}


def test_a_rerun_clears_out_what_a_killed_run_left(tmp_path: Path) -> None:
    """The shards stay until the file that replaces them is there, however many runs that takes."""
    with MisbehavingHub([SHARDED], Listed({WEIGHTS: [Fault(Kind.RESET, after=1000), Fault(Kind.STATUS)]})) as hub:
        download("org/m", tmp_path, impatient(hub))
        hub.push(repository())
        for _ in range(2):
            with pytest.raises(NetworkError):
                download("org/m", tmp_path, impatient(hub, retries=0))
            assert contents(tmp_path).keys() == {*AROUND, *SHARDS}
        download("org/m", tmp_path, impatient(hub))
    assert contents(tmp_path) == FILES


def test_offline_two_commits_in_one_directory_are_not_taken_for_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that was killed just before it removed the old shards left all that was wanted, and more."""
    there, old = tmp_path / "there", tmp_path / "old"
    with Hub([SHARDED]) as hub:
        download("org/m", there, impatient(hub))
        shutil.copytree(there, old)
        hub.push(repository())
        download("org/m", there, impatient(hub))
        for name in SHARDS:
            for place in (name, f".cache/llamaconv/done/{name}.json"):
                shutil.copy2(old / place, there / place)
        caplog.clear()
        download("org/m", there, impatient(hub, offline=True))
        *most, last = SHARDS
        assert caplog.messages == [
            f"{there}: {', '.join(most)} and {last} are not of this commit, and may be read instead of it"
        ]
        download("org/m", there, impatient(hub))
        download("org/m", there, impatient(hub, offline=True))
    assert contents(there) == FILES


def test_two_repositories_in_one_directory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The second is added to the first, which is said; neither removes the other's files, or what both want."""
    other = Repository("org/other", {**AROUND, "config.json": b"{}", **SHARDS})
    with Hub([repository(), other]) as hub:
        download("org/m", tmp_path, impatient(hub))
        assert states(tmp_path, hub, "org/other") == {
            **dict.fromkeys(SHARDS, "missing"),
            "config.json": "to replace",
            "tokenizer.json": "there",
        }
        download("org/other", tmp_path, impatient(hub))
        assert caplog.messages == [
            f"{tmp_path} holds org/m; org/other is added to it",
            f"{tmp_path / 'config.json'} {ANOTHER}",
            f"{tmp_path}: {WEIGHTS} is not of this commit, and may be read instead of it",
        ]
        hub.push(Repository("org/m", {"generation_config.json": b"{}", WEIGHTS: b"new", "config.json": b"{}"}))
        download("org/m", tmp_path, impatient(hub))
    assert contents(tmp_path) == {
        **AROUND,
        **SHARDS,
        "config.json": b"{}",
        "generation_config.json": b"{}",
        WEIGHTS: b"new",
    }


def test_a_part_of_another_repository_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Another download into the same directory, even of a file of that name, does not cost its bytes."""
    other = Repository("org/other", {"config.json": b"{}", WEIGHTS: b"small"})
    reset = Listed({WEIGHTS: [Fault(Kind.RESET, after=100_000)]})
    with MisbehavingHub([repository(), other], reset) as hub:
        with pytest.raises(NetworkError):
            download("org/m", tmp_path, impatient(hub, retries=0))
        download("org/other", tmp_path, impatient(hub))
        result = download("org/m", tmp_path, impatient(hub))
    assert {one.file.name: one.state for one in result.files}[WEIGHTS] == "resumed"
    assert (WEIGHTS, 100_000) in fetches(hub)
    assert contents(tmp_path) == FILES
    assert not [message for message in caplog.messages if "removed" in message or "starts over" in message]


@pytest.mark.parametrize("gone", [False, True])
def test_bytes_that_are_thrown_away_are_told(tmp_path: Path, gone: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Those of an unfinished file that another commit has not, or has with other contents."""
    reset = Listed({WEIGHTS: [Fault(Kind.RESET, after=100_000)]})
    with MisbehavingHub([repository()], reset) as hub:
        with pytest.raises(NetworkError):
            download("org/m", tmp_path, impatient(hub, retries=0, max_workers=1))
        hub.push(SHARDED if gone else Repository("org/m", {**FILES, WEIGHTS: b"new weights"}))
        caplog.clear()
        download("org/m", tmp_path, impatient(hub))
    assert caplog.messages == [
        f"{tmp_path}: removed 100,000 unfinished bytes of {WEIGHTS}"
        if gone
        else f"{tmp_path / WEIGHTS}: 100,000 bytes were there of another commit's file; it starts over"
    ]


def test_a_plan_tells_old_files_from_foreign_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Ours that another commit changed are replaced without a word; whatever else has the name is named before."""
    changed = {"config.json": b"{}", WEIGHTS: b"new", "tokenizer.json": b"[]"}
    with Hub([repository()]) as hub:
        download("org/m", tmp_path, impatient(hub))
        (tmp_path / "config.json").write_bytes(b"edited by the user")
        os.utime(tmp_path / "tokenizer.json", ns=(1, 1))
        hub.push(Repository("org/m", changed))
        expected = {"config.json": "to replace", WEIGHTS: "outdated", "tokenizer.json": "to replace"}
        assert states(tmp_path, hub) == expected
        assert caplog.messages == []
        download("org/m", tmp_path, impatient(hub))
    assert caplog.messages == [f"{tmp_path / name} {ANOTHER}" for name in ("config.json", "tokenizer.json")]
    assert contents(tmp_path) == changed


def test_a_file_of_the_same_size_is_hashed_before_it_is_called_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One that somebody put there is kept if it is right, and named if it is not."""
    (tmp_path / "config.json").write_bytes(FILES["config.json"].swapcase())
    (tmp_path / "tokenizer.json").write_bytes(FILES["tokenizer.json"])
    with Hub([repository()]) as hub:
        download("org/m", tmp_path, impatient(hub))
        assert sorted(fetches(hub)) == [("config.json", None), (WEIGHTS, None)]
    assert caplog.messages == [f"{tmp_path / 'config.json'} {ANOTHER}"]


def test_a_download_with_nothing_to_do_reports_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No bar for no bytes; what was found is logged, for those who want to know."""
    told: list[Progress] = []
    with Hub([repository()]) as hub:
        download("org/m", tmp_path, impatient(hub), told.append)
        assert told != []
        told.clear()
        with caplog.at_level("INFO", "llamaconv.hub.snapshot"):
            download("org/m", tmp_path, impatient(hub), told.append)
    assert told == []
    assert caplog.messages == [
        f"org/m: main is commit {repository().commit}",
        f"{tmp_path}: {sum(map(len, FILES.values())):,} bytes are there, 0 bytes are still to be fetched, "
        "0 bytes of unfinished files are kept",
    ]


def test_what_changes_during_the_check_is_not_taken_for_right(tmp_path: Path) -> None:
    """A file that was hashed, while others still are, is on record as it was: the next run looks at it again."""
    with Hub([repository()]) as hub:
        download("org/m", tmp_path, impatient(hub))
        for name in FILES:
            os.utime(tmp_path / name, ns=(1, 1))

        def meddle(progress: Progress) -> None:
            if progress.detail == "tokenizer.json":  # the third of two at a time
                for name in ("config.json", WEIGHTS):
                    (tmp_path / name).write_bytes(FILES[name][::-1])

        download("org/m", tmp_path, impatient(hub), meddle)
        wrong = {name for name, data in contents(tmp_path).items() if data != FILES[name]}
        assert wrong
        assert {name for name, state in states(tmp_path, hub).items() if state == "to check"} == wrong
        download("org/m", tmp_path, impatient(hub))
    assert contents(tmp_path) == FILES


def test_a_plan_for_a_disk_that_is_too_small_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is a warning: the plan is made, and the download would fail before its first byte."""
    with disk(tmp_path / "disk", "size=100k") as small, Hub([repository()]) as hub:
        planned = plan("org/m", small, impatient(hub))
        needed, free = sum(map(len, FILES.values())), planned.free_bytes
        assert (planned.missing_bytes, free < needed) == (needed, True)
        assert os.listdir(small) == []
    assert caplog.messages == [f"{small}: {needed:,} bytes are still to be fetched, {free:,} bytes are free"]
