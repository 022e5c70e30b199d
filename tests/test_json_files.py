"""JSON files that others wrote: what is read, and what is refused with which words."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaconv.errors import ConfigError
from llamaconv.json_files import MAX_BYTES, parse_object, parsed, read_object, shown

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
_ANY_TEXT = st.text(st.sampled_from("a\\u\ud800\udbff\udc00\udfff\ue000😀"), max_size=4)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(_TEXT, _VALUES, max_size=5), st.booleans())
def test_every_object_that_can_be_written_is_read_back(table: dict[str, object], escaped: bool) -> None:
    """Parsing is the inverse of writing, keys in their order."""
    read = parse_object(json.dumps(table, ensure_ascii=escaped).encode())
    assert read == table
    assert list(read) == list(table)


@given(st.dictionaries(_ANY_TEXT, _ANY_TEXT | st.lists(_ANY_TEXT, max_size=2), max_size=3))
def test_text_is_read_if_and_only_if_utf8_can_hold_it(table: dict[str, object]) -> None:
    """Half a surrogate pair, in whatever key or value, could be read but not written back."""
    escaped = json.dumps(table).encode()
    try:
        json.dumps(json.loads(escaped), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        with pytest.raises(ValueError, match=r'^not usable: ".*" in it is not valid Unicode$'):
            parse_object(escaped)
    else:
        assert parse_object(escaped) == json.loads(escaped)


def test_an_object_comes_back_in_its_order() -> None:
    """A well-formed object is what json.loads makes of it, keys in the file's order."""
    read = parse_object('{"b": [1, -2, 0.5], "a": {"é": null}}  '.encode())
    assert list(read.items()) == [("b", [1, -2, 0.5]), ("a", {"é": None})]


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"9" * 40, int("9" * 40)),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        (b'"\\\\ud800"', "\\ud800"),
        (b'[{"a": 1}, {"a": 2}]', [{"a": 1}, {"a": 2}]),
    ],
)
def test_what_only_resembles_a_fault_is_read(data: bytes, value: object) -> None:
    """Forty digits, a whole surrogate pair, an escaped backslash and one key in two objects are all right."""
    assert parse_object(b'{"a": ' + data + b"}") == {"a": value}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"a": 1', "not JSON (Expecting ',' delimiter, line 1, column 8)"),
        (b'{"a": }', "not JSON (Expecting value, line 1, column 7)"),
        (b'{"a": 1,\n "b": }', "not JSON (Expecting value, line 2, column 7)"),
        (b"", "not JSON (Expecting value, line 1, column 1)"),
        (b"[1]", "not a JSON object"),
        (b"3", "not a JSON object"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', 'not usable: the key "c" stands in it twice'),
        (b'{"a": {"b": 1, "b": 1}}', 'not usable: the key "b" stands in it twice'),
        (b'{"b": 1, "a": 1, "b": 1}', 'not usable: the key "b" stands in it twice'),
        (b'{"a": NaN}', "not usable: NaN is not a finite number"),
        (b'{"a": -Infinity}', "not usable: -Infinity is not a finite number"),
        (b'{"a": [-Infinity]}', "not usable: -Infinity is not a finite number"),
        (b'{"a": 1e999}', "not usable: 1e999 is not a finite number"),
        (b'{"a": 1e' + b"9" * 5000 + b"}", f"not usable: 1e{'9' * 78} is not a finite number"),
        (b'{"a": ' + b"9" * 41 + b"}", "not usable: a number of 41 digits stands in it"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not usable: a number of 5000 digits stands in it"),
        (b'{"a": \xff}', "not valid UTF-8 (byte 6)"),
        (b'{"a": "\xff"}', "not valid UTF-8 (byte 7)"),
        (b'{"a": "\xed\xa0\x80"}', "not valid UTF-8 (byte 7)"),
        (b'{"\\ud800": 1}', 'not usable: "\\ud800" in it is not valid Unicode'),
        (b'{"a": [{"b": "w.\\uDFFF"}]}', 'not usable: "w.\\udfff" in it is not valid Unicode'),
        (b'{"a": ' + b"[" * 100_000, "not JSON that can be read (nested too deeply)"),
        (b'{"a": ' + b"[" * 200_000, "not JSON that can be read (nested too deeply)"),
    ],
)
def test_other_bytes_are_refused(data: bytes, reason: str) -> None:
    """What is no object, means two things or could not be written back has its own reason."""
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}$"):
        parse_object(data)


def test_a_configuration_is_refused_by_its_path() -> None:
    """In a configuration the reason stands behind the path, as a sentence and an input error."""
    assert parsed(b'{"a": 1}', Path("c.json")) == {"a": 1}
    with pytest.raises(ConfigError) as caught:
        parsed(b'{"a": 1, "a": 1}', Path("c.json"))
    assert caught.value.message == 'c.json: not usable: the key "a" stands in it twice.'
    assert caught.value.facts == {"file": "c.json"}


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
