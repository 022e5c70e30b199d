from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llamaconv.layouts.operations import Chain, Concat, Identity, Interleave, Operation, Pad, Parallel, Rotary

sizes = st.integers(1, 4)


def _rotated(heads: int, kv_heads: int) -> Parallel:
    return Parallel((Rotary(heads, to_pairs=True), Rotary(kv_heads, to_pairs=True), Identity()))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Operation, tuple[tuple[int, ...], ...]]:
    """An operation and the shapes that it takes."""
    groups, queries, half, rest = draw(sizes), draw(sizes), draw(sizes), draw(st.sampled_from([(), (3,), (5,)]))
    d = 2 * half
    rows = (groups * queries * d, groups * d, groups * d)
    shapes = tuple((count, *rest) for count in rows)
    padded = draw(st.integers(0, 9))
    return draw(
        st.sampled_from(
            [
                (Identity(), shapes[:1]),
                (Rotary(groups * queries, to_pairs=True), shapes[:1]),
                (Rotary(groups, to_pairs=False), shapes[1:2]),
                (Concat(rows), shapes),
                (Interleave(groups, queries, d), shapes),
                (Pad(rows[0], rows[0] + padded), shapes[:1]),
                (Parallel((Rotary(groups, to_pairs=True), Identity())), shapes[1:]),
                (
                    Chain((Parallel((Rotary(groups * queries, True), Rotary(groups, True), Identity())), Concat(rows))),
                    shapes,
                ),
            ]
        )
    )


def numbered(shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
    """Tensors in which no two values are alike."""
    return tuple(
        torch.arange(torch.Size(shape).numel(), dtype=torch.float64).reshape(shape) + 1000 * place
        for place, shape in enumerate(shapes, start=1)
    )


@given(cases())
def test_there_and_back_is_where_it_began(case: tuple[Operation, tuple[tuple[int, ...], ...]]) -> None:
    """Bit for bit, and the inverse's inverse is the operation."""
    operation, shapes = case
    before = numbered(shapes)
    after = operation.inverse().apply(operation.apply(before))
    assert len(after) == len(before)
    assert all(map(torch.equal, before, after))
    assert operation.inverse().inverse() == operation


@given(cases())
def test_meta_tensors_tell_the_shapes(case: tuple[Operation, tuple[tuple[int, ...], ...]]) -> None:
    """Planning and converting cannot disagree."""
    operation, shapes = case
    real = operation.apply(numbered(shapes))
    planned = operation.apply(tuple(torch.empty(shape, device="meta") for shape in shapes))
    assert [part.shape for part in planned] == [part.shape for part in real]
    assert all(part.is_meta for part in planned)


@given(cases())
def test_parts_keep_nothing_else_alive(case: tuple[Operation, tuple[tuple[int, ...], ...]]) -> None:
    """What comes out of a fused tensor owns memory for itself alone."""
    operation, shapes = case
    for part in operation.inverse().apply(operation.apply(numbered(shapes))):
        assert part.untyped_storage().nbytes() == part.numel() * part.element_size()


def test_rotary_puts_the_halves_of_each_head_side_by_side() -> None:
    """Two heads of four rows: row i of the first half is followed by row i of the second."""
    (pairs,) = Rotary(2, to_pairs=True).apply((torch.arange(8),))
    assert pairs.tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_interleave_goes_group_by_group() -> None:
    """Two groups of two query heads of one row: their queries, their key, their value."""
    queries, keys, values = torch.tensor([1, 2, 3, 4]), torch.tensor([10, 20]), torch.tensor([100, 200])
    (fused,) = Interleave(2, 2, 1).apply((queries, keys, values))
    assert fused.tolist() == [1, 2, 10, 100, 3, 4, 20, 200]


def test_padding_is_zeros_below() -> None:
    """And nothing but rows is added."""
    (padded,) = Pad(1, 3).apply((torch.ones(1, 2),))
    assert padded.tolist() == [[1, 1], [0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("operation", "shape", "message"),
    [
        (Rotary(3, to_pairs=True), (8, 2), "8 rows are no 3 heads of pairs"),
        (Concat((3, 2)).inverse(), (6,), "6 rows where 3 + 2 belong"),
        (Pad(5, 8), (6, 2), "6 rows where 5 belong"),
        (Pad(5, 8).inverse(), (6, 2), "6 rows where 8 belong"),
    ],
)
def test_wrong_shapes_are_refused(operation: Operation, shape: tuple[int, ...], message: str) -> None:
    """With what is there and what belongs there."""
    with pytest.raises(ValueError, match=f"^{message.replace('+', chr(92) + '+')}$"):
        operation.apply((torch.empty(shape),))
