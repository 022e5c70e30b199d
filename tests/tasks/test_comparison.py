from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llamaconv.extents import Extent
from llamaconv.tasks.comparison import same_bits
from llamaconv.tensors import LazyTensor, TensorSpec
from tests.sources.files import bits, random_tensor

Lazy = Callable[[Tensor], LazyTensor]


def in_memory(tensor: Tensor) -> LazyTensor:
    return LazyTensor(TensorSpec.of("t", tensor), tensor.clone)


@pytest.fixture
def in_file(tmp_path: Path) -> Lazy:
    """Tensors that lie in files, in two pieces each, and are never read whole."""

    def write(tensor: Tensor) -> LazyTensor:
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        data = bits(tensor)
        path.write_bytes(b"front" + data)
        info = path.stat()
        stamp, half = (info.st_size, info.st_mtime_ns), len(data) // 2
        extents = (Extent(path, 5, half, stamp), Extent(path, 5 + half, len(data) - half, stamp))
        return LazyTensor(TensorSpec.of("t", tensor), lambda: pytest.fail("it was read whole"), extents)

    return write


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_the_same_bits_are_the_same(in_file: Lazy, kind: str) -> None:
    """Whatever the dtype and the shape; NaN too, which equals nothing else."""
    lazy = in_memory if kind == "memory" else in_file
    for tensor in (
        random_tensor((3, 5), torch.bfloat16),
        random_tensor((7,), torch.bool),
        random_tensor((2, 3, 2), torch.float8_e4m3fn),
        torch.tensor([math.nan, -math.nan, math.inf]),
    ):
        assert same_bits(lazy(tensor), lazy(tensor))
    if kind == "memory":
        for tensor in (torch.tensor(3.0), torch.empty(3, 0), torch.arange(6.0).view(2, 3).T):
            assert same_bits(lazy(tensor), lazy(tensor.clone(memory_format=torch.contiguous_format)))


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_other_bits_are_not(in_file: Lazy, kind: str) -> None:
    """Another shape, another dtype, another byte; zeros of either sign differ, though they are equal."""
    lazy = in_memory if kind == "memory" else in_file
    tensor = torch.arange(6.0)
    for other in (tensor.view(2, 3), tensor.view(torch.int32), tensor + torch.tensor([0, 0, 0, 0, 0, 1.0]), -tensor):
        assert not same_bits(lazy(tensor), lazy(other))
    assert not same_bits(lazy(torch.zeros(2)), lazy(-torch.zeros(2)))


def test_what_lies_in_a_file_is_held_against_what_is_made(in_file: Lazy) -> None:
    """Then both are read."""
    tensor = random_tensor((4, 4), torch.float16)
    stored = in_file(tensor)
    read = LazyTensor(stored.spec, tensor.clone, stored.extents)
    assert same_bits(read, in_memory(tensor))
    assert not same_bits(in_memory(tensor + 1), read)


def test_large_files_are_read_in_parts(tmp_path: Path, in_file: Lazy) -> None:
    """To the last byte."""
    tensor = torch.zeros(40_000_000, dtype=torch.uint8)
    other = tensor.clone()
    other[-1] = 1
    one, two, three = in_file(tensor), in_file(tensor), in_file(other)
    assert same_bits(one, two)
    assert not same_bits(one, three)
