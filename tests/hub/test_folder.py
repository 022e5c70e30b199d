from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

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
def opened(path: Path, repository: str = "org/name") -> Iterator[Folder]:
    def unexpected() -> None:
        raise AssertionError("nobody else downloads")

    with Folder.open(path, repository, wait=lambda told: unexpected(), cancelled=unexpected) as folder:
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
        ".cache/llamaconv/done/sub%2Fdeep%2Fmodel.safetensors.json",
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


def test_git_hashes_are_those_of_git(tmp_path: Path) -> None:
    """The blob of "hello\\n" has the name that `git hash-object` prints for it."""
    file = RemoteFile("README.md", 6, Digest("git-sha1", "ce013625030ba8dba906f756967f9e9ca394464a"))
    with opened(tmp_path) as folder:
        (tmp_path / "README.md").write_text("hello\n")
        hashed = folder.digest_of(file, ignore)
    assert hashed is not None
    assert hashed.hexdigest == file.digest.hexdigest


def test_hashing_can_be_given_up(tmp_path: Path) -> None:
    """What the check raises comes out, even if it is an OSError."""

    def check(done: int) -> None:
        raise TimeoutError(f"after {done}")

    with opened(tmp_path) as folder:
        finish(folder, remote())
        with pytest.raises(TimeoutError, match=r"^after 1048576$"):
            folder.digest_of(remote(), check)


def test_what_is_gone_cannot_be_hashed(tmp_path: Path) -> None:
    """The file is named."""
    with opened(tmp_path) as folder, pytest.raises(OutputError) as caught:
        folder.digest_of(remote("a"), ignore)
    assert caught.value.message == f"{tmp_path / 'a'}: No such file or directory."


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


STORED = Stored(
    "main", Listing("org/name", "0123456789" * 4, (remote("a"), remote("sub/ü"))), ("sub/ü",), complete=False
)


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
