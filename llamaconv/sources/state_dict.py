"""Which of the things in a torch file are its tensors, by what names."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path
from typing import Any

from llamaconv.errors import UnsupportedError
from llamaconv.sources.base import one_per_line
from llamaconv.sources.pickle_names import Peculiar, StridedView, shown

__all__ = ["named_tensors"]

_NESTED = ("model", "state_dict", "module")  # where training frameworks put the model, beside the optimizer
_MOST_ENTRIES = 6

logger = logging.getLogger(__name__)


def named_tensors(value: object, path: Path) -> dict[str, StridedView]:
    """The tensors of the state dict ``value``, or of the one in it under "model", "state_dict" or "module".

    Numbers, strings and the like beside them are passed over; so are tensors at a deeper level, which is said.

    Args:
        value: What ``unpickle`` found.
        path: The file that it is from, for the messages.

    Raises:
        UnsupportedError: There are no tensors, not by name, or some that are more than strided views of a storage;
            all such are named.
    """
    if not isinstance(value, dict):
        raise _unsupported(path, [f"holds {_kind(value)}, not a dictionary of tensors by name."])
    table = value if _has_tensors(value) else _nested(value, path)
    tensors: dict[str, StridedView] = {}
    faults = []
    for name, item in table.items():
        if not isinstance(item, StridedView | Peculiar):
            continue
        if not isinstance(name, str) or not _is_unicode(name):
            faults.append(f"a tensor is called {shown(name)}, which is no name.")
        elif isinstance(item, Peculiar):
            faults.append(f"tensor {name!r} {item.what}.")
        else:
            tensors[name] = item
    if faults:
        raise _unsupported(path, faults)
    _warn_of_deeper_ones(value, table, path)
    return tensors


def _unsupported(path: Path, faults: list[str]) -> UnsupportedError:
    return UnsupportedError(
        one_per_line([f"{path}: {fault}" for fault in faults]),
        hint="Give a file of a model's tensors by name, as torch.save(model.state_dict(), …) writes it.",
        file=str(path),
    )


def _kind(value: object) -> str:
    if isinstance(value, StridedView | Peculiar):
        return "a single tensor"
    return f"a {type(value).__name__}"


def _has_tensors(value: object) -> bool:
    return isinstance(value, dict) and any(isinstance(item, StridedView | Peculiar) for item in value.values())


def _nested(value: dict[Any, Any], path: Path) -> dict[Any, Any]:
    """The one entry of ``value`` that is a state dict."""
    found = [key for key in _NESTED if _has_tensors(value.get(key))]
    if len(found) > 1:
        raise _unsupported(path, [f"holds several models, under {' and '.join(map(repr, found))}."])
    if not found:
        entries = ", ".join(map(shown, islice(value, _MOST_ENTRIES))) or "nothing"
        raise _unsupported(path, [f"holds no tensors by name, only {entries}."])
    nested: dict[Any, Any] = value[found[0]]
    return nested


def _is_unicode(name: str) -> bool:
    """Whether ``name`` can be written as UTF-8: a pickle can hold halves of a surrogate pair."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _warn_of_deeper_ones(value: dict[Any, Any], table: dict[Any, Any], path: Path) -> None:
    """Name the entries whose tensors are not taken because they are not where the others are."""
    beside = [(key, item) for key, item in value.items() if item is not table]
    within = [] if table is value else list(table.items())
    left = [key for key, item in beside + within if not isinstance(item, StridedView | Peculiar) and _holds_any(item)]
    if left:
        logger.warning("%s: tensors under %s are passed over", path, ", ".join(map(shown, left)))


def _holds_any(value: object) -> bool:
    """Whether there is a tensor at any depth; what a pickle refers to twice is looked at once."""
    pending, seen = [value], {id(value)}
    while pending:
        item = pending.pop()
        if isinstance(item, StridedView | Peculiar):
            return True
        inner: list[Any] = []
        if isinstance(item, dict):
            inner = list(item.values())
        elif isinstance(item, list | tuple):
            inner = list(item)
        pending += [part for part in inner if id(part) not in seen]
        seen.update(map(id, inner))
    return False
