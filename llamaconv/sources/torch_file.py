"""Tensors out of a file of ``torch.save``, one at a time, wherever the format keeps their bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from llamaconv.extents import Extent, Stamp, read_extents
from llamaconv.sources.base import damaged, read_tensor, shortened, too_large, unknown_tensor
from llamaconv.sources.pickle_names import Storage, StridedView
from llamaconv.tensors import LazyTensor, TensorSpec

__all__ = ["TorchFile"]

_SLICE_BYTES = 1 << 22


class TorchFile:
    """A torch file, known by its pickle and by where its storages lie.

    Tensors may share a storage, overlap, or be views of any strides. One whose elements lie in row-major order has an
    extent; of any other the bytes from its first to its last element are read, slice by slice along the axis with the
    largest stride, and put in order.

    Args:
        path: The file.
        stamp: What it was when its pickle was read.
        tensors: What the pickle says, by name.
        storages: Where the bytes of each storage lie, by its key.

    Raises:
        CheckpointError: A tensor reaches outside its storage, or a storage is missing or too small; all such tensors
            are named.
    """

    def __init__(
        self, path: Path, stamp: Stamp, tensors: Mapping[str, StridedView], storages: Mapping[str, Extent]
    ) -> None:
        self.path = path
        self.stamp = stamp
        faults = [
            f"tensor {name!r} {fault}."
            for name, view in tensors.items()
            if (fault := _storage_fault(view.storage, storages) or _view_fault(view))
        ]
        if faults:
            raise damaged(path, faults)
        self._views = tensors
        self._storages = storages
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(
            {name: TensorSpec(name, view.shape, view.dtype) for name, view in tensors.items()}
        )

    def __getitem__(self, name: str) -> LazyTensor:
        """The tensor called ``name``, not read yet.

        Raises:
            CheckpointError: There is none of that name; or, from ``read()``, the file is gone, unreadable or
                not the one whose pickle was read.
        """
        spec = self.specs.get(name)
        if spec is None:
            raise unknown_tensor(name, self.specs)
        view = self._views[name]
        if not spec.nbytes:
            return LazyTensor(spec, partial(read_tensor, spec, ()))
        itemsize = spec.dtype.itemsize
        touched = self._storages[view.storage.key].part(
            view.offset * itemsize, _reach(view.shape, view.stride) * itemsize
        )
        if _is_row_major(view.shape, view.stride):
            return LazyTensor(spec, partial(read_tensor, spec, (touched,)), (touched,))
        slices = _Slices.of(view)
        return LazyTensor(spec, partial(_read_strided, view, touched, slices), extra_bytes=slices.nbytes)


@dataclass(frozen=True)
class _Slices:
    """Parts of a view that are read one after the other.

    Attributes:
        view: One of them, at the start of a storage; the last may be smaller along ``axis``.
        axis: Along which the view is cut, the one with the largest stride.
    """

    view: StridedView
    axis: int

    @classmethod
    def of(cls, whole: StridedView) -> _Slices:
        """As many elements along the axis as span some MB, or at least one."""
        # Along an axis of one any stride may stand in the file, even one that torch cannot take.
        stride = tuple(step if size > 1 else 0 for size, step in zip(whole.shape, whole.stride, strict=True))
        axis = max(range(len(stride)), key=lambda axis: stride[axis])
        shape = list(whole.shape)
        shape[axis] = 1
        # Where slices overlap, as many as double the span: so none of the file is read more than twice.
        span = max(_SLICE_BYTES // whole.dtype.itemsize, _reach(shape, stride))
        shape[axis] = max(1, min(whole.shape[axis], span // max(1, stride[axis])))
        return cls(replace(whole, offset=0, shape=tuple(shape), stride=stride), axis)

    @property
    def nbytes(self) -> int:
        """From the first element of a slice to its last."""
        return _reach(self.view.shape, self.view.stride) * self.view.dtype.itemsize


def _read_strided(view: StridedView, touched: Extent, slices: _Slices) -> Tensor:
    result = torch.empty(view.shape, dtype=view.dtype, device="cpu")
    axis, (count, step) = slices.axis, (slices.view.shape[slices.axis], slices.view.stride[slices.axis])
    for begin in range(0, view.shape[axis], count):
        part = result.narrow(axis, begin, min(count, view.shape[axis] - begin))
        nbytes = _reach(part.shape, slices.view.stride) * view.dtype.itemsize
        elements = read_extents([touched.part(begin * step * view.dtype.itemsize, nbytes)]).view(view.dtype)
        part.copy_(elements.as_strided(part.shape, slices.view.stride))
        del elements  # before the next slice is read
    return result


def _storage_fault(storage: Storage, storages: Mapping[str, Extent]) -> str | None:
    """What is wrong with a tensor's storage; continues "tensor NAME …"."""
    found = storages.get(storage.key)
    if found is None:
        return f"is in the storage {storage.key!r}, which is missing"
    if found.nbytes < storage.nbytes:
        return f"is in the storage {storage.key!r} of {storage.nbytes} bytes, of which there are {found.nbytes}"
    return None


def _view_fault(view: StridedView) -> str | None:
    """Why the elements of ``view`` cannot be in its storage; continues "tensor NAME …"."""
    numbers = (view.offset, *view.shape, *view.stride)
    if len(view.shape) != len(view.stride) or min(numbers) < 0 or too_large(view.shape):
        shape, stride = shortened(list(view.shape)), shortened(list(view.stride))
        return f"has the impossible shape {shape} with strides {stride} from element {view.offset}"
    end = (view.offset + _reach(view.shape, view.stride)) * view.dtype.itemsize
    if end > view.storage.nbytes and 0 not in view.shape:
        return f"reaches to byte {end} of a storage of {view.storage.nbytes}"
    return None


def _reach(shape: Sequence[int], stride: Sequence[int]) -> int:
    """How many elements lie from the first of a view to its last, both counted."""
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def _is_row_major(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether the elements follow one another in row-major order (a stride along an axis of one says nothing)."""
    step = 1
    for size, found in zip(reversed(shape), reversed(stride), strict=True):
        if size != 1 and found != step:
            return False
        step *= size
    return True
