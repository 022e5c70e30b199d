from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llamaconv import casts
from llamaconv.casts import FLOATS, Loss, cast


def test_what_is_lost_is_counted() -> None:
    """Finite values that become infinite, and values that become zero; infinities and zeros were so before."""
    tensor = torch.tensor([[1.0, 70000.0, -70000.0], [1e-9, 0.0, float("inf")]])
    result, loss = cast("a.weight", tensor, torch.float16)
    assert result.tolist() == [[1.0, float("inf"), float("-inf")], [0.0, 0.0, float("inf")]]
    assert loss == Loss("a.weight", torch.float16, values=6, overflowed=2, flushed=1)
    assert loss
    assert str(loss) == "a.weight: of 6 values 2 overflow and 1 flush to zero in float16"


def test_one_kind_of_loss_is_told_alone() -> None:
    """Without a zero count of the other."""
    assert str(Loss("a", torch.bfloat16, 1234567, 0, 1000)) == "a: of 1,234,567 values 1,000 flush to zero in bfloat16"


def test_a_cast_without_loss_is_none_to_speak_of() -> None:
    """The count is there, and is false."""
    result, loss = cast("a", torch.tensor([1.5, -2.0]), torch.bfloat16)
    assert result.dtype == torch.bfloat16
    assert loss is not None
    assert not loss


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_what_need_not_be_cast_is_the_same_tensor(dtype: torch.dtype | None) -> None:
    """None keeps every dtype; a tensor's own dtype is no cast."""
    tensor = torch.ones(3)
    assert cast("a", tensor, dtype) == (tensor, None)


def test_integers_are_not_cast() -> None:
    """Codes and indices mean what they are."""
    codes = torch.arange(3, dtype=torch.int32)
    assert cast("a", codes, torch.float16)[0] is codes


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1), st.sampled_from(sorted(FLOATS)))
def test_values_are_those_of_torch(values: list[float], name: str) -> None:
    """In any number of pieces."""
    tensor = torch.tensor(values)
    result, _ = cast("a", tensor, FLOATS[name])
    assert torch.equal(result, tensor.to(FLOATS[name]))


def test_large_tensors_are_looked_at_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts add up over the pieces, and no piece is missed."""
    monkeypatch.setattr(casts, "_CHUNK", 4)
    tensor = torch.full((3, 5), 70000.0)
    result, loss = cast("a", tensor, torch.float16)
    assert loss is not None
    assert (loss.overflowed, loss.flushed) == (15, 0)
    assert bool(torch.isinf(result).all())
