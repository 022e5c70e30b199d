from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaconv.errors import OutputError
from llamaconv.hub.folder import Folder, Standing
from llamaconv.hub.repository import Digest, Listing, RemoteFile
from llamaconv.hub.stored_listing import Stored

WEIGHTS = b"all the weights" * 100_000  # a MiB and a half
STATE = Path(".cache/llamaconv")


def remote(name: str = "sub/deep/model.safetensors", data: bytes = WEIGHTS) -> RemoteFile:
    return RemoteFile(name, len(data), Digest("sha256", hashlib.sha256(data).hexdigest()))


def ignore(_: object) -> None:
    pass


@contextmanager
def opened(path: Path) -> Iterator[Folder]:
    def unexpected() -> None:
        raise AssertionError("nobody else downloads")

    with Folder.open(path, wait=lambda told: unexpected(), cancelled=unexpected) as folder:
        yield folder


def finish(folder: Folder, file: RemoteFile, data: bytes = WEIGHTS) -> None:
    descriptor = folder.open_part(file)
    os.pwrite(descriptor, data, 0)
    folder.finish(file, descriptor)
    os.close(descriptor)


def tree(path: Path) -> list[str]:
    return sorted(str(found.relative_to(path)) for found in path.rglob("*") if not found.is_dir())


def test_a_finished_file_is_done(tmp_path: Path) -> None:
    """It is absent until it is finished; then it has its name, its bytes and a record, and no part is left."""
    file = remote()
    with opened(tmp_path / "new" / "dir") as folder:
        assert folder.path == tmp_path / "new" / "dir"
        assert folder.standing(file) is Standing.ABSENT
        finish(folder, file)
        assert folder.standing(file) is Standing.DONE
    assert (folder.path / file.name).read_bytes() == WEIGHTS
    assert tree(folder.path) == [
        ".cache/llamaconv/.gitignore",
        ".cache/llamaconv/done/sub/deep/model.safetensors.json",
        ".cache/llamaconv/lock",
        "sub/deep/model.safetensors",
    ]
    assert (folder.path / STATE / ".gitignore").read_text() == "*\n"
    assert not (folder.path / STATE / "parts").exists()
    with opened(folder.path) as again:
        assert again.standing(file) is Standing.DONE


