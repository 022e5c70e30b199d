"""State dicts whose tensors are views of any kind, and what reading one must give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from llamaconv.sources.base import WeightFile
from llamaconv.tensors import TensorSpec
from tests.sources.files import bits, random_tensor


@st.composite
def state_dicts(draw: st.DrawFn, dtypes: Sequence[torch.dtype]) -> dict[str, Tensor]:
    """Up to four storages with up to three strided views of each, in the memory that they share."""
    tensors: dict[str, Tensor] = {}
    for seed in range(draw(st.integers(0, 3))):
        views = draw(
            st.lists(st.tuples(st.integers(0, 3), st.lists(st.tuples(_SIZES, _STRIDES), max_size=3)), max_size=3)
        )
        ends = [offset + 1 + sum(max(size - 1, 0) * stride for size, stride in axes) for offset, axes in views]
        base = random_tensor((max(ends, default=0) + draw(st.integers(0, 2)),), draw(st.sampled_from(dtypes)), seed)
        for offset, axes in views:
            shape, stride = [size for size, _ in axes], [step for _, step in axes]
            tensors[f"t{len(tensors)}"] = base.as_strided(shape, stride, offset)
    if not tensors:
        tensors["only"] = random_tensor(draw(_SHAPES), draw(st.sampled_from(dtypes)))
    return tensors


_SIZES, _STRIDES = st.integers(0, 4), st.integers(0, 5)
_SHAPES = st.lists(_SIZES, max_size=4).map(tuple)


def assert_same(file: WeightFile, expected: Mapping[str, Tensor]) -> None:
    """Specs, values and extents are those of ``expected``, in its order."""
    assert list(file.specs.items()) == [(name, TensorSpec.of(name, tensor)) for name, tensor in expected.items()]
    raw = file.path.read_bytes()
    for name, tensor in expected.items():
        lazy, data = file[name], bits(tensor)
        read = lazy.read()
        assert (lazy.spec, TensorSpec.of(name, read)) == (file.specs[name], file.specs[name])
        assert bits(read) == data
        assert read.is_contiguous()
        assert read.untyped_storage().nbytes() == len(data)
        assert bool(lazy.extents) == bool(tensor.is_contiguous() and data)
        for extent in lazy.extents:
            assert (extent.path, extent.stamp) == (file.path, file.stamp)
            assert raw[extent.offset : extent.offset + extent.nbytes] == data
