"""What a pickle of ``torch.save`` says about tensors, read without running any of it.

A pickle is a program that names functions, calls them and sets attributes. Here a name is looked up in a table of
our own and nowhere else; what is not in it is recorded, stood for by an empty class, and refused at the end. So
nothing is imported, and what is called only notes its arguments. (``torch.load(weights_only=True)`` runs nothing
either, but it builds tensors, sparse and quantized ones too, stops at the first name that it does not know, and
refuses pickle protocol 5, which lit-llama wrote.)

The calls are those that ``torch._tensor.Tensor.__reduce_ex__`` writes, for functions in ``torch/_utils.py``; storages
are the persistent ids ``("storage", type, key, location, number of elements)`` of ``torch/serialization.py``.
"""

from __future__ import annotations

import pickle
import reprlib
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, TypeGuard

import torch

from llamaconv.errors import UnsupportedError
from llamaconv.sources.base import damaged
from llamaconv.sources.safetensors_header import DTYPES

__all__ = ["MAX_PICKLE_BYTES", "Peculiar", "Storage", "Stream", "StridedView", "unpickle"]

MAX_PICKLE_BYTES = 32_000_000
"""Of a pickle without the storages; a tensor takes about 250."""

_MOST_NAMES = 10
# The first three take objects from a registry of the process, the next two reserve memory of any size, and sets hash
# what they are given, however deeply nested.
_REFUSED = (
    *(pickle.EXT1, pickle.EXT2, pickle.EXT4),
    *(pickle.BYTEARRAY8, pickle.NEXT_BUFFER),
    *(pickle.EMPTY_SET, pickle.FROZENSET),
)

_STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.storage.UntypedStorage": torch.uint8,
}
_QUANTIZED_STORAGES = ("QInt8Storage", "QUInt8Storage", "QInt32Storage", "QUInt4x2Storage", "QUInt2x4Storage")


class Stream(Protocol):
    """Where a pickle comes from."""

    def read(self, size: int, /) -> bytes: ...

    def readline(self) -> bytes: ...


@dataclass(frozen=True)
class Storage:
    """What a pickle says of the run of bytes that it calls ``key``: ``numel`` elements of ``dtype``.

    The dtype of ``quantized`` elements is not kept: their bytes mean nothing without a scale.
    """

    key: str
    dtype: torch.dtype
    numel: int
    quantized: bool = False

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class StridedView:
    """A tensor as a pickle describes it: offset and stride count elements of ``dtype`` in the storage's bytes.

    The numbers are what the file says; nothing is held against the storage yet.
    """

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Peculiar:
    """A tensor that is more than a view of a storage; ``what`` continues a sentence ("is sparse")."""

    what: str


@dataclass(frozen=True)
class _StorageType:
    dtype: torch.dtype
    quantized: bool = False


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
    _update(unpickler.stack[-1], [(key, value)])


def _set_items(unpickler: Any) -> None:
    items = unpickler.pop_mark()
    _update(unpickler.stack[-1], zip(items[::2], items[1::2], strict=True))


def _update(target: object, pairs: Iterable[tuple[object, object]]) -> dict[object, object]:
    """Put pairs into a dictionary. A key must be flat: hashing nested tuples can take for ever, or all the stack."""
    if isinstance(target, _Unwanted):
        return {}
    if not isinstance(target, dict):
        raise ValueError("an item is set in what is no dictionary")
    for key, value in pairs:
        if not (key is None or isinstance(key, str | bytes | int | float)):
            raise ValueError(f"a key of a dictionary is a {type(key).__name__}")
        target[key] = value
    return target


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
        if wanted in _KNOWN:
            return _KNOWN[wanted]
        self.unwanted[wanted] = None
        return _Unwanted

    def persistent_load(self, pid: Any) -> Storage:
        kind, storage_type, key, _, numel, *view = pid  # the older format adds a view, or None
        if kind != "storage" or not isinstance(storage_type, _StorageType) or any(part is not None for part in view):
            raise ValueError(f"a reference to {reprlib.repr(kind)} {reprlib.repr(view)}")
        if type(key) not in (str, int) or type(numel) is not int or numel < 0:
            raise ValueError(f"a storage {reprlib.repr(key)} of {reprlib.repr(numel)} elements")
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
        **dict.fromkeys((code[0] for code in _REFUSED), _refuse),
    }


def _view(
    storage: object, offset: object, shape: object, stride: object, dtype: object = None, metadata: object = None
) -> StridedView | Peculiar:
    if not isinstance(storage, Storage) or type(offset) is not int or not (_integers(shape) and _integers(stride)):
        raise ValueError("a tensor is not made of a storage, an offset, a shape and strides")
    if storage.quantized:
        return Peculiar("is quantized")
    if metadata:
        return Peculiar("is the conjugate or negative of what is stored")
    found = storage.dtype if dtype is None else dtype
    if not isinstance(found, torch.dtype):
        raise ValueError(f"a tensor has the dtype {reprlib.repr(dtype)}")
    return StridedView(storage, found, offset, shape, stride)


def _integers(value: object) -> TypeGuard[tuple[int, ...]]:
    return type(value) is tuple and all(type(item) is int for item in value)


def _nothing(*args: object) -> None:
    """Some other harmless value."""


def _peculiar(what: str) -> Callable[..., Peculiar]:
    return lambda *args: Peculiar(what)


_KNOWN: Mapping[str, Any] = MappingProxyType(
    {
        "torch._utils._rebuild_tensor": _view,
        "torch._utils._rebuild_tensor_v2": (
            lambda storage, offset, shape, stride, requires_grad, hooks, metadata=None: _view(
                storage, offset, shape, stride, metadata=metadata
            )
        ),
        "torch._utils._rebuild_tensor_v3": (
            lambda storage, offset, shape, stride, requires_grad, hooks, dtype, metadata=None: _view(
                storage, offset, shape, stride, dtype, metadata
            )
        ),
        "torch._utils._rebuild_qtensor": _peculiar("is quantized"),
        "torch._utils._rebuild_parameter": lambda data, requires_grad, hooks: data,
        "torch._utils._rebuild_parameter_with_state": lambda data, requires_grad, hooks, state: data,
        # Python attributes of a tensor; a type that is not torch's own is not in this table.
        "torch._tensor._rebuild_from_type_v2": lambda rebuild, new_type, args, state: rebuild(*args),
        "torch._utils._rebuild_sparse_tensor": _peculiar("is sparse"),
        "torch._utils._rebuild_nested_tensor": _peculiar("is nested"),
        "torch._utils._rebuild_meta_tensor_no_storage": _peculiar("has no data, only a shape"),
        **{name: _StorageType(dtype) for name, dtype in _STORAGES.items()},
        **{f"torch.{name}": _StorageType(torch.uint8, quantized=True) for name in _QUANTIZED_STORAGES},
        **{str(dtype): dtype for dtype in (*_STORAGES.values(), *DTYPES.values())},
        **dict.fromkeys(("collections.OrderedDict", "collections.Counter"), lambda pairs=(): _update({}, pairs)),
        **dict.fromkeys(("torch.Tensor", "torch.nn.parameter.Parameter", "torch.Size", "torch.device"), _nothing),
        **dict.fromkeys(("builtins.set", "builtins.complex", "builtins.bytearray", "_codecs.encode"), _nothing),
        "torch.serialization._get_layout": _nothing,
        **{f"torch.{name}": None for name, value in vars(torch).items() if isinstance(value, torch.qscheme)},
    }
)
"""What may be named: the calls that make tensors, and the harmless values that ``weights_only`` allows too."""
