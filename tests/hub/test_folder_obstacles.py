from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llamaconv.errors import OutputError
from llamaconv.hub.folder import Folder
from llamaconv.hub.repository import RemoteFile
from tests.hub.test_folder import finish, ignore, opened, remote, tree

LINK = "is a symbolic link: nothing is written through it."
REMOVE = "Remove it, or choose another directory."
MOVE = "Move it away, or choose another directory."

USES: dict[str, Callable[[Folder, RemoteFile], object]] = {
    "standing": Folder.standing,
    "digest_of": lambda folder, file: folder.digest_of(file, ignore),
    "finish": finish,
}


def record(folder: Folder, file: RemoteFile) -> None:
    """It is not looked at any more when it is put on record."""
    folder.record(file, os.stat(folder.path))


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder that nothing may be written to."""
    path = tmp_path / "outside"
    path.mkdir()
    (path / "model.safetensors").write_text("precious")
    yield path
    assert tree(path) == ["model.safetensors"]
    assert (path / "model.safetensors").read_text() == "precious"


@pytest.mark.parametrize("use", USES)
def test_no_file_is_reached_through_a_linked_folder(tmp_path: Path, outside: Path, use: str) -> None:
    """A folder that is a link is named, whatever is to be done with a file in it."""
    with opened(tmp_path / "dir") as folder:
        (tmp_path / "dir" / "sub").symlink_to(outside)
        with pytest.raises(OutputError) as caught:
            USES[use](folder, remote("sub/model.safetensors"))
    assert caught.value.message == f"{tmp_path / 'dir' / 'sub'} {LINK}"
    assert (caught.value.hint, caught.value.exit_code) == (REMOVE, 7)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("target", ["model.safetensors", "absent"])
def test_no_file_is_a_link(tmp_path: Path, outside: Path, use: str, target: str) -> None:
    """A link under the final name, dangling or not, is neither read nor replaced."""
    with opened(tmp_path / "dir") as folder:
        (tmp_path / "dir" / "a").symlink_to(outside / target)
        with pytest.raises(OutputError) as caught:
            USES[use](folder, remote("a"))
    assert caught.value.message == f"{tmp_path / 'dir' / 'a'} {LINK}"
    assert caught.value.hint == REMOVE
    assert (tmp_path / "dir" / "a").is_symlink()


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(("make", "kind"), [(os.mkdir, "a directory"), (os.mkfifo, "a special file")])
def test_only_regular_files_are_replaced(tmp_path: Path, use: str, make: Callable[[Path], None], kind: str) -> None:
    """A folder or a pipe under the final name stays; the pipe keeps nobody waiting."""
    with opened(tmp_path) as folder:
        make(tmp_path / "a")
        with pytest.raises(OutputError) as caught:
            USES[use](folder, remote("a"))
    assert caught.value.message == f"{tmp_path / 'a'} is in the way: it is {kind}."
    assert caught.value.hint == MOVE


@pytest.mark.parametrize("use", USES)
def test_a_file_where_a_folder_must_be_stays(tmp_path: Path, use: str) -> None:
    """It is named, and not the file that was to lie below it."""
    with opened(tmp_path) as folder:
        (tmp_path / "sub").write_text("mine")
        with pytest.raises(OutputError) as caught:
            USES[use](folder, remote("sub/a"))
    assert caught.value.message == f"{tmp_path / 'sub'} is in the way: it is a file."
    assert (tmp_path / "sub").read_text() == "mine"


@pytest.mark.parametrize(
    ("link", "target"),
    [("parts", "."), ("parts/org%2Fname", "."), ("parts/org%2Fname/a.part", "model.safetensors")],
)
def test_parts_are_not_written_through_links(tmp_path: Path, outside: Path, link: str, target: str) -> None:
    """Neither their folder nor a part itself may be a link."""
    with opened(tmp_path / "dir") as folder:
        path = tmp_path / "dir" / ".cache" / "llamaconv" / link
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(outside / target)
        with pytest.raises(OutputError) as caught:
            folder.open_part(remote("a"))
    assert caught.value.message == f"{path} {LINK}"


@pytest.mark.parametrize("link", [".cache", ".cache/llamaconv", ".cache/llamaconv/lock", ".cache/llamaconv/.gitignore"])
def test_our_own_folder_is_no_link(tmp_path: Path, outside: Path, link: str) -> None:
    """Neither it nor what it lies in, nor what opening writes into it."""
    path = tmp_path / "dir" / link
    path.parent.mkdir(parents=True)
    path.symlink_to(outside)
    with pytest.raises(OutputError) as caught, opened(tmp_path / "dir"):
        pass
    assert caught.value.message == f"{path} {LINK}"


def test_sweeping_removes_links_and_not_what_they_lead_to(tmp_path: Path, outside: Path) -> None:
    """A linked folder among the parts is not entered; a part that is a link goes."""
    with opened(tmp_path / "dir") as folder:
        parts = tmp_path / "dir" / ".cache" / "llamaconv" / "parts" / "org%2Fname"
        parts.mkdir(parents=True)
        (parts / "sub").symlink_to(outside)
        (parts / "a.part").symlink_to(outside / "model.safetensors")
        assert folder.sweep([]) == [("a", 0)]
    assert tree(parts) == []
    assert os.listdir(parts) == ["sub"]


@pytest.mark.parametrize("name", ["../a", "/a", "sub/../../a", "sub//a", "./a", "..", ".", "", "a/", "a\0b"])
def test_names_stay_below_the_directory(tmp_path: Path, name: str) -> None:
    """A name with an empty part, a dot, two dots or a NUL is refused, whatever is to be done with it."""
    with opened(tmp_path / "dir") as folder:
        for use in (*USES.values(), Folder.open_part, Folder.drop_part, Folder.forget, record):
            with pytest.raises(OutputError) as caught:
                use(folder, remote(name))
            assert caught.value.message == f"{name!r} is no name of a file below the directory."
    assert sorted(os.listdir(tmp_path)) == ["dir"]
    assert sorted(os.listdir(tmp_path / "dir")) == [".cache"]


@pytest.mark.parametrize("name", [".cache/llamaconv/lock", ".cache/llamaconv", ".Cache/LlamaConv/done/a.json"])
def test_our_own_notes_are_no_files_of_a_repository(tmp_path: Path, name: str) -> None:
    """A repository cannot say of itself that it is downloaded; file systems may ignore case."""
    with opened(tmp_path) as folder:
        for use in (*USES.values(), record):
            with pytest.raises(OutputError) as caught:
                use(folder, remote(name))
            assert caught.value.message == f"{name} lies where downloads keep their own notes (.cache/llamaconv)."


@pytest.mark.parametrize("below", ["", "sub/dir"])
def test_a_file_in_the_way_of_the_directory_is_named(tmp_path: Path, below: str) -> None:
    """It is what must go, be it the directory itself or what it was to lie in."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError) as caught, opened(tmp_path / "file" / below):
        pass
    assert caught.value.message == f"{tmp_path / 'file'} is in the way: it is not a directory."
    assert caught.value.hint == MOVE
    assert (tmp_path / "file").read_text() == "mine"


@contextmanager
def powerless() -> Iterator[None]:
    """For root, permissions are none."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("used", [False, True])
def test_a_directory_that_cannot_be_written_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: bool
) -> None:
    """Even if an earlier download left a folder in it that can."""
    if used:
        with opened(tmp_path):
            pass
        for path in (tmp_path / ".cache", *(tmp_path / ".cache").rglob("*")):
            path.chmod(0o777)
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o555)
    with powerless(), pytest.raises(OutputError) as caught, opened(Path()):
        pass
    tmp_path.chmod(0o755)
    assert caught.value.message == ".: Permission denied."


def test_a_name_that_is_too_long_is_refused_before_the_first_byte(tmp_path: Path) -> None:
    """Looking for the file finds out."""
    name = "x" * (os.pathconf(tmp_path, "PC_NAME_MAX") + 1)
    with opened(tmp_path) as folder, pytest.raises(OutputError) as caught:
        folder.standing(remote(name))
    assert caught.value.message == f"{tmp_path / name}: File name too long."
