from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from llamaconv.hub.folder import Folder, Standing
from llamaconv.hub.repository import Digest, RemoteFile
from tests.hub.test_folder import STATE, WEIGHTS, finish, ignore, opened, remote, tree

OLD = b"the old weights"


def hashed(folder: Folder, file: RemoteFile) -> os.stat_result:
    """What is hashed right now under the name of ``file``, which must be it."""
    found = folder.digest_of(file, ignore)
    assert found is not None
    assert found.hexdigest == file.digest.hexdigest
    return found.status


def test_a_record_holds_for_what_was_hashed(tmp_path: Path) -> None:
    """A new modification time makes a file unknown, another size another file; a hash and a record make it done."""
    file = remote()
    with opened(tmp_path) as folder:
        finish(folder, file)
        os.utime(tmp_path / file.name, ns=(1, 1))
        assert folder.standing(file) is Standing.UNKNOWN
        seen: list[int] = []
        found = folder.digest_of(file, seen.append)
        assert found is not None
        assert (found.hexdigest, found.status.st_mtime_ns) == (file.digest.hexdigest, 1)
        assert seen == [1 << 20, len(WEIGHTS)]
        folder.record(file, found.status)
        assert folder.standing(file) is Standing.DONE
        folder.forget(file)
        assert folder.standing(file) is Standing.UNKNOWN
        folder.forget(file)
        (tmp_path / file.name).write_bytes(WEIGHTS + b"!")
        assert folder.standing(file) is Standing.OTHER


def test_a_file_that_changes_while_it_is_hashed_has_no_hash(tmp_path: Path) -> None:
    """Whatever bytes were read, they were not all of one file."""
    file = remote()
    with opened(tmp_path) as folder:
        finish(folder, file)
        assert folder.digest_of(file, lambda done: os.utime(tmp_path / file.name)) is None


def test_what_replaced_a_file_after_it_was_hashed_is_not_on_record(tmp_path: Path) -> None:
    """A record is of the bytes that were read, not of those that lie there when it is written."""
    file = remote("a")
    with opened(tmp_path) as folder:
        (tmp_path / "a").write_bytes(WEIGHTS)
        status = hashed(folder, file)
        (tmp_path / "new").write_bytes(WEIGHTS[::-1])
        (tmp_path / "new").replace(tmp_path / "a")
        os.utime(tmp_path / "a", ns=(1, 1))
        folder.record(file, status)
        assert folder.standing(file) is Standing.UNKNOWN


def test_a_record_of_another_hash_tells_an_older_file(tmp_path: Path) -> None:
    """Of two hashes of one kind the files differ; of a hash of another kind nothing follows."""
    file = remote()
    with opened(tmp_path) as folder:
        finish(folder, file)
        assert folder.standing(replace(file, digest=Digest("sha256", "0" * 64))) is Standing.OUTDATED
        assert folder.standing(replace(file, digest=Digest("git-sha1", "0" * 40))) is Standing.UNKNOWN
        assert folder.standing(replace(file, size=7)) is Standing.OUTDATED


def test_only_unchanged_files_of_the_same_repository_are_outdated(tmp_path: Path) -> None:
    """What another repository brought, what was found, and what was changed since, is another file."""
    old, new = remote("a", OLD), remote("a")
    with opened(tmp_path) as folder:
        finish(folder, old, OLD)
    with opened(tmp_path, "org/other") as folder:
        assert folder.standing(old) is Standing.DONE
        assert folder.standing(new) is Standing.OTHER
    with opened(tmp_path) as folder:
        assert folder.standing(new) is Standing.OUTDATED
        os.utime(tmp_path / "a", ns=(1, 1))
        assert folder.standing(new) is Standing.OTHER
        (tmp_path / "b").write_bytes(OLD)
        folder.record(remote("b", OLD), hashed(folder, remote("b", OLD)))
        assert folder.standing(remote("b")) is Standing.OTHER


