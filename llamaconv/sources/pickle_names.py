"""What a pickle of ``torch.save`` may name: kinds of storages, the calls that make tensors, and harmless values.

The calls are those that ``torch._tensor.Tensor.__reduce_ex__`` writes, for functions in ``torch/_utils.py``. Here they
only note their arguments.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeGuard

import torch

from llamaconv.sources.safetensors_header import DTYPES

__all__ = ["KNOWN", "OddKey", "Peculiar", "Storage", "StorageType", "StridedView", "is_int64", "put", "shown"]

_HARMLESS = ("set", "frozenset", "complex", "bytearray")

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
class StorageType:
    """What the elements of a storage are."""

    dtype: torch.dtype
    quantized: bool = False


class OddKey:
    """Stands for a key of a dictionary that no tensor has, and is hashed by what it is, not by what it stands for.

    Hashing nested tuples can take for ever, or all the stack, and numbers can be made up to collide.
    """

    def __init__(self, key: object) -> None:
        self._kind = type(key).__name__

    def __repr__(self) -> str:
        return f"<{self._kind}>"


def is_int64(value: object) -> TypeGuard[int]:
    """Whether ``value`` is an integer that torch can have counted with."""
    return type(value) is int and -(2**63) <= value < 2**63


class _Shown(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        """As Python writes it; past 4300 digits Python refuses."""
        return super().repr_int(x, level) if is_int64(x) else f"<int of {x.bit_length()} bits>"


shown: Callable[[object], str] = _Shown().repr
"""What stands in a pickle, as Python writes it, cut short."""


def put(target: dict[object, object], pairs: Iterable[tuple[object, object]]) -> dict[object, object]:
    """``target`` with ``pairs`` put into it."""
    for key, value in pairs:
        target[_key(key)] = value
    return target


def _key(key: object) -> object:
    # Below 2**60 an integer is its own hash; beyond, all multiples of 2**61 - 1 have the same.
    if key is None or isinstance(key, str | OddKey) or (isinstance(key, int) and abs(key) < 2**60):
        return key
    return OddKey(key)


def _dictionary(content: object = ()) -> dict[object, object]:
    """A dictionary made of pairs, as OrderedDict's older pickles have it, or of another, as Counter's have."""
    if isinstance(content, dict):
        return content
    if not isinstance(content, list | tuple):
        raise ValueError(f"a dictionary is made of a {type(content).__name__}")
    return put({}, content)


def _view(
    storage: object, offset: object, shape: object, stride: object, dtype: object = None, metadata: object = None
) -> StridedView | Peculiar:
    if not isinstance(storage, Storage) or not is_int64(offset) or not (_integers(shape) and _integers(stride)):
        raise ValueError("a tensor is not made of a storage, an offset, a shape and strides")
    if storage.quantized:
        return Peculiar("is quantized")
    if metadata:
        return Peculiar("is the conjugate or negative of what is stored")
    found = storage.dtype if dtype is None else dtype
    if not isinstance(found, torch.dtype):
        raise ValueError(f"a tensor has the dtype {shown(dtype)}")
    return StridedView(storage, found, offset, shape, stride)


def _integers(value: object) -> TypeGuard[tuple[int, ...]]:
    return type(value) is tuple and all(map(is_int64, value))


def _nothing(*args: object) -> None:
    """Some other harmless value."""


def _peculiar(what: str) -> Callable[..., Peculiar]:
    return lambda *args: Peculiar(what)


KNOWN: Mapping[str, Any] = MappingProxyType(
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
        **{name: StorageType(dtype) for name, dtype in _STORAGES.items()},
        **{f"torch.{name}": StorageType(torch.uint8, quantized=True) for name in _QUANTIZED_STORAGES},
        **{str(dtype): dtype for dtype in (*_STORAGES.values(), *DTYPES.values())},
        **dict.fromkeys(("collections.OrderedDict", "collections.Counter"), _dictionary),
        **dict.fromkeys(("torch.Tensor", "torch.nn.parameter.Parameter", "torch.Size", "torch.device"), _nothing),
        **dict.fromkeys(("_codecs.encode", *(f"builtins.{name}" for name in _HARMLESS)), _nothing),
        "torch.serialization._get_layout": _nothing,
        **{f"torch.{name}": None for name, value in vars(torch).items() if isinstance(value, torch.qscheme)},
    }
)
"""What may be named: the calls that make tensors, and the harmless values that ``weights_only`` allows too."""
