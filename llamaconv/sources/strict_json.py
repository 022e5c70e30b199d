"""JSON from files that others wrote: an object, without repeated keys, or a reason why not."""

from __future__ import annotations

import json
from typing import Any, NoReturn

__all__ = ["parse_object"]


def parse_object(data: bytes) -> dict[str, Any]:
    """Parse UTF-8 bytes that must hold one JSON object (RFC 8259).

    Stricter than ``json.loads``: repeated keys, ``NaN``, ``Infinity`` and keys that are no valid Unicode are
    refused, since parsers disagree on what they mean.

    Raises:
        ValueError: What is wrong, as a phrase that continues a sentence ("is …").
    """
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_integer
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"not valid UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg}, character {error.pos})") from error
    except RecursionError as error:
        raise ValueError("not JSON that can be read (nested too deeply)") from error
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"not usable: the key {key!r} stands in it twice")
        if not key.isascii():
            _require_encodable(key)
        table[key] = value
    return table


def _require_encodable(key: str) -> None:
    try:
        key.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"not usable: the key {key!r} is not valid Unicode") from error


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"not JSON (it contains {text})")


def _integer(text: str) -> int:
    if len(text) > 40:  # no size or offset is as long, and int() of a long one is slow
        raise ValueError(f"not usable: it contains a number of {len(text)} digits")
    return int(text)
