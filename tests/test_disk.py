from __future__ import annotations

from pathlib import Path

import pytest

from llamaconv.disk import clear, make_parents, remove_empty, sync_tree


def test_clear_removes_links_and_not_what_they_lead_to(tmp_path: Path) -> None:
    """Files, folders and links inside go, the kept name stays, and nothing outside is touched."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("mine")
    room = tmp_path / "room"
    (room / "deep" / "er").mkdir(parents=True)
    (room / "deep" / "file").touch()
    (room / "deep" / "link").symlink_to(tmp_path / "outside")
    (room / "link").symlink_to(tmp_path / "outside")
    (room / "dangling").symlink_to("nowhere")
    (room / "kept").touch()
    clear(room, keep=["kept"])
    assert [path.name for path in room.iterdir()] == ["kept"]
    assert (tmp_path / "outside" / "precious").read_text() == "mine"


def test_parents_are_made_and_unmade(tmp_path: Path) -> None:
    """What was created is returned innermost first, and can be taken back as long as it is empty."""
    made = make_parents(tmp_path / "a" / "b" / "c")
    assert made == [tmp_path / "a" / "b" / "c", tmp_path / "a" / "b", tmp_path / "a"]
    assert make_parents(tmp_path / "a") == []
    (tmp_path / "a" / "file").touch()
    remove_empty(made)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "file"]


def test_a_file_among_the_parents_leaves_nothing_behind(tmp_path: Path) -> None:
    """If the way is blocked, no folder stays that was made on it."""
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        make_parents(tmp_path / "file" / "b" / "c")
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]


def test_syncing_a_tree_ignores_links(tmp_path: Path) -> None:
    """Nested files are synced; a dangling link is nothing to sync."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("x")
    (tmp_path / "link").symlink_to("nowhere")
    sync_tree(tmp_path)
