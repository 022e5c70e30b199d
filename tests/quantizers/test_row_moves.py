from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llamaconv.errors import UnsupportedError
from llamaconv.layouts.attention import Interleave, Rotary
from llamaconv.layouts.operations import Chain, Concat, Identity, Operation, Pad, Parallel
from llamaconv.layouts.ranks import Divide
from llamaconv.quantizers.packing import GptqWeight
from llamaconv.quantizers.row_moves import through


def random_weights(rows: Sequence[int], columns: int, groups: int, bits: int, seed: int) -> tuple[GptqWeight, ...]:
    """Weights in act-order: their groups are scattered over the columns, alike in all."""
    random = torch.Generator().manual_seed(seed)
    index = torch.randint(groups, (columns,), dtype=torch.int32, generator=random)
    return tuple(
        GptqWeight(
            codes=torch.randint(0, 1 << bits, (count, columns), dtype=torch.uint8, generator=random),
            scales=torch.randn((count, groups), generator=random).half(),
            zeros=torch.randint(1, 1 << bits, (count, groups), dtype=torch.uint8, generator=random),
            group_index=index,
            bits=bits,
        )
        for count in rows
    )


sizes = st.integers(1, 4)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Operation, tuple[int, ...]]:
    """An operation that moves rows, and how many rows each of its inputs has."""
    groups, queries, half, padding = draw(sizes), draw(sizes), draw(sizes), draw(st.integers(1, 9))
    d = 2 * half
    rows = (groups * queries * d, groups * d, groups * d)
    rotary = (Rotary(groups * queries, to_pairs=True), Rotary(groups, to_pairs=True), Identity())
    forward = draw(
        st.sampled_from(
            [
                (Rotary(groups * queries, to_pairs=False), rows[:1]),
                (Concat(rows), rows),
                (Chain((Parallel(rotary), Concat(rows))), rows),  # lit-llama's fused c_attn
                (Interleave(groups, queries, d), rows),
                (Pad(rows[0], rows[0] + padding), rows[:1]),
                (Divide(groups, 0), rows[:1]),
            ]
        )
    )
    operation, given_rows = forward
    if draw(st.booleans()):
        made = operation.apply(tuple(torch.zeros(count, 1) for count in given_rows))
        return operation.inverse(), tuple(len(tensor) for tensor in made)
    return forward


@given(cases(), st.integers(1, 40), st.integers(1, 5), st.sampled_from([2, 3, 4, 8]), st.integers(0, 1000))
def test_dequantizing_and_moving_rows_commute(
    case: tuple[Operation, tuple[int, ...]], columns: int, groups: int, bits: int, seed: int
) -> None:
    """For every operation of the layouts that moves rows, and its inverse: bit for bit, the sign of 0 included."""
    operation, rows = case
    weights = random_weights(rows, columns, groups, bits, seed)
    moved = through(operation, weights)
    dense = operation.apply(tuple(weight.dequantize() for weight in weights))
    assert len(moved) == len(dense)
    for ours, expected in zip(moved, dense, strict=True):
        assert torch.equal(ours.dequantize().view(torch.int32), expected.view(torch.int32))
        assert (ours.bits, ours.format) == (bits, "gptq")
        assert torch.equal(ours.group_index, weights[0].group_index)


@given(cases(), st.integers(0, 1000))
def test_there_and_back_changes_no_code(case: tuple[Operation, tuple[int, ...]], seed: int) -> None:
    """Neither codes nor scales nor zero points."""
    operation, rows = case
    weights = random_weights(rows, 12, 3, 4, seed)
    there = through(operation, weights)
    again = through(operation, through(operation.inverse(), there))
    for ours, expected in zip(again, there, strict=True):
        for part in ("codes", "scales", "zeros"):
            assert torch.equal(getattr(ours, part), getattr(expected, part)), part


def test_added_rows_have_scales_of_0() -> None:
    """A padded vocabulary's rows are zeros; v2 of the format stores them, v1 has no zero point of 0."""
    [weight] = random_weights((24,), 32, 2, 4, 0)
    [padded] = through(Pad(24, 32), (replace(weight, format="gptq_v2"),))
    assert not padded.scales[24:].any()
    assert not padded.dequantize()[24:].any()
    read = GptqWeight.read(padded.tensors(), 4, "gptq_v2")
    assert torch.equal(read.dequantize(), padded.dequantize())


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"bits": 8}, "bits"),
        ({"format": "gptq_v2"}, "checkpoint formats"),
        ({"group_index": torch.zeros(12, dtype=torch.int32)}, "g_idx"),
        ({"scales": torch.ones(6, 2).half(), "bits": 2}, "bits, numbers of groups"),
    ],
)
def test_weights_that_cannot_become_one_are_refused(changes: dict[str, Any], facts: str) -> None:
    """All that differs is named."""
    first, second = random_weights((4, 6), 12, 3, 4, 0)
    with pytest.raises(UnsupportedError) as caught:
        through(Concat((4, 6)), (first, replace(second, **changes)))
    assert caught.value.message == f"2 quantized weights differ in their {facts}, so they cannot become one"
    assert caught.value.hint == "Their dense weights can."


def test_groups_that_are_numbered_in_other_integers_are_the_same() -> None:
    """Some writers store g_idx as int64."""
    first, second = random_weights((4, 6), 12, 3, 4, 0)
    [joined] = through(Concat((4, 6)), (first, replace(second, group_index=second.group_index.long())))
    assert torch.equal(joined.dequantize(), torch.cat([first.dequantize(), second.dequantize()]))


def test_columns_cannot_be_moved() -> None:
    """Tensor-parallel parts along the inputs would tear groups apart."""
    with pytest.raises(UnsupportedError, match=r"^only whole rows of a quantized weight can be moved$"):
        through(Divide(2, 1), random_weights((4,), 12, 3, 4, 0))


def test_rows_that_the_operation_cannot_take_are_an_error() -> None:
    """As for dense weights."""
    with pytest.raises(ValueError, match=r"^parts of \(4, 6\) rows where \(6, 4\) belong$"):
        through(Concat((6, 4)), random_weights((4, 6), 12, 3, 4, 0))