def test_a_directory_without_files_of_ours_is_used_as_it_is(tmp_path: Path) -> None:
    """A symbolic link may lead to the directory, and what the user has in it stays."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "mine").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with opened(tmp_path / "link") as folder:
        finish(folder, remote("a"))
        space = os.statvfs(tmp_path)
        assert 0 < folder.free_bytes() <= space.f_blocks * space.f_frsize
    assert (tmp_path / "real" / "a").read_bytes() == WEIGHTS
    assert (tmp_path / "real" / "mine").read_text() == "mine"


def test_a_record_holds_for_what_was_hashed(tmp_path: Path) -> None:
    """A new modification time makes a file unknown, another size another file; a hash and a record make it done."""
    file = remote()
    with opened(tmp_path) as folder:
        finish(folder, file)
        os.utime(tmp_path / file.name, ns=(1, 1))
        assert folder.standing(file) is Standing.UNKNOWN
        seen: list[int] = []
        assert folder.digest_of(file, seen.append) == file.digest.hexdigest
        assert seen == [1 << 20, len(WEIGHTS)]
        folder.record(file)
        assert folder.standing(file) is Standing.DONE
        folder.forget(file)
        assert folder.standing(file) is Standing.UNKNOWN
        folder.forget(file)
        (tmp_path / file.name).write_bytes(WEIGHTS + b"!")
        assert folder.standing(file) is Standing.OTHER


def test_a_record_of_another_hash_tells_another_file(tmp_path: Path) -> None:
    """Of two hashes of one kind the files differ; of a hash of another kind nothing follows."""
    file = remote()
    with opened(tmp_path) as folder:
        finish(folder, file)
        assert folder.standing(replace(file, digest=Digest("sha256", "0" * 64))) is Standing.OTHER
        assert folder.standing(replace(file, digest=Digest("git-sha1", "0" * 40))) is Standing.UNKNOWN


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff", b'{"size": "1"}', b"[" * 100_000, None])
def test_a_damaged_record_is_none(tmp_path: Path, damage: bytes | None) -> None:
    """Whatever lies where a record should (None: a link), the file must be hashed, and can then be recorded."""
    file = remote()
    (tmp_path / "precious").write_text("mine")
    with opened(tmp_path / "dir") as folder:
        finish(folder, file)
        record = tmp_path / "dir" / STATE / "done" / f"{file.name}.json"
        if damage is None:
            record.unlink()
            record.symlink_to(tmp_path / "precious")
        else:
            record.write_bytes(damage)
        assert folder.standing(file) is Standing.UNKNOWN
        folder.record(file)
        assert folder.standing(file) is Standing.DONE
    assert (tmp_path / "precious").read_text() == "mine"


def test_git_hashes_are_those_of_git(tmp_path: Path) -> None:
    """The blob of "hello\\n" has the name that `git hash-object` prints for it."""
    file = RemoteFile("README.md", 6, Digest("git-sha1", "ce013625030ba8dba906f756967f9e9ca394464a"))
    with opened(tmp_path) as folder:
        (tmp_path / "README.md").write_text("hello\n")
        assert folder.digest_of(file, ignore) == file.digest.hexdigest


def test_hashing_can_be_given_up(tmp_path: Path) -> None:
    """What the check raises comes out, even if it is an OSError."""

    def check(done: int) -> None:
        raise TimeoutError(f"after {done}")

    with opened(tmp_path) as folder:
        finish(folder, remote())
        with pytest.raises(TimeoutError, match=r"^after 1048576$"):
            folder.digest_of(remote(), check)


def test_what_is_gone_cannot_be_hashed_or_recorded(tmp_path: Path) -> None:
    """Both name the file."""
    with opened(tmp_path) as folder:
        for use in (lambda: folder.digest_of(remote("a"), ignore), lambda: folder.record(remote("a"))):
            with pytest.raises(OutputError) as caught:
                use()
            assert caught.value.message == f"{tmp_path / 'a'}: No such file or directory."


def test_a_part_keeps_its_bytes_until_it_is_dropped(tmp_path: Path) -> None:
    """Another run finds them at the same place; folders that dropping leaves empty go too."""
    file, other = remote("sub/a"), remote("b")
    for written in (b"", b"first half"):
        with opened(tmp_path) as folder:
            descriptor = folder.open_part(file)
            assert os.pread(descriptor, 100, 0) == written
            os.pwrite(descriptor, b"first half", 0)
            os.close(descriptor)
    assert (tmp_path / STATE / "parts" / "sub" / "a.part").read_bytes() == b"first half"
    with opened(tmp_path) as folder:
        os.close(folder.open_part(other))
        folder.drop_part(file)
        folder.drop_part(file)
        assert tree(tmp_path / STATE / "parts") == ["b.part"]
        assert not (tmp_path / STATE / "parts" / "sub").exists()
        folder.drop_part(other)
    assert not (tmp_path / STATE / "parts").exists()


def test_parts_of_files_that_are_no_longer_listed_are_swept(tmp_path: Path) -> None:
    """They are named and removed, the others and what is no part of ours stay."""
    with opened(tmp_path) as folder:
        assert folder.stale_parts([]) == []
        for name in ("sub/old", "sub/new", "old", "x.part"):
            os.close(folder.open_part(remote(name)))
        (tmp_path / STATE / "parts" / "notes").touch()
        (tmp_path / STATE / "parts" / ".part").touch()
        assert folder.stale_parts(["sub/new", "absent"]) == ["", "old", "sub/old", "x.part"]
        assert folder.sweep(["sub/new", "absent"]) == ["", "old", "sub/old", "x.part"]
    assert tree(tmp_path / STATE / "parts") == ["notes", "sub/new.part"]


def test_a_finished_file_replaces_the_one_before(tmp_path: Path) -> None:
    """Whoever has the old file open reads on in it: it is replaced by a rename, and never written into."""
    (tmp_path / "a").write_bytes(b"the old weights")
    with opened(tmp_path) as folder, (tmp_path / "a").open("rb") as old:
        assert folder.standing(remote("a")) is Standing.OTHER
        finish(folder, remote("a"))
        assert folder.standing(remote("a")) is Standing.DONE
        assert old.read() == b"the old weights"
    assert (tmp_path / "a").read_bytes() == WEIGHTS


def test_finished_files_have_the_permissions_of_new_files(tmp_path: Path) -> None:
    """The umask decides, whatever the file before allowed."""
    (tmp_path / "a").touch(0o600)
    before = os.umask(0o027)
    try:
        with opened(tmp_path) as folder:
            finish(folder, remote("a"))
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("change", ["another file", "gone", "longer"])
def test_a_part_that_changed_behind_our_back_is_not_published(tmp_path: Path, change: str) -> None:
    """What was hashed must be what is renamed, and all of it; else the final name stays as it was."""
    with opened(tmp_path) as folder:
        descriptor = folder.open_part(remote("a"))
        os.pwrite(descriptor, WEIGHTS, 0)
        part = tmp_path / STATE / "parts" / "a.part"
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


NAMES = st.lists(st.sampled_from(["a", "b", "c.json", "d.part"]), min_size=1, max_size=3).map("/".join)


@settings(max_examples=40)
@given(st.sets(NAMES, max_size=4), st.data())
def test_names_do_not_disturb_each_other(tmp_path_factory, names, data) -> None:  # type: ignore[no-untyped-def]
    """Of any files that a directory can hold together, exactly the finished ones are done, and the rest has parts."""
    names = {name for name in names if not any(other.startswith(f"{name}/") for other in names)}
    crowded = {f"{name}{end}" for name in names for end in (".json", ".part")}
    names = {name for name in names if not any(name.startswith(f"{other}/") for other in crowded)}
    finished = data.draw(st.sets(st.sampled_from(sorted(names)))) if names else set()
    path = tmp_path_factory.mktemp("names")
    with opened(path) as folder:
        for name in sorted(names):
            if name in finished:
                finish(folder, remote(name, name.encode()), name.encode())
            else:
                os.close(folder.open_part(remote(name)))
        assert {name for name in names if folder.standing(remote(name, name.encode())) is Standing.DONE} == finished
        assert set(folder.stale_parts([])) == names - finished
    assert {name: (path / name).read_text() for name in finished} == {name: name for name in finished}


STORED = Stored("main", Listing("org/name", "0123456789" * 4, (remote("a"), remote("sub/ü"))), ("sub/ü",))


def test_what_was_listed_is_read_back(tmp_path: Path) -> None:
    """The listing survives the process, and a new one replaces it."""
    with opened(tmp_path) as folder:
        assert folder.read_listing() is None
        folder.write_listing(replace(STORED, revision="v1"))
        folder.write_listing(STORED)
    with opened(tmp_path) as folder:
        assert folder.read_listing() == STORED
    assert tree(tmp_path / STATE) == [".gitignore", "listing.json", "lock"]


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"{}",
        STORED.to_json()[:-9],
        STORED.to_json().replace(b'"a"', b"7"),
        replace(STORED, selected=("z",)).to_json(),
    ],
)
def test_a_damaged_listing_is_none(tmp_path: Path, damaged: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """It is a cache: one that is cut, of wrong types or contradicts itself is logged and not used."""
    with opened(tmp_path) as folder, caplog.at_level("INFO"):
        (tmp_path / STATE / "listing.json").write_bytes(damaged)
        assert folder.read_listing() is None
    told = f"{tmp_path / STATE / 'listing.json'} is damaged and of no use: "
    assert [record.getMessage()[: len(told)] for record in caplog.records] == [told]
