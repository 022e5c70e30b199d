"""JSON files that others wrote, read with suspicion: one object, checked against a pydantic model."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from llamaconv.errors import ConfigError

__all__ = ["MAX_BYTES", "config_error", "parse_object", "read_object", "shown", "validated"]

MAX_BYTES = 16_000_000

Model = TypeVar("Model", bound=BaseModel)


def read_object(path: Path) -> tuple[bytes, dict[str, Any]]:
    """A JSON file's bytes and the object in it, its keys in their order.

    Raises:
        ConfigError: Missing, unreadable, no regular file, over 16 MB, or as ``parse_object``.
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
    return source, parse_object(source, path)


def parse_object(source: bytes, path: Path) -> dict[str, Any]:
    """The JSON object (RFC 8259) in ``source``; ``path`` is for the messages.

    Raises:
        ConfigError: Not JSON in UTF-8, not an object, a repeated key, a number that is not finite or has over
            40 digits.
    """
    try:
        value = json.loads(
            source.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_real,
            parse_float=_real,
            parse_int=_integer,
        )
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # "\\ud800" could be read but not written back
    except UnicodeError as error:
        raise config_error(path, ["not valid Unicode in UTF-8"]) from error
    except json.JSONDecodeError as error:
        raise config_error(path, [f"not JSON ({error.msg}, line {error.lineno})"]) from error
    except RecursionError as error:
        raise config_error(path, ["nested too deeply"]) from error
    except ValueError as error:
        raise config_error(path, [str(error)]) from error
    if not isinstance(value, dict):
        raise config_error(path, ["not a JSON object"])
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"the key {shown(key)} stands in it twice")
        table[key] = value
    return table


def _integer(text: str) -> int:
    if len(text) > 40:  # int() of a long one is slow, and no size is as long
        raise ValueError(f"a number of {len(text)} digits stands in it")
    return int(text)


def _real(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):  # NaN, Infinity, 1e999: JSON could not be written back
        raise ValueError(f"{text} is not a finite number")
    return value


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
