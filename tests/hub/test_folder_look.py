from __future__ import annotations

import os
from pathlib import Path

import pytest

from llamaconv.errors import OutputError
from llamaconv.hub.folder import Folder, Standing
from tests.hub.test_folder import STORED, WEIGHTS, finish, opened, remote, tree


@pytest.mark.parametrize("name", ["dir", "not/there/yet", "."])
def test_a_directory_that_is_not_there_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Looking tells the space where it would be made, makes nothing, and is not misled by what lies around it."""
    (tmp_path / "a").write_text("not the file")
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    for path in (tmp_path / "b" / name, Path(name)):
        with Folder.look(path, "org/name") as folder:
            assert folder.path == path
            assert folder.standing(remote("a")) is Standing.ABSENT
            assert folder.read_listing() is None
            with folder.read_part(remote("a")) as part:
                assert part is None
            space = os.statvfs(tmp_path)
            assert 0 < folder.free_bytes() <= space.f_blocks * space.f_frsize
    assert tree(tmp_path) == ["a"]
    assert list((tmp_path / "b").iterdir()) == []


def test_looking_sees_what_is_there_while_another_downloads(tmp_path: Path) -> None:
    """Finished files, the bytes of unfinished ones and the listing, without the lock."""
    with opened(tmp_path / "dir") as folder:
        finish(folder, remote("sub/done"))
        descriptor = folder.open_part(remote("part"))
        os.pwrite(descriptor, b"half", 0)
        os.close(descriptor)
        folder.write_listing(STORED)
        with Folder.look(tmp_path / "dir", "org/name") as seen:
            assert seen.standing(remote("sub/done")) is Standing.DONE
            assert seen.standing(remote("part")) is Standing.ABSENT
            assert seen.read_listing() == STORED
            with seen.read_part(remote("part")) as part:
                assert part is not None
                assert os.pread(part, 100, 0) == b"half"
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(part)


def test_looking_follows_no_links_either(tmp_path: Path) -> None:
    """The directory may be one; what lies in it may not."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "a").write_bytes(WEIGHTS)
    (tmp_path / "real" / "sub").symlink_to(".")
    with Folder.look(tmp_path / "link", "org/name") as folder:
        assert folder.standing(remote("a")) is Standing.UNKNOWN
        with pytest.raises(OutputError) as caught:
            folder.standing(remote("sub/a"))
    path = tmp_path / "link" / "sub"
    assert caught.value.message == f"{path} is a symbolic link: nothing is written through it."


@pytest.mark.parametrize("name", ["file", "file/dir", "dangling"])
def test_what_is_no_directory_cannot_be_looked_into(tmp_path: Path, name: str) -> None:
    """What is in the way is named, as when it is to be written."""
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(OutputError) as caught, Folder.look(tmp_path / name, "org/name"):
        pass
    with pytest.raises(OutputError) as written, opened(tmp_path / name):
        pass
    expected = f"{tmp_path / name.partition('/')[0]} is in the way: it is not a directory."
    assert caught.value.message == written.value.message == expected
