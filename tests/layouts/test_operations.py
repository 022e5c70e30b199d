from __future__ import annotations

import pytest
import torch
from hypothesis import given

from llamaconv.layouts.attention import Interleave, Rotary
from llamaconv.layouts.operations import Chain, Concat, Divide, Identity, Operation, Pad, Parallel, Replicate
from tests.layouts.operation_cases import Case, cases, numbered


@given(cases())
def test_there_and_back_is_where_it_began(case: Case) -> None:
    """Bit for bit, and the inverse's inverse is the operation."""
    operation, shapes = case
    before = numbered(shapes)
    after = operation.inverse().apply(operation.apply(before))
    assert len(after) == len(before)
    assert all(map(torch.equal, before, after))
    assert operation.inverse().inverse() == operation


@given(cases())
def test_meta_tensors_tell_the_shapes(case: Case) -> None:
    """Planning and converting cannot disagree."""
    operation, shapes = case
    real = operation.apply(numbered(shapes))
    planned = operation.apply(tuple(torch.empty(shape, device="meta") for shape in shapes))
    assert [part.shape for part in planned] == [part.shape for part in real]
    assert all(part.is_meta for part in planned)


@given(cases())
def test_an_operation_says_how_many_tensors_it_takes_and_gives(case: Case) -> None:
    """And so does its inverse, and all have a name to show."""
    operation, shapes = case
    results = operation.apply(numbered(shapes))
    assert (operation.takes, operation.gives) == (len(shapes), len(results))
    assert (operation.inverse().takes, operation.inverse().gives) == (len(results), len(shapes))
    assert str(operation)
    assert "object at" not in str(operation)


@given(cases())
def test_parts_keep_nothing_else_alive(case: Case) -> None:
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
        (Divide(4, 1), (8, 6), "6 along axis 1 are not 4 equal parts"),
        (Pad(5, 8), (6, 2), "6 rows where 5 belong"),
        (Pad(5, 8).inverse(), (6, 2), "6 rows where 8 belong"),
    ],
)
def test_wrong_shapes_are_refused(operation: Operation, shape: tuple[int, ...], message: str) -> None:
    """With what is there and what belongs there."""
    with pytest.raises(ValueError, match=f"^{message.replace('+', chr(92) + '+')}$"):
        operation.apply((torch.empty(shape),))


def test_copies_must_have_one_shape() -> None:
    """Ranks of different models do not go together."""
    with pytest.raises(ValueError, match=r"^copies of different shapes, \[4\], \[5\]$"):
        Replicate(2).inverse().apply((torch.empty(4), torch.empty(5)))


def test_operations_are_shown_in_words() -> None:
    """As a plan prints them; what does nothing is left out of a chain."""
    chain = Chain((Parallel((Rotary(6, to_pairs=True), Rotary(2, to_pairs=True), Identity())), Concat((48, 16, 16))))
    assert str(chain) == "rotary of 6 heads to pairs, rotary of 2 heads to pairs, as it is; concatenate"
    assert str(chain.inverse()) == "split; rotary of 6 heads to halves, rotary of 2 heads to halves, as it is"
    assert str(Chain((Identity(), Divide(4, 1)))) == "divide columns by 4"
    assert str(Pad(64, 64)) == "as it is"
