"""Operations of every kind with the shapes that they take, for laws."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from llamaconv.layouts.attention import Interleave, Rotary
from llamaconv.layouts.operations import Chain, Concat, Identity, Operation, Pad, Parallel
from llamaconv.layouts.ranks import Divide, Replicate

Shapes = tuple[tuple[int, ...], ...]
Case = tuple[Operation, Shapes]

_sizes = st.integers(1, 4)
any_shapes: st.SearchStrategy[Shapes] = st.lists(st.lists(st.integers(0, 12), max_size=3).map(tuple), max_size=4).map(
    tuple
)
"""Most of them wrong for any operation; empty axes and scalars among them."""


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """An operation and the shapes that it takes."""
    groups, queries, half = draw(_sizes), draw(_sizes), draw(_sizes)
    rest = draw(st.sampled_from([(), (3,), (5,), (0,)]))
    d = 2 * half
    rows = (groups * queries * d, groups * d, groups * d)
    shapes = tuple((count, *rest) for count in rows)
    padded = draw(st.integers(0, 9))
    rotated = (Rotary(groups * queries, to_pairs=True), Rotary(groups, to_pairs=True), Identity())
    wide = ((rows[0], 3 * groups),)
    return draw(
        st.sampled_from(
            [
                (Identity(), shapes[:1]),
                (Rotary(groups * queries, to_pairs=True), shapes[:1]),
                (Rotary(groups, to_pairs=False), shapes[1:2]),
                (Concat(rows), shapes),
                (Interleave(groups, queries, d), shapes),
                (Pad(rows[0], rows[0] + padded), shapes[:1]),
                (Divide(groups, 0), shapes[:1]),
                (Divide(groups, 1), wide),
                (Replicate(3), shapes[:1]),
                (Parallel((Rotary(groups, to_pairs=True), Identity())), shapes[1:]),
                (Chain((Parallel(rotated), Concat(rows))), shapes),
                (Chain((rotated[0], Divide(groups, 0))), shapes[:1]),
                (Chain((rotated[0], Divide(groups, 1))), wide),
                (Chain((Replicate(2), Parallel((Divide(groups, 0), Pad(rows[0], rows[0] + padded))))), shapes[:1]),
            ]
        )
    )


def numbered(shapes: Shapes) -> tuple[Tensor, ...]:
    """Tensors in which no two values are alike."""
    return tuple(
        torch.arange(torch.Size(shape).numel(), dtype=torch.float64).reshape(shape) + 1000 * place
        for place, shape in enumerate(shapes, start=1)
    )


@st.composite
def nearly(draw: st.DrawFn, shapes: Shapes) -> Shapes:
    """The shapes with one thing changed: a tensor or an axis too few, a tensor twice, or another size."""
    place = draw(st.integers(0, len(shapes) - 1))
    before, shape, after = shapes[:place], shapes[place], shapes[place + 1 :]
    axis = draw(st.integers(0, len(shape) - 1))
    resized = (*shape[:axis], draw(st.integers(0, 2 * shape[axis])), *shape[axis + 1 :])
    middle = draw(st.sampled_from([(), (shape, shape), (shape[:axis],), (resized,)]))
    return (*before, *middle, *after)