@pytest.mark.parametrize(
    "damage", [b"", b"{}", b"\xff", b'{"size": "1"}', b'{"name": "sub/deep/model.safetensors", "deliveries": []}', None]
)
def test_a_damaged_record_is_none(tmp_path: Path, damage: bytes | None) -> None:
    """Whatever lies where a record should (None: a link), the file must be hashed, and can then be recorded."""
    file = remote()
    (tmp_path / "precious").write_text("mine")
    with opened(tmp_path / "dir") as folder:
        finish(folder, file)
        record = tmp_path / "dir" / STATE / "done" / "sub%2Fdeep%2Fmodel.safetensors.json"
        if damage is None:
            record.unlink()
            record.symlink_to(tmp_path / "precious")
        else:
            record.write_bytes(damage)
        assert folder.standing(file) is Standing.UNKNOWN
        assert folder.clear_out([]) == []
        folder.record(file, hashed(folder, file))
        assert folder.standing(file) is Standing.DONE
        assert folder.clear_out([]) == []  # nobody knows any more who brought it
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_record_of_another_name_is_none(tmp_path: Path) -> None:
    """One that was copied says nothing of the file whose name it got."""
    with opened(tmp_path) as folder:
        finish(folder, remote("a"))
        done = tmp_path / STATE / "done"
        (done / "b.json").write_bytes((done / "a.json").read_bytes())
        (tmp_path / "a").rename(tmp_path / "b")
        assert folder.standing(remote("b")) is Standing.UNKNOWN


def test_what_the_present_files_are_not_is_cleared_out(tmp_path: Path) -> None:
    """Files of ours that are gone from the commit, or are others in it; folders that this leaves empty go too."""
    with opened(tmp_path) as folder:
        for name in ("sub/deep/gone", "other", "kept"):
            finish(folder, remote(name, OLD), OLD)
        assert folder.clear_out([remote("other"), remote("kept", OLD), remote("new")]) == ["other", "sub/deep/gone"]
        assert folder.standing(remote("kept", OLD)) is Standing.DONE
        assert folder.clear_out([remote("kept", OLD)]) == []
    assert sorted(os.listdir(tmp_path)) == [".cache", "kept"]
    assert tree(tmp_path / STATE) == [".gitignore", "done/kept.json", "lock"]


def test_what_others_brought_or_changed_is_not_cleared_out(tmp_path: Path) -> None:
    """Files of another repository or that two want, found ones, edited ones, and links or folders in their place."""
    names = ("edited", "touched", "linked", "folder")
    with opened(tmp_path, "org/other") as folder:
        for name in ("theirs", "shared"):
            finish(folder, remote(name, OLD), OLD)
    with opened(tmp_path) as folder:
        folder.share(remote("shared", OLD))
        for name in names:
            finish(folder, remote(name, OLD), OLD)
        (tmp_path / "edited").write_bytes(OLD + b"!")
        os.utime(tmp_path / "touched", ns=(1, 1))
        for name in ("linked", "folder"):
            (tmp_path / name).unlink()
        (tmp_path / "linked").symlink_to("edited")
        (tmp_path / "folder").mkdir()
        (tmp_path / "found").write_bytes(OLD)
        folder.record(remote("found", OLD), hashed(folder, remote("found", OLD)))
        assert folder.clear_out([]) == []
    with opened(tmp_path, "org/other") as folder:
        assert folder.clear_out([]) == ["theirs"]
    assert sorted(os.listdir(tmp_path)) == sorted([".cache", "found", "shared", *names])


def test_a_file_stays_with_who_brought_it_though_it_is_hashed_again(tmp_path: Path) -> None:
    """Touching a file does not make it the user's, nor does verifying it."""
    file = remote("a", OLD)
    with opened(tmp_path) as folder:
        finish(folder, file, OLD)
        os.utime(tmp_path / "a", ns=(1, 1))
        folder.record(file, hashed(folder, file))
        assert folder.clear_out([]) == ["a"]


def test_a_kill_between_record_and_rename_forgets_neither_file(tmp_path: Path) -> None:
    """The record is written first and names both, so that the file that lies there has a delivery in either case."""
    old, new = remote("a", OLD), remote("a")
    with opened(tmp_path) as folder:
        finish(folder, old, OLD)
        os.link(tmp_path / "a", tmp_path / "saved")
        finish(folder, new)
        assert folder.standing(new) is Standing.DONE
        (tmp_path / "saved").replace(tmp_path / "a")  # as if the rename had not come
        assert folder.standing(new) is Standing.OUTDATED
        assert folder.standing(old) is Standing.DONE
        assert folder.clear_out([]) == ["a"]
