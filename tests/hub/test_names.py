from __future__ import annotations

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llamaconv.errors import HubError
from llamaconv.hub.names import faults, hostile, require_safe, unsafe, unusable

ANY_NAME = st.lists(
    st.sampled_from(["a", "..", ".", "", "C:", "\\", "\0", "\n", ".git", ".GIT", ".cache", "llamaconv", "é", " ", "~"])
    | st.text(max_size=3),
    max_size=4,
).map("/".join)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "is empty"),
        ("a\ud800", "is not valid Unicode"),
        ("a\0b", "holds a NUL"),
        ("a\x1b[2Jb", "holds a control character"),
        ("a\x85b", "holds a control character"),
        ("..\\b", "has '..' in it"),
        ("a\\..\\..\\b", "has '..' in it"),
        ("C:\\b", "names a drive"),
        ("a\\\x1bb", "holds a control character"),
        ("x" * 300 + "/../a", "has '..' in it"),
        ("/etc/passwd", "is absolute"),
        ("C:b", "names a drive"),
        ("a//b", "has an empty part"),
        ("a/", "has an empty part"),
        ("a/./b", "has a part '.'"),
        ("..", "has '..' in it"),
        ("a/../../b", "has '..' in it"),
        (".cache", "is ours"),
        (".Cache/LlamaConv/lock", "is ours"),
        (".cache/llama\u200dconv", "is ours"),
        (".git", "is git's"),
        ("sub/.GIT/hooks/post-checkout", "is git's"),
        (".g\u200cit/config", "is git's"),
    ],
)
def test_names_that_may_not_be_used_on_disk(name: str, reason: str) -> None:
    """What leads elsewhere, is no name, would reach the terminal, or is git's or ours speaks against the repository."""
    assert hostile(name) == unsafe(name) == reason


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sub\\optimizer.pt", "holds a backslash"),
        ("\\a", "holds a backslash"),
        ("a\\b..", "holds a backslash"),
        ("é" * 128, "has a part longer than 255 bytes"),
        ("a/" + "b" * 256, "has a part longer than 255 bytes"),
        ("a/" * 2047 + "abc", "is longer than 4096 bytes"),
    ],
)
def test_names_that_no_file_can_have(name: str, reason: str) -> None:
    """What does no harm, but cannot be written here, speaks against that file alone."""
    assert unusable(name) == unsafe(name) == reason
    assert hostile(name) is None
    require_safe([name], "org/name")


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "a/b/model-00001-of-00002.safetensors",
        ".gitattributes",
        ".cache/huggingface/x",
        "...",
        "a..b",
        "a b",
        "é" * 127,
        "ab:c",
        "llamaconv/.cache",
        "模型.bin",
        "a/" * 2047 + "ab",
    ],
)
def test_names_that_may(name: str) -> None:
    """Unusual names that stay where they belong are names."""
    assert unsafe(name) is None


@given(ANY_NAME)
@example("a/b")
@example("~")
def test_a_safe_name_stays_inside_its_directory(name: str) -> None:
    """Whatever is not refused is below the directory by the rules of POSIX and of Windows, and can be encoded."""
    if unsafe(name):
        return
    assert os.path.normpath(os.path.join("/base", name)) == f"/base/{name}"
    assert PurePosixPath("/base", name).parts[:2] == ("/", "base")
    assert PureWindowsPath("D:/base", name).parts[:2] == ("D:\\", "base")
    assert name.isprintable() or not any(ord(character) < 32 for character in name)
    os.fsencode(name)


@given(st.lists(ANY_NAME, max_size=6))
def test_safe_names_can_all_be_files_of_one_directory(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    """Names of which none is refused can be written side by side, each to a file of its own."""
    if faults(names):
        return
    folder = tmp_path_factory.mktemp("names")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("x") as file:
            file.write(name)
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == sorted(names)


def test_all_unsafe_names_stand_in_one_error() -> None:
    """Each has its line, escaped for the terminal; so do a name that is there twice and a file that is a folder."""
    with pytest.raises(HubError) as caught:
        require_safe(["../x", "ok", "a\x1b", "b", "c/d", "c", "c-d", "b", "c/d/e"], "org/name")
    assert caught.value.message == (
        "org/name: the file name \"../x\" has '..' in it.\n"
        'org/name: the file name "a\\u001b" holds a control character.\n'
        'org/name: the file name "b" stands there 2 times.\n'
        'org/name: the file name "c/d" is a file and a folder.\n'
        'org/name: the file name "c" is a file and a folder.'
    )
    assert caught.value.hint == (
        "Nothing was written: such names are a fault of the repository or of the server, or an attack."
    )
    assert caught.value.exit_code == 4


def test_ten_unsafe_names_are_shown() -> None:
    """Of many unsafe names the first ten are shown and the others counted; a long one is cut."""
    with pytest.raises(HubError) as caught:
        require_safe([f"/{'x' * 300}{number}" for number in range(12)], "org/name")
    lines = caught.value.message.splitlines()
    assert lines[0] == f'org/name: the file name "/{"x" * 77}… is absolute.'
    assert len(lines) == 11
    assert lines[10] == "… and 2 more."


def test_safe_names_pass(tmp_path: Path) -> None:
    """Names that only begin alike are no folder of one another."""
    assert faults(["a", "a-b", "a.b", "ab", "b/a", "b/ab", "b0"]) == []
    require_safe([], "org/name")
