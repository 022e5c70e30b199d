from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llamaconv.sinks.rename import aside_of, exchange, is_mount_point, move, replace
from tests.sinks.processes import run_mounted

Swap = Callable[[Path, Path], bool]


def folder(path: Path, content: str | None) -> Path:
    path.mkdir()
    if content is not None:
        (path / content).touch()
    return path


def names(path: Path) -> list[str]:
    return sorted(found.relative_to(path).as_posix() for found in path.rglob("*"))


def never(one: Path, other: Path) -> bool:
    """A file system that cannot exchange."""
    return False


@pytest.mark.parametrize("swap", [exchange, never])
def test_replacing_gives_the_old_directory_back(tmp_path: Path, swap: Swap) -> None:
    """The new one stands in the old one's place, and the old one is where the answer says."""
    new, out = folder(tmp_path / "new", "n"), folder(tmp_path / "out", "o")
    old = replace(new, out, exchange=swap)
    assert old is not None
    assert names(out) == ["n"]
    assert names(old) == ["o"]
    assert sorted([out, old]) == sorted(tmp_path.iterdir())


@pytest.mark.parametrize("swap", [exchange, never])
@pytest.mark.parametrize("there", [False, True])
def test_an_absent_or_empty_place_is_taken(tmp_path: Path, swap: Swap, there: bool) -> None:
    """Where nothing is replaced there is nothing to clean up."""
    new = folder(tmp_path / "new", "n")
    if there:
        folder(tmp_path / "out", None)
    assert replace(new, tmp_path / "out", exchange=swap) is None
    assert names(tmp_path) == ["out", "out/n"]


def test_without_exchange_a_blocked_way_changes_nothing(tmp_path: Path) -> None:
    """What is in the way of renaming away is kept, and so is the old directory."""
    new, out = folder(tmp_path / "new", "n"), folder(tmp_path / "out", "o")
    folder(aside_of(out), "precious")
    with pytest.raises(OSError, match="Directory not empty"):
        replace(new, out, exchange=never)
    assert names(tmp_path) == ["new", "new/n", "out", "out.replaced", "out.replaced/precious", "out/o"]


def test_a_new_directory_that_cannot_follow_brings_the_old_one_back(tmp_path: Path) -> None:
    """If the second of the two renames fails, the first is undone."""
    new, out = folder(tmp_path / "new", "n"), folder(tmp_path / "out", "o")

    def lose(one: Path, other: Path) -> bool:
        one.rename(tmp_path / "lost")
        return False

    with pytest.raises(FileNotFoundError):
        replace(new, out, exchange=lose)
    assert names(tmp_path) == ["lost", "lost/n", "out", "out/o"]


def test_moving_never_replaces(tmp_path: Path) -> None:
    """A directory that holds something, a file and a link are left alone."""
    new = folder(tmp_path / "new", "n")
    folder(tmp_path / "full", "f")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(folder(tmp_path / "target", None))
    for name in ("full", "file", "link"):
        with pytest.raises(OSError, match=r"Directory not empty|Not a directory"):
            move(new, tmp_path / name)
    assert names(new) == ["n"]
    assert (tmp_path / "link").is_symlink()


def test_mount_points_are_known(tmp_path: Path) -> None:
    """The root is one, a plain folder is not."""
    assert is_mount_point(Path("/"))
    assert not is_mount_point(tmp_path)


def test_a_bind_mount_within_a_file_system_is_known(tmp_path: Path) -> None:
    """A folder mounted on another one of the same device is a mount point; its name may hold spaces."""
    room = folder(tmp_path / "a b\t\\c", None)
    script = (
        "import os, sys; from pathlib import Path; from llamaconv.sinks.rename import is_mount_point; "
        "print(is_mount_point(Path(sys.argv[1])), os.path.ismount(sys.argv[1]))"
    )
    done = run_mounted('mount --bind "$1" "$1"', script, room)
    assert (done.stdout, done.stderr) == ("True False\n", "")
