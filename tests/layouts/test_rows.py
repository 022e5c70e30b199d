from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llamaconv.extents import Extent, read_extents
from llamaconv.layouts.attention import Interleave, Rotary
from llamaconv.layouts.operations import Chain, Concat, Identity, Operation, Pad, Parallel
from llamaconv.layouts.ranks import Divide
from llamaconv.layouts.rows import lazily, row_maps
from llamaconv.tensors import LazyTensor, TensorSpec
from tests.layouts.operation_cases import Case, cases, numbered


def in_memory(tensors: tuple[Tensor, ...]) -> list[LazyTensor]:
    return [LazyTensor(TensorSpec.of(f"t{i}", tensor), tensor.clone) for i, tensor in enumerate(tensors)]


def in_file(path: Path, tensors: tuple[Tensor, ...]) -> list[LazyTensor]:
    """The tensors one after the other in a file."""
    path.write_bytes(b"".join(tensor.contiguous().view(torch.uint8).numpy().tobytes() for tensor in tensors))
    info, offset, lazies = path.stat(), 0, []
    for index, tensor in enumerate(tensors):
        spec = TensorSpec.of(f"t{index}", tensor)
        extent = Extent(path, offset, spec.nbytes, (info.st_size, info.st_mtime_ns))
        lazies.append(LazyTensor(spec, tensor.clone, (extent,)))
        offset += spec.nbytes
    return lazies


def results(operation: Operation, inputs: list[LazyTensor]) -> tuple[LazyTensor, ...]:
    return lazily(operation, inputs, [f"r{index}" for index in range(operation.gives)])


def same(lazies: tuple[LazyTensor, ...], tensors: tuple[Tensor, ...]) -> bool:
    return all(
        lazy.spec.shape == tensor.shape and lazy.spec.dtype == tensor.dtype and torch.equal(lazy.read(), tensor)
        for lazy, tensor in zip(lazies, tensors, strict=True)
    )


@given(cases(), st.sampled_from([torch.float64, torch.bfloat16, torch.int8]), st.booleans())
def test_what_is_put_together_lazily_is_what_the_operation_gives(
    tmp_path_factory: pytest.TempPathFactory, case: Case, dtype: torch.dtype, stored: bool
) -> None:
    """Bit for bit, from memory and from files, there and back."""
    operation, shapes = case
    before = tuple(tensor.to(dtype) for tensor in numbered(shapes))
    after = operation.apply(before)
    file = tmp_path_factory.getbasetemp() / "tensors"
    made = results(operation, in_file(file, before) if stored else in_memory(before))
    assert same(made, after)
    assert same(results(operation.inverse(), list(made)), operation.inverse().apply(after))


WIDE = 1 << 15  # bytes of a float32 row of 8192: two rows are worth a copy of their own


@pytest.mark.parametrize(
    ("operation", "rows"),
    [
        (Identity(), (3,)),
        (Concat((4, 2, 2)), (4, 2, 2)),
        (Concat((4, 2, 2)).inverse(), (8,)),
        (Interleave(2, 2, 2), (8, 4, 4)),
        (Interleave(2, 2, 2).inverse(), (16,)),
        (Divide(2, 0), (8,)),
        (Pad(5, 5), (5,)),
        (Pad(5, 8).inverse(), (8,)),
        (Chain((Divide(2, 0), Divide(2, 0).inverse())), (8,)),
    ],
    ids=str,
)
def test_long_runs_of_rows_are_bytes_to_copy(tmp_path: Path, operation: Operation, rows: tuple[int, ...]) -> None:
    """Where the bytes lie in the inputs' files, in order, is where the result says that its own lie."""
    before = tuple(tensor.float() for tensor in numbered(tuple((count, WIDE // 4) for count in rows)))
    made = results(operation, in_file(tmp_path / "tensors", before))
    for lazy, tensor in zip(made, operation.apply(before), strict=True):
        assert lazy.extents
        assert torch.equal(read_extents(lazy.extents).view(torch.float32).view(tensor.shape), tensor)


def test_an_untouched_tensor_is_one_extent(tmp_path: Path) -> None:
    """Neighbouring rows are one run, however small the tensor."""
    (lazy,) = in_file(tmp_path / "tensors", (torch.arange(3.0),))
    (made,) = lazily(Identity(), [lazy], ["r"])
    assert made.extents == lazy.extents


@pytest.mark.parametrize(
    ("operation", "shapes"),
    [
        (Rotary(2, to_pairs=True), ((8, WIDE // 4),)),  # rows of 32 kB, each on its own
        (Interleave(2, 2, 1), ((4, 8), (2, 8), (2, 8))),
        (Pad(5, 8), ((5, WIDE // 4),)),  # zeros lie in no file
        (Divide(2, 1), ((8, WIDE // 4),)),
    ],
    ids=str,
)
def test_short_runs_and_zeros_are_not(
    tmp_path: Path, operation: Operation, shapes: tuple[tuple[int, ...], ...]
) -> None:
    """They are put together in memory."""
    before = tuple(tensor.float() for tensor in numbered(shapes))
    made = results(operation, in_file(tmp_path / "tensors", before))
    assert not any(lazy.extents for lazy in made)
    assert same(made, operation.apply(before))


def test_a_fused_tensor_keeps_no_other_in_memory() -> None:
    """Inputs are read one after the other, each once, and let go."""
    alive: list[int] = []
    seen: list[list[int]] = []

    def lazy(index: int, rows: int) -> LazyTensor:
        def read() -> Tensor:
            alive.append(index)
            seen.append(alive.copy())
            tensor = torch.full((rows, 4), float(index))
            weakref.finalize(tensor.untyped_storage(), alive.remove, index)
            return tensor

        return LazyTensor(TensorSpec(f"t{index}", (rows, 4), torch.float32), read)

    rotated = Parallel((Rotary(2, to_pairs=True), Rotary(1, to_pairs=True), Identity()))
    (fused,) = lazily(Chain((rotated, Concat((4, 2, 2)))), [lazy(0, 4), lazy(1, 2), lazy(2, 2)], ["r"])
    assert fused.read()[:, 0].tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
    assert seen == [[0], [1], [2]]


def test_row_maps_are_made_once_for_all_layers() -> None:
    """Equal operations on as many rows share them."""
    assert row_maps(Rotary(4, True), (64,)) is row_maps(Rotary(4, True), (64,))


@pytest.mark.parametrize(
    ("operation", "shapes", "message"),
    [
        (Identity(), ((3,), (3,)), "the tensors are 2, not 1"),
        (Interleave(2, 2, 1), ((4, 3), (2, 3), (3, 3)), r"parts of \(4, 2, 3\) rows where \(4, 2, 2\) belong"),
        (Divide(2, 1), ((4,),), r"a tensor of shape \[4\] has no axis 1"),
    ],
    ids=str,
)
def test_wrong_shapes_are_refused_before_anything_is_read(
    operation: Operation, shapes: tuple[tuple[int, ...], ...], message: str
) -> None:
    """As the operation itself refuses them."""

    def read() -> Tensor:
        raise AssertionError("read")

    lazies = [LazyTensor(TensorSpec(f"t{i}", shape, torch.float32), read) for i, shape in enumerate(shapes)]
    with pytest.raises(ValueError, match=f"^{message}$"):
        results(operation, lazies)
