"""What earlier downloads left beside a model, and must neither be read with it nor be lost without need."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from llamaconv.demo.hub import Hub
from llamaconv.demo.repository import Repository
from llamaconv.errors import NetworkError
from llamaconv.hub.part import Part
from llamaconv.sources.directory import choose
from llamaconv.tasks.download import download, plan
from tests.hub.downloads import FILES, contents, impatient, repository
from tests.hub.killing import remote
from tests.hub.misbehaving import Fault, Kind, Listed, MisbehavingHub

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = {f"model-0000{number}-of-00002.safetensors": bytes([number]) * 50_000 for number in (1, 2)}
MAP = json.dumps({"weight_map": dict(zip("ab", SHARDS, strict=True))}).encode()
SHARDED = Repository("org/m", {"config.json": b"{}", INDEX: MAP, **SHARDS})
WITH_STALE_INDEX = Repository("org/m", {**FILES, INDEX: MAP})


def test_a_stale_index_goes_with_its_shards(tmp_path: Path) -> None:
    """The commit has it still, but reading would believe it: what is read is what was downloaded."""
    with Hub([SHARDED]) as hub:
        download("org/m", tmp_path, impatient(hub))
        assert choose(tmp_path).names == (INDEX,)
        hub.push(WITH_STALE_INDEX)
        assert plan("org/m", tmp_path, impatient(hub)).removes == (*SHARDS, INDEX)
        result = download("org/m", tmp_path, impatient(hub))
    assert result.removed == (*SHARDS, INDEX)
    assert choose(tmp_path).names == (WEIGHTS,)
    assert contents(tmp_path) == FILES


def test_a_stale_index_is_not_missed_offline(tmp_path: Path) -> None:
    """It was read and passed over; nobody needs to read it again to know the model."""
    with Hub([WITH_STALE_INDEX]) as hub:
        download("org/m", tmp_path, impatient(hub))
        assert INDEX not in contents(tmp_path)
        result = download("org/m", tmp_path, impatient(hub, offline=True))
    assert {one.file.name for one in result.files} == set(FILES)


def test_shards_that_nobody_answers_for_stay_and_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They may be the user's; that they would be read instead of the model is said, offline too."""
    for name, data in {INDEX: MAP, **SHARDS}.items():
        (tmp_path / name).write_bytes(data)
    with Hub([repository()]) as hub:
        for offline in (False, True):
            caplog.clear()
            download("org/m", tmp_path, impatient(hub, offline=offline))
            first, second = SHARDS
            assert caplog.messages == [
                f"{tmp_path}: {first}, {second} and {INDEX} are not of this commit, and may be read instead of it"
            ]
    assert contents(tmp_path) == {**FILES, INDEX: MAP, **SHARDS}


def test_what_was_asked_for_and_is_harmless_stays(tmp_path: Path) -> None:
    """A model in a format that is not read here, and a document, though the new commit has others."""
    more = {"big-Q8.gguf": b"1" * 1000, "README.md": b"1", "onnx/model.onnx": b"1"}
    with Hub([Repository("org/m", {**FILES, **more})]) as hub:
        download("org/m", tmp_path, impatient(hub, include=("*",)))
        hub.push(Repository("org/m", {**FILES, **dict.fromkeys(more, b"2")}))
        assert download("org/m", tmp_path, impatient(hub)).removed == ()
    assert contents(tmp_path) == {**FILES, **more}


def test_a_part_that_is_a_hard_link_is_left_alone(tmp_path: Path) -> None:
    """A copy of the directory by hard links shares its bytes with a file that is finished elsewhere since."""
    first, copy = tmp_path / "first", tmp_path / "copy"
    with MisbehavingHub([repository()], Listed({WEIGHTS: [Fault(Kind.RESET, after=100_000)]})) as hub:
        with pytest.raises(NetworkError):
            download("org/m", first, impatient(hub, retries=0))
        shutil.copytree(first, copy, copy_function=os.link)
        download("org/m", copy, impatient(hub))
        hub.push(Repository("org/m", {**FILES, WEIGHTS: b"new weights"}))
        download("org/m", first, impatient(hub))
    assert contents(copy) == FILES
    assert contents(first) == {**FILES, WEIGHTS: b"new weights"}


def test_a_finished_part_of_another_commit_is_no_mistake_of_the_hub(tmp_path: Path) -> None:
    """Killed before it got its name, it is as large as the next commit's file, and is not held against anybody."""
    data = bytes(len(FILES[WEIGHTS]))
    with MisbehavingHub([repository()], Listed({WEIGHTS: [Fault(Kind.RESET, after=1000)]})) as hub:
        with pytest.raises(NetworkError):
            download("org/m", tmp_path, impatient(hub, retries=0))
        (place,) = tmp_path.rglob(f"{WEIGHTS}.part")
        part = Part(os.open(place, os.O_RDWR), remote(repository(), WEIGHTS))
        part.seal()
        part.close()
        place.write_bytes(data)
        result = download("org/m", tmp_path, impatient(hub, retries=0))
    assert (result.retries, result.mismatches) == (0, 0)
    assert contents(tmp_path) == FILES
