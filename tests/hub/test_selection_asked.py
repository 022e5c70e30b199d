from __future__ import annotations

import re

import pytest
from huggingface_hub.utils import filter_repo_objects
from hypothesis import given
from hypothesis import strategies as st

from llamaconv.errors import UsageError
from llamaconv.hub.result import Skipped
from tests.hub.listings import choose_from, chosen, refusal

REPOSITORY = ["README.md", "a/b/c.json", "a/d.txt", "ab.json", "config.json"]


def test_named_files_are_what_is_chosen() -> None:
    """Files are taken by name, folders with all that is below them, each once; the others were not asked for."""
    selection = choose_from(REPOSITORY, ["config.json", "a/", "a/d.txt", "config.json"])
    assert chosen(selection) == ["a/b/c.json", "a/d.txt", "config.json"]
    assert selection.skipped == (Skipped("2 files (README.md, ab.json)", "not asked for", ("README.md", "ab.json")),)


def test_unknown_names_stand_in_one_error() -> None:
    """Each name that is not there has its line, with the nearest name that is; a folder must end in a slash."""
    error = refusal(REPOSITORY, ["confg.json", "a/b", "zzz", "config.json", "ab/", "zzz"])
    assert error.message == (
        "org/name has no 'confg.json': did you mean 'config.json'?\n"
        "org/name has no 'a/b': did you mean 'a/b/'?\n"
        "org/name has no 'zzz'.\n"
        "org/name has no 'ab/': did you mean 'a/b/'?"
    )
    assert error.hint == "It has README.md, a/b/c.json, a/d.txt and 2 more."
    assert error.exit_code == 4
    many = refusal([], [f"x{number}" for number in range(12)])
    assert many.message.splitlines()[9:] == ["org/name has no 'x9'.", "… and 2 more."]
    assert many.hint == "It has no files."


def test_names_that_no_file_here_can_have() -> None:
    """Such files were left out of the listing: asked for, they are refused with the reason."""
    error = refusal(REPOSITORY, ["a\\b.json", "config.json", f"{'x' * 300}/b"])
    first, second = error.message.splitlines()
    assert first == 'org/name: no file here can have the name "a\\\\b.json": it holds a backslash.'
    assert re.fullmatch('org/name: no file here can have the name "x+…: it has a part longer than 255 bytes.', second)


PATTERNS = st.lists(st.sampled_from(["*", "*.json", "a/", "a/*", "*b*", "[ab]*", "?onfig.json", "README.md", "A/"]))


@given(PATTERNS, PATTERNS)
def test_patterns_are_those_of_huggingface_hub(include: list[str], exclude: list[str]) -> None:
    """What patterns choose is what huggingface_hub would download with them."""
    theirs = list(filter_repo_objects(sorted(REPOSITORY), allow_patterns=include or None, ignore_patterns=exclude))
    try:
        selection = choose_from(REPOSITORY, (), include or ["*"], exclude)
    except UsageError:
        assert not theirs or "A/" in include
    else:
        assert chosen(selection) == theirs


def test_patterns_and_what_they_leave_out(caplog: pytest.LogCaptureFixture) -> None:
    """The reason tells what was excluded from what was not asked for; an idle pattern of --exclude is said."""
    selection = choose_from(REPOSITORY, (), ["*.json"], ["a/", "*.png"])
    assert chosen(selection) == ["ab.json", "config.json"]
    assert selection.skipped == (
        Skipped("2 files (README.md, a/d.txt)", "not asked for", ("README.md", "a/d.txt")),
        Skipped("a/b/c.json", "excluded", ("a/b/c.json",)),
    )
    assert caplog.messages == ["org/name has no file that matches '*.png': it excludes nothing"]
    assert chosen(choose_from(REPOSITORY, (), (), ["*.json"])) == ["README.md", "a/d.txt"]


@pytest.mark.parametrize(
    ("names", "arguments", "message", "hint"),
    [
        (
            REPOSITORY,
            (["config.json"], ["*"], []),
            "Both files and patterns were given.",
            "Name the files, or use --include and --exclude.",
        ),
        (
            REPOSITORY,
            ([], ["*.bin", "*.json", "B/"], []),
            "org/name has no file that matches '*.bin'.\norg/name has no file that matches 'B/'.",
            "It has README.md, a/b/c.json, a/d.txt and 2 more.",
        ),
        ([], ([], ["*"], []), "org/name has no file that matches '*'.", "It has no files."),
        (REPOSITORY, ([], [], ["*"]), "No file of org/name is left to download.", "Leave out a pattern of --exclude."),
        ([], ([], [], ["*"]), "No file of org/name is left to download.", "It has no files."),
    ],
)
def test_patterns_that_choose_nothing(
    names: list[str], arguments: tuple[list[str], list[str], list[str]], message: str, hint: str
) -> None:
    """Patterns that contradict names, match nothing, or leave nothing are the caller's error."""
    error = refusal(names, *arguments)
    assert (error.message, error.hint, error.exit_code) == (message, hint, 2)
