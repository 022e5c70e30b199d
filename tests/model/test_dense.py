from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from llamaconv.errors import NotFiniteError, NumericalError
from llamaconv.model.dense import cast, read_finite
from llamaconv.tensors import LazyTensor, TensorSpec


def lazy(**tensors: Tensor) -> dict[str, LazyTensor]:
    return {name: LazyTensor(TensorSpec.of(name, tensor), tensor.clone) for name, tensor in tensors.items()}


def test_tensors_are_read() -> None:
    """Floating point or not, under their names."""
    read = read_finite(lazy(a=torch.ones(2), b=torch.arange(3)))
    assert {name: tensor.tolist() for name, tensor in read.items()} == {"a": [1, 1], "b": [0, 1, 2]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_every_tensor_with_nan_or_inf_is_named(dtype: torch.dtype) -> None:
    """With how many of its values, in one error."""
    bad = torch.tensor([1, math.nan, -math.inf, math.inf], dtype=dtype)
    with pytest.raises(NotFiniteError) as caught:
        read_finite(lazy(a=bad, fine=torch.ones(3, dtype=dtype), b=bad[:2]))
    assert str(caught.value) == "a: 3 of 4 values are NaN or Inf\nb: 1 of 2 values are NaN or Inf"
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16, torch.bfloat16])
def test_floating_point_is_cast_and_nothing_else(dtype: torch.dtype | None) -> None:
    """Whole numbers, and everything where no dtype is asked for, stay as they are."""
    values, whole = torch.tensor([0.1, -2.5]), torch.arange(2)
    assert torch.equal(cast("a", values, dtype), values if dtype is None else values.to(dtype))
    assert cast("a", whole, dtype) is whole


def test_a_value_that_the_dtype_cannot_hold_is_an_error() -> None:
    """Finite values must stay finite; what was infinite before is not counted."""
    with pytest.raises(NumericalError) as caught:
        cast("model.norm.weight", torch.tensor([65504.0, 70000.0, -1e9, math.inf]), torch.float16)
    assert str(caught.value) == "model.norm.weight: 2 of 4 values overflow float16"
    assert caught.value.exit_code == 8
    assert cast("a", torch.tensor([70000.0]), torch.bfloat16).item() == 70144
