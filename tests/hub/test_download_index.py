from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llamaconv.demo.hub import Hub
from llamaconv.demo.repository import Repository
from llamaconv.errors import HubError, IntegrityError, NetworkError
from llamaconv.hub.result import DownloadResult
from llamaconv.sources.directory import choose
from llamaconv.sources.open import open_checkpoint
from llamaconv.tasks.download import download, plan
from tests.hub.downloads import contents, fetches, impatient, run
from tests.hub.listings import index_of
from tests.hub.misbehaving import Fault, Kind, Listed, MisbehavingHub
from tests.sources.files import save, write_index

INDEX = "model.safetensors.index.json"
SHARDS = ["model-1-of-2.safetensors", "sub/extra.safetensors"]
FILES = {"config.json": b"{}", INDEX: index_of(SHARDS), **dict.fromkeys(SHARDS, b"shard")}
LEFTOVER = {"model-2-of-2.safetensors": b"old", "sub/other.safetensors": b"old", "README.md": b"# m"}
MODEL = Repository("org/m", {**FILES, **LEFTOVER})


def states(result: DownloadResult) -> dict[str, str]:
    return {one.file.name: one.state for one in result.files}


def damaged(directory: Path) -> None:
    """One bit of the index is another."""
    data = bytearray((directory / INDEX).read_bytes())
    data[-1] ^= 1
    (directory / INDEX).write_bytes(data)


def offline(directory: Path, **settings: Any) -> DownloadResult:
    return download("org/m", directory, impatient("http://127.0.0.1:9", offline=True, **settings))


def test_what_is_downloaded_is_what_is_read(tmp_path: Path) -> None:
    """An index with numbers that are not padded, an extra file and one in a folder is downloaded whole, and opens."""
    numbered = [f"model-{number}-of-11.safetensors" for number in range(1, 12)]
    names = [*numbered, "model_extra_tensors.safetensors", "sub/mtp.safetensors"]
    for name in names:
        save(tmp_path / "upstream" / name, f"tensor.{name}")
    write_index(tmp_path / "upstream" / INDEX, {f"tensor.{name}": name for name in names})
    save(tmp_path / "upstream" / "model-00001-of-00001.safetensors", "leftover")
    with Hub([Repository.of_directory("org/m", tmp_path / "upstream")]) as hub:
        download("org/m", tmp_path / "m", impatient(hub))
    assert sorted(contents(tmp_path / "m")) == sorted([*names, INDEX])
    assert set(open_checkpoint(tmp_path / "m").reader.specs) == {f"tensor.{name}" for name in names}


def test_numbers_without_zeros_need_no_index(tmp_path: Path) -> None:
    """A whole series is downloaded and is read."""
    names = [f"model-{number}-of-12.safetensors" for number in range(1, 13)]
    with Hub([Repository("org/m", dict.fromkeys(names, b"x"))]) as hub:
        download("org/m", tmp_path / "m", impatient(hub))
    assert sorted(contents(tmp_path / "m")) == sorted(names)
    assert set(choose(tmp_path / "m").names) == set(names)


def test_an_index_that_is_there_is_not_asked_for(tmp_path: Path) -> None:
    """A plan asks for the index alone, and for nothing once the directory has the right one."""
    with Hub([MODEL]) as hub:
        planned = plan("org/m", tmp_path / "m", impatient(hub))
        assert [one.file.name for one in planned.files] == sorted(FILES)
        assert fetches(hub) == [(INDEX, None)]
        assert not (tmp_path / "m").exists()
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / INDEX).write_bytes(FILES[INDEX])
        hub.log.clear()
        plan("org/m", tmp_path / "m", impatient(hub))
        assert fetches(hub) == []
        damaged(tmp_path / "m")
        plan("org/m", tmp_path / "m", impatient(hub))
        assert fetches(hub) == [(INDEX, None)]
        download("org/m", tmp_path / "m", impatient(hub))
    assert contents(tmp_path / "m") == FILES


@pytest.mark.parametrize(
    "fault",
    [
        Fault(Kind.FLIP, after=3),
        Fault(Kind.RESET, after=5),
        Fault(Kind.STATUS, status=503),
        Fault(Kind.TOO_LONG, extra=5),
        Fault(Kind.TOO_LONG, extra=5, chunked=True),
        Fault(Kind.HTML),
    ],
)
def test_an_index_is_asked_for_again(tmp_path: Path, fault: Fault) -> None:
    """As every file is, and only the right bytes are believed."""
    with MisbehavingHub([MODEL], Listed({INDEX: [fault, fault]})) as hub:
        result = download("org/m", tmp_path / "m", impatient(hub))
        assert len(hub.played) == 2
    assert contents(tmp_path / "m") == FILES
    assert (result.retries, result.mismatches) == (2, 2 * (fault.kind in (Kind.FLIP, Kind.TOO_LONG)))


