from __future__ import annotations

import re

import pytest

from llamaconv.sources.strict_json import parse_object


def test_an_object_comes_back_in_its_order() -> None:
    """A well-formed object is what json.loads makes of it, keys in the file's order."""
    parsed = parse_object('{"b": [1, -2, 0.5], "a": {"é": null}}  '.encode())
    assert list(parsed.items()) == [("b", [1, -2, 0.5]), ("a", {"é": None})]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"a": \xff}', "not valid UTF-8 (byte 6)"),
        (b'{"a": }', "not JSON (Expecting value, character 6)"),
        (b"[1]", "not a JSON object"),
        (b'{"a": {"b": 1, "b": 1}}', "not usable: the key 'b' stands in it twice"),
        (b'{"a": NaN}', "not JSON (it contains NaN)"),
        (b'{"a": -Infinity}', "not JSON (it contains -Infinity)"),
        (b'{"\\ud800": 1}', "not usable: the key '\\ud800' is not valid Unicode"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not usable: it contains a number of 5000 digits"),
        (b'{"a": ' + b"[" * 100_000, "not JSON that can be read (nested too deeply)"),
    ],
)
def test_what_is_no_plain_object_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    """Each way of not being one unambiguous JSON object has its own reason."""
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}$"):
        parse_object(data)
