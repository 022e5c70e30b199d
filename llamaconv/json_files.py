"""JSON that others wrote, read with suspicion: one object, and for configurations a pydantic model of it."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from llamaconv.errors import ConfigError

__all__ = ["MAX_BYTES", "config_error", "parse_object", "parsed", "read_object", "shown", "validated"]

MAX_BYTES = 16_000_000

_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SURROGATE = re.compile("[\ud800-\udfff]")

Model = TypeVar("Model", bound=BaseModel)


def read_object(path: Path) -> tuple[bytes, dict[str, Any]]:
    """A JSON file's bytes and the object in it, its keys in their order.

    Raises:
        ConfigError: Missing, unreadable, no regular file, over 16 MB, or as ``parsed``.
    """
    try:
        # A pipe must not keep us waiting.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise config_error(path, ["not a regular file"])
            source = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} does not exist.", hint="It belongs beside the weights: download it too.", file=str(path)
        ) from error
    except OSError as error:
        raise config_error(path, [f"cannot be read: {error.strerror}"]) from error
    if len(source) > MAX_BYTES:
        raise config_error(path, [f"more than {MAX_BYTES} bytes are too many for a configuration"])
    return source, parsed(source, path)


def parsed(source: bytes, path: Path) -> dict[str, Any]:
    """The JSON object in the bytes of a configuration; ``path`` is for the messages.

    Raises:
        ConfigError: What ``parse_object`` refuses.
    """
    try:
        return parse_object(source)
    except ValueError as error:
        raise config_error(path, [str(error)]) from error


def parse_object(data: bytes) -> dict[str, Any]:
    """The one JSON object (RFC 8259) in UTF-8 that ``data`` must hold, its keys in their order.

    Stricter than ``json.loads``: what parsers disagree on, or what could not be written back, is refused
    (repeated keys, numbers that are not finite, halves of a surrogate pair), and so are integers of over 40
    digits.

    Raises:
        ValueError: What is wrong, as a phrase that continues a sentence ("is …").
    """
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_real, parse_float=_real, parse_int=_integer)
    except UnicodeDecodeError as error:
        raise ValueError(f"not valid UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg}, line {error.lineno}, column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("not JSON that can be read (nested too deeply)") from error
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    if _ESCAPED_SURROGATE.search(text):  # UTF-8 holds none unescaped, so the strings are rarely gone through
        _require_whole_pairs(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):  # a loop only here: a header can hold 100,000s of objects
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"not usable: the key {shown(twice)} stands in it twice")
    return table


def _integer(text: str) -> int:
    if len(text) > 40:  # int() of a long one is slow, and no size or offset is as long
        raise ValueError(f"not usable: a number of {len(text)} digits stands in it")
    return int(text)


def _real(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):  # NaN, Infinity, 1e999: JSON could not be written back
        raise ValueError(f"not usable: {text:.80} is not a finite number")
    return value


def _require_whole_pairs(value: object) -> None:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending.extend(item)
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
        elif isinstance(item, str) and _SURROGATE.search(item):
            raise ValueError(f"not usable: {shown(item)} in it is not valid Unicode")


def validated(model: type[Model], raw: Mapping[str, Any], path: Path, hint: str | None = None) -> Model:
    """``raw``, read from ``path``, as an instance of the pydantic ``model``.

    Raises:
        ConfigError: One line for each key that is missing or has a value that cannot be.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        faults = []
        for item in error.errors():
            key = ".".join(map(str, item["loc"]))
            expected = item["msg"][:1].lower() + item["msg"][1:]
            missing = item["type"] == "missing"
            faults.append(f"{key} is missing" if missing else f"{key} is {shown(item['input'])}: {expected}")
        raise config_error(path, faults, hint) from error


def shown(value: object) -> str:
    """``value`` as JSON, cut to 80 characters."""
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:79] + "…"


def config_error(path: Path, faults: Sequence[str], hint: str | None = None) -> ConfigError:
    """The error for a file with these faults, one line each."""
    return ConfigError("\n".join(f"{path}: {fault}." for fault in faults), hint=hint, file=str(path))
