"""What a pickle of ``torch.save`` says about tensors, read without running any of it.

A pickle is a program that names functions, calls them and sets attributes. Here a name is looked up in a table of
our own and nowhere else; what is not in it is recorded, stood for by an empty class, and refused at the end. So
nothing is imported, and what is called only notes its arguments. (``torch.load(weights_only=True)`` runs nothing
either, but it builds tensors, sparse and quantized ones too, stops at the first name that it does not know, and
refuses pickle protocol 5, which lit-llama wrote.)

Storages are the persistent ids ``("storage", type, key, location, number of elements)`` of ``torch/serialization.py``.
"""

from __future__ import annotations

import pickle
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

from llamaconv.errors import UnsupportedError
from llamaconv.sources.base import damaged
from llamaconv.sources.pickle_names import KNOWN, Storage, StorageType, is_int64, put, shown

__all__ = ["MAX_PICKLE_BYTES", "Stream", "unpickle"]

MAX_PICKLE_BYTES = 32_000_000
"""Of a pickle without the storages; a tensor takes about 250."""

_MOST_NAMES = 10
# The first four take objects from a registry of the process, or from beside the pickle; the last one, of protocol 0,
# notes objects under numbers of any length, which can be made up to collide.
_REFUSED = (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER, pickle.PUT)


class Stream(Protocol):
    """Where a pickle comes from."""

    def read(self, size: int, /) -> bytes: ...

    def readline(self) -> bytes: ...


class _Unwanted:
    """Stands for whatever is not in the table, takes any arguments and does nothing."""

    def __new__(cls, *args: object) -> _Unwanted:
        return super().__new__(cls)


def unpickle(stream: Stream, path: Path) -> tuple[object, Mapping[str, Storage]]:
    """Read one pickle from ``stream``, and not a byte more; ``path`` is for the messages.

    Returns:
        The object in it, made of dictionaries, lists, tuples, numbers, strings, views and peculiar tensors, where
        None stands for any other harmless value; and the storages by their keys.

    Raises:
        UnsupportedError: It wants something that is no tensor; the message names it.
        CheckpointError: It is no pickle, or a broken one.
    """
    unpickler = _Unpickler(stream)
    try:
        value = unpickler.load()
    except Exception as error:  # what stands in the file decides which
        if not unpickler.unwanted:
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise damaged(path, [f"the pickle in it cannot be read ({reason:.200})."]) from error
    if unpickler.unwanted:
        raise _unwanted(path, list(unpickler.unwanted))
    return value, unpickler.storages


def _unwanted(path: Path, names: list[str]) -> UnsupportedError:
    shown = ", ".join(names[:_MOST_NAMES])
    if len(names) > _MOST_NAMES:
        shown += f" and {len(names) - _MOST_NAMES} more"
    return UnsupportedError(
        f"{path}: the pickle in it wants {shown}; only tensors are taken from a pickle, and nothing in it was run.",
        hint="Use a safetensors checkpoint of the model, or a file that holds nothing but tensors by name.",
        file=str(path),
        wants=names,
    )


def _drop_attributes(unpickler: Any) -> None:
    """Instead of setting them: those of tensors and dictionaries mean nothing to us."""
    unpickler.stack.pop()


def _refuse(unpickler: Any) -> None:
    raise ValueError("an instruction that no file of tensors needs")


def _set_item(unpickler: Any) -> None:
    value, key = unpickler.stack.pop(), unpickler.stack.pop()
    _put(unpickler.stack[-1], [key, value])


def _set_items(unpickler: Any) -> None:
    items = unpickler.pop_mark()
    _put(unpickler.stack[-1], items)


def _put(target: object, items: list[object]) -> None:
    """Put keys and values, which take turns in ``items``, into a dictionary."""
    if isinstance(target, _Unwanted):
        return
    if not isinstance(target, dict):
        raise ValueError("an item is set in what is no dictionary")
    put(target, zip(items[::2], items[1::2], strict=True))


def _no_set(unpickler: Any) -> None:
    """None for an empty set: making one would hash what is put into it, however deeply nested."""
    unpickler.append(None)


def _no_frozen_set(unpickler: Any) -> None:
    unpickler.pop_mark()
    unpickler.append(None)


def _drop_items(unpickler: Any) -> None:
    """Instead of adding them to a set."""
    unpickler.pop_mark()


class _Unpickler(pickle._Unpickler):
    """Python's own unpickler, cut down. (The one in C reserves memory for whatever index a file makes up.)

    Attributes:
        unwanted: Names that are not in the table, in the order in which they were met.
        storages: By their keys.
    """

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream, encoding="utf-8")
        self.unwanted: dict[str, None] = {}
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        wanted = f"{module}.{name}"
        if wanted in KNOWN:
            return KNOWN[wanted]
        self.unwanted[wanted] = None
        return _Unwanted

    def persistent_load(self, pid: Any) -> Storage:
        kind, storage_type, key, _, numel, *view = pid  # the older format adds a view, or None
        if kind != "storage" or not isinstance(storage_type, StorageType) or any(part is not None for part in view):
            raise ValueError(f"a reference to {shown(kind)} {shown(view)}")
        if not (isinstance(key, str) or is_int64(key)) or not is_int64(numel) or numel < 0:
            raise ValueError(f"a storage {shown(key)} of {shown(numel)} elements")
        key = str(key)  # torch writes strings, lit-llama and litgpt numbers
        storage = Storage(key, storage_type.dtype, numel, storage_type.quantized)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"the storage {key!r} is said to be of two types or sizes")
        return storage

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: _drop_attributes,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.EMPTY_SET[0]: _no_set,
        pickle.FROZENSET[0]: _no_frozen_set,
        pickle.ADDITEMS[0]: _drop_items,
        # Its own instruction reserves whatever memory the file asks for; this one keeps the bytes that there are.
        pickle.BYTEARRAY8[0]: pickle._Unpickler.dispatch[pickle.BINBYTES8[0]],
        **dict.fromkeys((code[0] for code in _REFUSED), _refuse),
    }
