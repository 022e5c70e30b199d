from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaconv.errors import OutputError
from llamaconv.hub.folder import Standing
from llamaconv.hub.part import Part
from tests.hub.test_folder import STATE, WEIGHTS, finish, opened, remote, tree

PARTS = STATE / "parts" / "org%2Fname"


def test_a_part_keeps_its_bytes_until_it_is_dropped(tmp_path: Path) -> None:
    """Another run finds them at the same place; folders that dropping leaves empty go too."""
    file, other = remote("sub/a"), remote("b")
    for written in (b"", b"first half"):
        with opened(tmp_path) as folder:
            descriptor = folder.open_part(file)
            assert os.pread(descriptor, 100, 0) == written
            os.pwrite(descriptor, b"first half", 0)
            os.close(descriptor)
    assert (tmp_path / PARTS / "sub%2Fa.part").read_bytes() == b"first half"
    with opened(tmp_path) as folder:
        os.close(folder.open_part(other))
        folder.drop_part(file)
        folder.drop_part(file)
        assert tree(tmp_path / STATE / "parts") == ["org%2Fname/b.part"]
        folder.drop_part(other)
    assert not (tmp_path / STATE / "parts").exists()


def test_parts_of_files_that_are_no_longer_listed_are_swept(tmp_path: Path) -> None:
    """They are named with their bytes and removed; the others and what is no part of ours stay."""
    with opened(tmp_path) as folder:
        assert folder.sweep([]) == []
        for name in ("sub/old", "sub/new", "x.part"):
            os.close(folder.open_part(remote(name)))
        descriptor = folder.open_part(remote("old"))
        part = Part(descriptor, remote("old"))
        part.write(part.pieces[0], memoryview(WEIGHTS)[:1000])
        os.close(descriptor)
        (tmp_path / PARTS / "notes").touch()
        (tmp_path / PARTS / "deep").mkdir()
        (tmp_path / PARTS / "deep" / "x.part").touch()
        swept = folder.sweep([remote("sub/new"), remote("absent")])
    assert swept == [("old", 1000), ("sub%2Fold", 0), ("x.part", 0)]
    assert tree(tmp_path / PARTS) == ["deep/x.part", "notes", "sub%2Fnew.part"]


def test_parts_of_other_repositories_are_not_seen(tmp_path: Path) -> None:
    """Each has its own under the same name, and none sweeps another's."""
    for repository in ("org/a", "org/b"):
        with opened(tmp_path, repository) as folder:
            with folder.read_part(remote("a")) as part:
                assert part is None
            descriptor = folder.open_part(remote("a"))
            os.pwrite(descriptor, repository.encode(), 0)
            os.close(descriptor)
    with opened(tmp_path, "org/a") as folder:
        assert folder.sweep([]) == [("a", len("org/a"))]
    assert tree(tmp_path / STATE / "parts") == ["org%2Fb/a.part"]


@pytest.mark.parametrize("change", ["another file", "gone", "longer"])
def test_a_part_that_changed_behind_our_back_is_not_published(tmp_path: Path, change: str) -> None:
    """What was hashed must be what is renamed, and all of it; else the final name stays as it was."""
    with opened(tmp_path) as folder:
        descriptor = folder.open_part(remote("a"))
        os.pwrite(descriptor, WEIGHTS, 0)
        part = tmp_path / PARTS / "a.part"
        if change == "longer":
            os.ftruncate(descriptor, len(WEIGHTS) + 1)
        else:
            part.unlink()
        if change == "another file":
            part.write_bytes(WEIGHTS)
        with pytest.raises(OutputError) as caught:
            folder.finish(remote("a"), descriptor)
        os.close(descriptor)
        assert caught.value.message == f"{part} was changed by another program."
        assert caught.value.hint == "Let nothing else write there, then start again."
        assert folder.standing(remote("a")) is Standing.ABSENT


LONG = "é" * 100
NAMES = st.lists(
    st.sampled_from(["a", "b", "c.json", "d.part", "a.json", "a.part", "a.new", "%2F", "a%2Fb", "%", LONG, f"{LONG}!"]),
    min_size=1,
    max_size=3,
).map("/".join)


@settings(max_examples=60)
@given(st.sets(NAMES, max_size=4), st.data())
def test_names_do_not_disturb_each_other(tmp_path_factory, names, data) -> None:  # type: ignore[no-untyped-def]
    """Of any files that a directory can hold together, exactly the finished ones are done, and the rest has parts."""
    names = {name for name in names if not any(other.startswith(f"{name}/") for other in names)}
    finished = data.draw(st.sets(st.sampled_from(sorted(names)))) if names else set()
    path = tmp_path_factory.mktemp("names")
    with opened(path) as folder:
        for name in sorted(names):
            if name in finished:
                finish(folder, remote(name, name.encode()), name.encode())
            else:
                os.close(folder.open_part(remote(name)))
        assert {name for name in names if folder.standing(remote(name, name.encode())) is Standing.DONE} == finished
        assert folder.sweep([remote(name) for name in names - finished]) == []
        assert len(folder.sweep([])) == len(names - finished)
        assert {name: (path / name).read_bytes().decode() for name in finished} == {name: name for name in finished}
        assert folder.clear_out([]) == sorted(finished)


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "x/" * 400 + "x", f"{'x' * 255}/" * 3 + "x"])
def test_long_names_have_parts_and_records_too(tmp_path: Path, name: str) -> None:
    """Whatever name the directory can hold, be it so long that there is no room for an ending."""
    with opened(tmp_path) as folder:
        finish(folder, remote(name))
        assert folder.standing(remote(name)) is Standing.DONE
        os.close(folder.open_part(remote(name)))
        assert [name for name, _ in folder.sweep([])] != []
    with opened(tmp_path) as folder:
        assert folder.clear_out([]) == [name]
    assert os.listdir(tmp_path) == [".cache"]
