from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaconv.layouts.attention import Interleave, Rotary
from llamaconv.layouts.operations import Chain, Concat, Identity, Operation, Pad, Parallel
from llamaconv.layouts.ranks import Divide, Replicate
from tests.layouts.operation_cases import Case, Shapes, any_shapes, cases, nearly, numbered


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
    ("operation", "shapes", "message"),
    [
        (Identity(), [(8,), (8,)], "the tensors are 2, not 1"),
        (Rotary(3, to_pairs=True), [(8, 2)], "8 rows are no 3 heads of pairs"),
        (Rotary(2, to_pairs=True), [(8,), (8,)], "the tensors are 2, not 1"),
        (Rotary(2, to_pairs=True), [()], "a tensor of shape [] has no axis 0"),
        (Interleave(2, 2, 1), [(4, 3), (2, 3)], "the tensors are 2, not 3"),
        (Interleave(2, 2, 1), [(), (2,), (2,)], "a tensor of shape [] has no axis 0"),
        (Interleave(2, 2, 1), [(4, 3), (2, 3), (3, 3)], "parts of (4, 2, 3) rows where (4, 2, 2) belong"),
        (
            Interleave(2, 2, 1),
            [(4, 3), (2, 3), (2, 4)],
            "[2, 2, 3] torch.float32, [2, 1, 3] torch.float32, [2, 1, 4] torch.float32 do not go together",
        ),
        (Interleave(2, 2, 1).inverse(), [(9, 3)], "9 rows where 8 belong"),
        (Interleave(2, 2, 1).inverse(), [(8, 3)] * 2, "the tensors are 2, not 1"),
        (Concat((3, 2)), [(3, 4)], "the tensors are 1, not 2"),
        (Concat((3, 2)), [(), ()], "a tensor of shape [] has no axis 0"),
        (Concat((3, 2)), [(3, 4), (4, 4)], "parts of (3, 4) rows where (3, 2) belong"),
        (Concat((3, 2)), [(3, 4), (2, 5)], "[3, 4] torch.float32, [2, 5] torch.float32 do not go together"),
        (Concat((3, 2)), [(3, 4), (2,)], "[3, 4] torch.float32, [2] torch.float32 do not go together"),
        (Concat((3, 2)).inverse(), [(6,)], "6 rows where 3 + 2 belong"),
        (Concat((3, 2)).inverse(), [()], "a tensor of shape [] has no axis 0"),
        (Concat((3, 2)).inverse(), [(3,), (2,)], "the tensors are 2, not 1"),
        (Divide(4, 1), [(8, 6)], "6 along axis 1 are not 4 equal parts"),
        (Divide(2, 1), [(8,)], "a tensor of shape [8] has no axis 1"),
        (Divide(2, 0), [()], "a tensor of shape [] has no axis 0"),
        (Divide(2, 0), [(8,), (8,)], "the tensors are 2, not 1"),
        (Divide(2, 1).inverse(), [(8, 3)], "the tensors are 1, not 2"),
        (Divide(2, 1).inverse(), [(8,), (8,)], "a tensor of shape [8] has no axis 1"),
        (Divide(2, 1).inverse(), [(8, 3), (8, 4)], "parts of different shapes, [8, 3], [8, 4]"),
        (Replicate(2), [(8,), (8,)], "the tensors are 2, not 1"),
        (Replicate(2).inverse(), [(4,)], "the tensors are 1, not 2"),
        (Replicate(2).inverse(), [(4,), (5,)], "copies of different shapes, [4], [5]"),
        (Pad(5, 8), [(6, 2)], "6 rows where 5 belong"),
        (Pad(5, 8), [()], "a tensor of shape [] has no axis 0"),
        (Pad(5, 8), [(5, 2), (5, 2)], "the tensors are 2, not 1"),
        (Pad(5, 8).inverse(), [(6, 2)], "6 rows where 8 belong"),
        (Pad(5, 8).inverse(), [()], "a tensor of shape [] has no axis 0"),
        (Parallel((Identity(), Identity())), [(4,)], "the tensors are 1, not 2"),
        (Chain((Identity(), Divide(2, 0))), [(4,), (4,)], "the tensors are 2, not 1"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_wrong_shapes_are_refused(
    operation: Operation, shapes: list[tuple[int, ...]], message: str, device: str
) -> None:
    """With what is there and what belongs there, be it while planning or while converting."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        operation.apply(tuple(torch.empty(shape, device=device) for shape in shapes))


def test_nothing_is_divided_into_as_many_parts_as_anything() -> None:
    """An axis of no elements is no reason to leave ranks without a tensor."""
    parts = Divide(2, 1).apply((torch.empty(3, 0),))
    assert [part.shape for part in parts] == [(3, 0), (3, 0)]


def outcome(operation: Operation, shapes: Shapes, device: str) -> Shapes | str:
    """The shapes that come out, or why none do."""
    try:
        results = operation.apply(tuple(torch.zeros(shape, device=device) for shape in shapes))
    except ValueError as error:
        return str(error)
    assert len(results) == operation.gives
    return tuple(tuple(result.shape) for result in results)


@settings(max_examples=500)
@given(cases(), st.booleans(), any_shapes)
def test_whatever_the_shapes_they_are_taken_or_refused(case: Case, back: bool, shapes: Shapes) -> None:
    """No other error than the one that is documented, and planning foretells converting."""
    operation = case[0].inverse() if back else case[0]
    assert outcome(operation, shapes, "meta") == outcome(operation, shapes, "cpu")


@settings(max_examples=500)
@given(cases(), st.booleans(), st.data())
def test_shapes_of_another_rank_or_count_are_taken_or_refused(case: Case, back: bool, data: st.DataObject) -> None:
    """The same for shapes that are nearly right: an axis or a tensor too few, or one size that differs."""
    operation, shapes = case
    if back:
        shapes = tuple(tuple(result.shape) for result in operation.apply(numbered(shapes)))
        operation = operation.inverse()
    spoiled = data.draw(nearly(shapes))
    assert outcome(operation, spoiled, "meta") == outcome(operation, spoiled, "cpu")


def test_operations_are_shown_in_words() -> None:
    """As a plan prints them; what does nothing is left out of a chain."""
    chain = Chain((Parallel((Rotary(6, to_pairs=True), Rotary(2, to_pairs=True), Identity())), Concat((48, 16, 16))))
    assert str(chain) == "rotary of 6 heads to pairs, rotary of 2 heads to pairs, as it is; concatenate"
    assert str(chain.inverse()) == "split; rotary of 6 heads to halves, rotary of 2 heads to halves, as it is"
    assert str(Chain((Identity(), Divide(4, 1)))) == "divide columns by 4"
    assert str(Pad(64, 64)) == "as it is"
