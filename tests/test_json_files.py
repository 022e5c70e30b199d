"""JSON files that others wrote: what is read, and what is refused with which words."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaconv.errors import ConfigError
from llamaconv.json_files import MAX_BYTES, parse_object, read_object, shown

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=10,
)


def _refused(source: bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_object(source, Path("c.json"))
    return str(caught.value)


@given(st.dictionaries(_TEXT, _VALUES, max_size=5))
def test_every_object_that_can_be_written_is_read_back(table: dict[str, object]) -> None:
    """Parsing is the inverse of writing, keys in their order."""
    parsed = parse_object(json.dumps(table).encode(), Path("c.json"))
    assert parsed == table
    assert list(parsed) == list(table)


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        (b'{"a": 1', "not JSON (Expecting ',' delimiter, line 1)"),
        (b"", "not JSON (Expecting value, line 1)"),
        (b"[1]", "not a JSON object"),
        (b"3", "not a JSON object"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', 'the key "c" stands in it twice'),
        (b'{"a": NaN}', "NaN is not a finite number"),
        (b'{"a": [-Infinity]}', "-Infinity is not a finite number"),
        (b'{"a": 1e999}', "1e999 is not a finite number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number of 5000 digits stands in it"),
        (b'{"a": "\xff"}', "not valid Unicode in UTF-8"),
        (b'{"\\ud800": 1}', "not valid Unicode in UTF-8"),
        (b'{"a": ' + b"[" * 200_000, "nested too deeply"),
    ],
)
def test_other_bytes_are_refused(source: bytes, fault: str) -> None:
    """What is no object, or could not be written back as it was, is refused in one sentence."""
    assert _refused(source) == f"c.json: {fault}."


def test_files_are_returned_with_their_bytes(tmp_path: Path) -> None:
    """The bytes come back as they are beside the object."""
    path = tmp_path / "c.json"
    path.write_bytes(b'{ "b": 1e-5,\n"a": 2}')
    assert read_object(path) == (b'{ "b": 1e-5,\n"a": 2}', {"b": 1e-5, "a": 2})


def test_missing_files_are_named(tmp_path: Path) -> None:
    """A file that is not there gives an error with its path and a hint."""
    with pytest.raises(ConfigError) as caught:
        read_object(tmp_path / "c.json")
    assert str(caught.value) == f"{tmp_path / 'c.json'} does not exist."
    assert caught.value.hint == "It belongs beside the weights: download it too."


def test_folders_and_pipes_are_no_files(tmp_path: Path) -> None:
    """What is no regular file is refused at once: a pipe would never answer."""
    with pytest.raises(ConfigError, match=r": cannot be read: Is a directory\.$"):
        read_object(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r": not a regular file\.$"):
        read_object(tmp_path / "pipe")


def test_huge_files_are_refused(tmp_path: Path) -> None:
    """Over 16 MB nothing is parsed; a sparse terabyte takes no time."""
    path = tmp_path / "c.json"
    path.write_bytes(b'{"a": 1}')
    os.truncate(path, 10**12)
    with pytest.raises(ConfigError, match=f": more than {MAX_BYTES} bytes are too many for a configuration.$"):
        read_object(path)


def test_shown_values_are_short() -> None:
    """A value in a message is JSON of at most 80 characters, without control characters."""
    assert shown({"a": [True, None, "\x1b"]}) == '{"a": [true, null, "\\u001b"]}'
    assert shown("x" * 100) == '"' + "x" * 78 + "…"