def test_an_index_that_is_always_wrong(tmp_path: Path) -> None:
    """After the retries it is told with both hashes, as of every file; no directory is made."""
    flipped = bytearray(FILES[INDEX])
    flipped[3] ^= 1
    faults = Listed({INDEX: [Fault(Kind.FLIP, after=3)] * 3})
    with MisbehavingHub([MODEL], faults) as hub, pytest.raises(IntegrityError) as caught:
        download("org/m", tmp_path / "m", impatient(hub, retries=2))
    right, found = MODEL.files[INDEX].oid, Repository("org/m", {INDEX: bytes(flipped)}).files[INDEX].oid
    assert caught.value.message == (
        f"{INDEX}: its git-sha1 is {found}, and the Hub promises {right}; given up after 2 retries."
    )
    assert caught.value.facts == {"file": INDEX, "expected": right, "found": found}
    assert not (tmp_path / "m").exists()


def test_an_index_that_no_index_can_be(tmp_path: Path) -> None:
    """One that is larger than 64 MB is not even asked for."""

    class Large(Repository):
        def tree(self) -> list[dict[str, Any]]:
            entries = super().tree()
            return [{**entry, "size": 64_000_001} if entry["path"] == INDEX else entry for entry in entries]

    with Hub([Large("org/m", FILES)]) as hub:
        with pytest.raises(HubError) as caught:
            download("org/m", tmp_path / "m", impatient(hub))
        assert fetches(hub) == []
    assert caught.value.message == f"org/m: {INDEX} has 64,000,001 bytes, too many to read it beforehand."
    assert caught.value.hint == "Name the files that you want, or choose them with --include."


def test_an_index_offline(tmp_path: Path) -> None:
    """What it names is known where it is; where it is missing or damaged, that is said."""
    with Hub([MODEL]) as hub:
        download("org/m", tmp_path / "m", impatient(hub))
    assert states(offline(tmp_path / "m")) == dict.fromkeys(FILES, "there")
    damaged(tmp_path / "m")
    for fault in ("damaged", "missing"):
        with pytest.raises(NetworkError) as caught:
            offline(tmp_path / "m")
        assert caught.value.message == (
            f"{tmp_path / 'm'}: of org/m {INDEX} is {fault}, and the Hub must not be asked."
        )
        assert caught.value.hint == "HF_HUB_OFFLINE is set: unset it to download."
        assert caught.value.facts == {"missing": [], "damaged": [], fault: [INDEX]}
        (tmp_path / "m" / INDEX).unlink(missing_ok=True)
    assert states(offline(tmp_path / "m", files=("config.json",))) == {"config.json": "there"}


def test_an_earlier_download_can_do_without_the_hub(tmp_path: Path) -> None:
    """When the Hub cannot be reached, the hint says so, for the repository and revision that were downloaded."""
    go_on = "Run the same command again: it goes on from the byte where this one ended."
    with Hub([MODEL]) as hub:
        download("org/m", tmp_path / "m", impatient(hub))
        endpoint = hub.endpoint
    for name, revision, hint in (
        ("org/m", "main", f"{go_on} HF_HUB_OFFLINE=1 works from what is in {tmp_path / 'm'}."),
        ("org/m", MODEL.commit, f"{go_on} HF_HUB_OFFLINE=1 works from what is in {tmp_path / 'm'}."),
        ("org/m", "v2", go_on),
        ("org/other", "main", go_on),
    ):
        with pytest.raises(NetworkError) as caught:
            download(name, tmp_path / "m", impatient(endpoint, retries=0, revision=revision))
        assert caught.value.hint == hint


def test_names_that_cannot_be_used_are_left_out(tmp_path: Path) -> None:
    """A file that cannot have its name here is skipped with the reason, and refused if it is asked for."""
    weights = {"config.json": b"{}", "model.safetensors": b"x"}
    odd = {"sub\\optimizer.pt": b"x", "a\\b": b"x", f"{'x' * 256}.json": b"{}"}
    with Hub([Repository("org/m", {**weights, **odd})]) as hub:
        done = run(tmp_path, "org/m", "--local-dir", tmp_path / "m", "--json", "-q", HF_ENDPOINT=hub.endpoint)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["skipped"] == [
            {
                "what": "2 files (a\\b, sub\\optimizer.pt)",
                "why": "cannot be a file here: its name holds a backslash",
                "names": ["a\\b", "sub\\optimizer.pt"],
            },
            {
                "what": f"{'x' * 256}.json",
                "why": "cannot be a file here: its name has a part longer than 255 bytes",
                "names": [f"{'x' * 256}.json"],
            },
        ]
        assert states(download("org/m", tmp_path / "all", impatient(hub, include=("*",)))) == dict.fromkeys(
            weights, "fetched"
        )
        with pytest.raises(HubError) as caught:
            download("org/m", tmp_path / "named", impatient(hub, files=("config.json", "a\\b")))
    assert contents(tmp_path / "m") == contents(tmp_path / "all") == weights
    assert caught.value.message == 'org/m: no file here can have the name "a\\\\b": it holds a backslash.'
