from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llamaconv.layouts.attention import Rotary
from llamaconv.layouts.operations import Concat, Identity
from llamaconv.layouts.ranks import Divide, Replicate
from llamaconv.layouts.rules import Rule
from llamaconv.layouts.view import View
from llamaconv.tensors import LazyTensor, TensorSpec
from tests.layouts.in_memory import InMemory

TENSORS = {"a": torch.arange(24.0).view(8, 3), "b": 100 + torch.arange(12.0).view(4, 3), "n": torch.ones(3)}
RULES = (
    Rule(("n",), ("norm",), Identity()),
    Rule(("a", "b"), ("fused",), Concat((8, 4))),
    Rule(("b",), ("0/b", "1/b", "2/b"), Divide(3, 1)),
)


class Counting(InMemory):
    """Counts what is read."""

    def __init__(self) -> None:
        super().__init__(TENSORS)
        self.files = (Path("weights"),)
        self.read: list[str] = []

    def __getitem__(self, name: str) -> LazyTensor:
        lazy = super().__getitem__(name)

        def read() -> torch.Tensor:
            self.read.append(name)
            return lazy.read()

        return LazyTensor(lazy.spec, read)


def test_nothing_is_read_before_it_is_asked_for() -> None:
    """Names, shapes and dtypes come from the rules; a tensor takes its own inputs and no other."""
    reader = Counting()
    view = View(reader, RULES)
    shapes = {"norm": (3,), "fused": (12, 3), "0/b": (4, 1), "1/b": (4, 1), "2/b": (4, 1)}
    assert dict(view.specs) == {name: TensorSpec(name, shape, torch.float32) for name, shape in shapes.items()}
    assert view.files == (Path("weights"),)
    lazy = view["fused"]
    assert (lazy.spec, reader.read) == (view.specs["fused"], [])
    assert torch.equal(lazy.read(), torch.cat([TENSORS["a"], TENSORS["b"]]))
    assert reader.read == ["a", "b"]


def test_the_inverse_rules_show_the_reader_again() -> None:
    """Bit for bit, through two views."""
    rules = (
        Rule(("n",), ("norm", "copy"), Replicate(2)),
        Rule(("a",), ("rotated",), Rotary(2, to_pairs=True)),
        RULES[2],
    )
    back = View(View(InMemory(TENSORS), rules), [rule.inverse() for rule in rules])
    assert back.specs == InMemory(TENSORS).specs
    assert all(torch.equal(back[name].read(), tensor) for name, tensor in TENSORS.items())


def test_one_of_several_results_is_made_alone() -> None:
    """By its own name."""
    view = View(InMemory(TENSORS), RULES[2:])
    for rank in range(3):
        assert torch.equal(view[f"{rank}/b"].read(), TENSORS["b"][:, rank : rank + 1])


def test_what_is_not_there_is_an_error() -> None:
    """A name that no rule gives; a tensor that the reader lacks; the specs are not to be changed."""
    view = View(InMemory(TENSORS), RULES[:2])
    with pytest.raises(KeyError, match="'a'"):
        view["a"]
    with pytest.raises(KeyError, match="'z'"):
        View(InMemory(TENSORS), [Rule(("z",), ("norm",), Identity())])
    with pytest.raises(TypeError):
        view.specs["a"] = view.specs["norm"]  # type: ignore[index]


def test_shapes_that_do_not_fit_are_found_at_once() -> None:
    """The tensors are named."""
    with pytest.raises(ValueError, match=r"^a, b: parts of \(8, 4\) rows where \(9, 4\) belong$"):
        View(InMemory(TENSORS), [Rule(("a", "b"), ("fused",), Concat((9, 4)))])
