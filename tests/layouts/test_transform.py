"""What a conversion does with one rule's tensors: bytes to copy, or new tensors, and what a cast loses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llamaconv.casts import Loss
from llamaconv.extents import Extent, read_extents
from llamaconv.layouts.attention import Rotary
from llamaconv.layouts.operations import Chain, Concat, Identity, Operation, Pad
from llamaconv.layouts.ranks import Divide
from llamaconv.layouts.rules import Rule
from llamaconv.layouts.transform import Rearrange
from llamaconv.tensors import LazyTensor, TensorSpec
from tests.sources.files import random_tensor


class Losses:
    def __init__(self) -> None:
        self.losses: list[Loss] = []


@pytest.fixture
def stored(tmp_path: Path) -> Mapping[str, LazyTensor]:
    """Tensors in one file; single rows of the first two are long enough to be copied, those of the third are not."""
    shapes = {"a": (8, 40_000), "b": (4, 40_000), "c": (8, 50)}
    tensors = {name: random_tensor(shape, torch.bfloat16, ord(name)) for name, shape in shapes.items()}
    path, offset, lazies = tmp_path / "file", 0, {}
    path.write_bytes(b"".join(tensor.view(torch.uint8).numpy().tobytes() for tensor in tensors.values()))
    info = path.stat()
    for name, tensor in tensors.items():
        spec = TensorSpec.of(name, tensor)
        extent = Extent(path, offset, spec.nbytes, (info.st_size, info.st_mtime_ns))
        lazies[name] = LazyTensor(spec, tensor.clone, (extent,))
        offset += spec.nbytes
    return lazies


def run(
    operation: Operation, stored: Mapping[str, LazyTensor], names: str, dtype: torch.dtype | None = None
) -> tuple[dict[str, Tensor | tuple[Extent, ...]], Losses]:
    losses = Losses()
    rule = Rule(tuple(names), tuple(f"r{index}" for index in range(operation.gives)), operation)
    transform = Rearrange(rule, dtype)
    made = dict(transform({name: stored[name] for name in names}, losses))
    specs = {spec.name: spec for spec in transform.writes({name: stored[name].spec for name in names})}
    for name, result in made.items():
        tensor = result if isinstance(result, Tensor) else None
        assert tensor is None or TensorSpec.of(name, tensor) == specs[name]
        assert tensor is not None or sum(extent.nbytes for extent in result) == specs[name].nbytes
    assert made.keys() == specs.keys()
    return made, losses


@pytest.mark.parametrize(
    ("operation", "names"), [(Identity(), "a"), (Concat((8, 4)), "ab"), (Divide(4, 0), "a")], ids=str
)
def test_bytes_that_stay_are_copied(operation: Operation, names: str, stored: Mapping[str, LazyTensor]) -> None:
    """Where they lie is all that comes out, and no memory is taken."""
    made, _ = run(operation, stored, names)
    expected = operation.apply(tuple(stored[name].read() for name in names))
    for result, tensor in zip(made.values(), expected, strict=True):
        assert isinstance(result, tuple)
        assert torch.equal(
            read_extents(result).view(tensor.dtype).view(tensor.shape).view(torch.int16), tensor.view(torch.int16)
        )
    assert Rearrange(Rule(tuple(names), tuple(made), operation), None).peak_bytes([stored[name] for name in names]) == 0


@pytest.mark.parametrize(
    ("operation", "names"),
    [
        (Rotary(2, to_pairs=True), "c"),
        (Pad(4, 6), "b"),
        (Divide(5, 1), "a"),
        (Chain((Rotary(1, to_pairs=False), Divide(2, 0))), "c"),
    ],
    ids=str,
)
def test_what_moves_is_put_together(operation: Operation, names: str, stored: Mapping[str, LazyTensor]) -> None:
    """The operation's own results, bit for bit, in the memory that is announced."""
    made, losses = run(operation, stored, names)
    expected = operation.apply(tuple(stored[name].read() for name in names))
    for result, tensor in zip(made.values(), expected, strict=True):
        assert isinstance(result, Tensor)
        assert torch.equal(result.view(torch.int16), tensor.view(torch.int16))
    largest = max(stored[name].spec.nbytes for name in names)
    peak = Rearrange(Rule(tuple(names), tuple(made), operation), None).peak_bytes([stored[name] for name in names])
    assert largest <= peak <= 3 * largest
    assert losses.losses == []


def test_a_cast_reads_what_could_be_copied(stored: Mapping[str, LazyTensor]) -> None:
    """In both dtypes at once; but not into the dtype that it has, and not what is no floating point."""
    made, losses = run(Identity(), stored, "a", torch.float32)
    assert torch.equal(made["r0"].nan_to_num(), stored["a"].read().float().nan_to_num())
    assert not any(losses.losses)
    assert isinstance(run(Identity(), stored, "a", torch.bfloat16)[0]["r0"], tuple)
    spec = TensorSpec("a", (8, 40_000), torch.int16)
    codes = {"a": LazyTensor(spec, lambda: stored["a"].read().view(torch.int16), stored["a"].extents)}
    assert isinstance(run(Identity(), codes, "a", torch.float32)[0]["r0"], tuple)
    rearrange = Rearrange(Rule(("a",), ("r",), Identity()), torch.float32)
    assert rearrange.peak_bytes([stored["a"]]) == 8 * 40_000 * (2 + 4)


def test_what_a_cast_loses_is_written_down() -> None:
    """Under the new tensor's name; each result of one input for itself."""
    values = torch.tensor([[1e30, 1.0, 1e-30, 2.0], [3.0, -1e30, 0.0, 4.0]])
    source = {"a": LazyTensor(TensorSpec.of("a", values), values.clone)}
    made, losses = run(Divide(2, 1), source, "a", torch.float16)
    assert [str(loss) for loss in losses.losses] == [
        "r0: of 4 values 2 overflow in float16",
        "r1: of 4 values 1 flush to zero in float16",
    ]
    assert torch.equal(made["r1"], values[:, 2:].half())


def test_several_results_of_one_input_take_one_reading() -> None:
    """Where columns are cut, each file of a rank would read it all again."""
    reads: list[str] = []
    tensor = torch.arange(12.0).view(3, 4)

    def read() -> Tensor:
        reads.append("a")
        return tensor.clone()

    made, _ = run(Divide(4, 1), {"a": LazyTensor(TensorSpec.of("a", tensor), read)}, "a")
    assert reads == ["a"]
    assert torch.equal(torch.cat([result for result in made.values() if isinstance(result, Tensor)], 1), tensor)
