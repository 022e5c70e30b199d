from __future__ import annotations

import os
from pathlib import Path

import pytest

from llamaconv.cli.report_file import report_file
from llamaconv.errors import OutputError


def test_a_report_appears_when_it_is_complete(tmp_path: Path) -> None:
    """Until it is written the old one stays; nothing else remains in its directory."""
    path = tmp_path / "report.json"
    path.write_text("old")
    with report_file(path) as write:
        assert path.read_text() == "old"
        write("new\n")
    assert path.read_text() == "new\n"
    assert os.listdir(tmp_path) == ["report.json"]


def test_a_failure_leaves_no_report(tmp_path: Path) -> None:
    """What was begun is removed, whatever ended the work."""
    with pytest.raises(KeyboardInterrupt), report_file(tmp_path / "report.json"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    """A directory that is not there, a file in its place, a directory of the report's name, a device."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path, message in [
        (tmp_path / "none" / "report.json", "No such file or directory."),
        (tmp_path / "file" / "report.json", "Not a directory."),
        (tmp_path / "folder", "not a regular file."),
        (Path("/dev/null"), "not a regular file."),
    ]:
        with pytest.raises(OutputError) as caught, report_file(path):
            raise AssertionError("work began")
        assert caught.value.message == f"{path}: {message}"
        assert caught.value.exit_code == 7


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """The file that a link leads to is replaced."""
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "report.json")
    with report_file(tmp_path / "link") as write:
        write("text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "report.json").read_text() == "text"


def test_no_report_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a path nothing is written."""
    monkeypatch.chdir(tmp_path)
    with report_file(None) as write:
        write("text")
    assert list(tmp_path.iterdir()) == []
