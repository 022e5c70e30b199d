from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llamaconv.errors import CheckpointError
from llamaconv.layouts.quantized import STORAGES
from llamaconv.quantizers.bnb4 import STATES, Bnb4, stored_shape
from llamaconv.tensors import LazyTensor, TensorSpec
from tests.quantizers.bnb4_checkpoints import saved_by_bitsandbytes, state_of, with_state
from tests.quantizers.problems import weight

KINDS = ("nf4", "fp4")
ABSENT = object()


def layer(nested: bool = True) -> dict[str, Tensor]:
    """The tensors of a weight [48, 40], whose 1,920 values have 30 scales."""
    return saved_by_bitsandbytes(weight(0, 48, 40).half(), blocksize=64, quant_type="nf4", compress_statistics=nested)


def stated(nested: bool = True, **changes: Any) -> dict[str, Tensor]:
    """The same with changes to the quant_state."""
    tensors = layer(nested)
    state = state_of(tensors)[1] | changes
    return with_state(tensors, {key: value for key, value in state.items() if value is not ABSENT})


def unread() -> Tensor:
    pytest.fail("a tensor was read")


def lazily(tensors: dict[str, Tensor]) -> dict[str, LazyTensor]:
    """Of which only the quant_state may be read."""
    return {
        suffix: LazyTensor(TensorSpec.of(suffix, tensor), tensor.clone if suffix in STATES else unread)
        for suffix, tensor in tensors.items()
    }


@given(
    st.integers(2, 40),
    st.integers(1, 25).map(lambda n: 8 * n),
    st.sampled_from(KINDS),
    st.booleans(),
    st.sampled_from([32, 64, 256]),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    st.sampled_from([torch.uint8, torch.int8, torch.float16, torch.bfloat16, torch.float32]),
    st.integers(0, 1000),
)
def test_a_weight_is_what_bitsandbytes_makes_of_it(
    rows: int,
    columns: int,
    kind: str,
    nested: bool,
    blocksize: int,
    dtype: torch.dtype,
    storage: torch.dtype,
    seed: int,
) -> None:
    """Bit for bit, for any blocks, dtypes, and bytes viewed as any dtype (NaN among their values)."""
    tensors = saved_by_bitsandbytes(
        weight(seed, rows, columns).to(dtype),
        blocksize=blocksize,
        quant_type=kind,
        compress_statistics=nested,
        quant_storage=storage,
    )
    others = {name.removeprefix("weight."): part for name, part in tensors.items() if name != "weight"}
    theirs = dequantize_4bit(tensors["weight"], QuantState.from_dict(others, torch.device("cpu")))
    ours = Bnb4().read(tensors).dequantize()
    assert (theirs.dtype, ours.dtype, ours.shape) == (dtype, torch.float32, (rows, columns))
    assert torch.equal(ours, theirs.float())
    assert stored_shape(lazily(tensors)) == (rows, columns)


@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (3, 5)])
@pytest.mark.parametrize("nested", [True, False])
def test_a_weight_may_be_of_any_shape(shape: tuple[int, int], nested: bool) -> None:
    """An odd value leaves half a byte empty; two codes are not taken for a transposed weight."""
    w = torch.tensor([1.0, -1.0] * 8)[: math.prod(shape)].reshape(shape)
    tensors = saved_by_bitsandbytes(w, blocksize=64, quant_type="nf4", compress_statistics=nested)
    assert torch.equal(Bnb4().read(tensors).dequantize(), w)
    assert stored_shape(lazily(tensors)) == shape


@pytest.mark.parametrize(
    ("kind", "codes", "values"),
    [
        # NF4 counts up: code 0 is -1, 7 is 0, 15 is 1.
        ("nf4", [0x0F, 0x7F], [[-2.0, 2.0], [0.0, 2.0]]),
        # FP4 has a sign, two bits of exponent and one of mantissa: 3 is 1, 5 is 1/2, 8 more is the negative.
        ("fp4", [0x35, 0xBD], [[2.0, 1.0], [-2.0, -1.0]]),
    ],
)
def test_literal_codes(kind: str, codes: list[int], values: list[list[float]]) -> None:
    """The first code of a byte is in its high half; a code stands for a part of the block's largest magnitude."""
    state = f'{{"quant_type": "{kind}", "blocksize": 64, "dtype": "bfloat16", "shape": [2, 2]}}'
    stored = {
        "weight": torch.tensor(codes, dtype=torch.uint8)[:, None],
        "weight.absmax": torch.tensor([2.0]),
        "weight.quant_map": torch.linspace(-1, 1, 16),  # bitsandbytes has a map of its own
        f"weight.quant_state.bitsandbytes__{kind}": torch.tensor(list(state.encode()), dtype=torch.uint8),
    }
    assert Bnb4().read(stored).dequantize().tolist() == values


def test_the_suffixes_are_those_by_which_layers_are_found() -> None:
    """The storage of headers and the reader of data agree."""
    [storage] = [storage for storage in STORAGES if storage.marker == Bnb4.marker]
    assert storage.suffixes == Bnb4.suffixes
    assert storage.codes == "weight"
    assert set(layer()) | set(STATES) == set(Bnb4.suffixes)


_NUMBERS = "input should be 32, 64, 128, 256, 512, 1024, 2048 or 4096"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (with_state(layer(), b""), "quant_state: not JSON (Expecting value, line 1, column 1)"),
        (with_state(layer(), b"\xff{}"), "quant_state: not valid UTF-8 (byte 0)"),
        (with_state(layer(), b"[1]"), "quant_state: not a JSON object"),
        (stated(blocksize=0), f"quant_state: blocksize is 0: {_NUMBERS}."),
        (stated(blocksize=48), f"quant_state: blocksize is 48: {_NUMBERS}."),
        (stated(blocksize="64"), f'quant_state: blocksize is "64": {_NUMBERS}.'),
        (stated(nested_blocksize=2**62), f"quant_state: nested_blocksize is {2**62}: {_NUMBERS}."),
        (stated(shape=ABSENT), "quant_state: shape is missing."),
        (
            stated(shape=[1920]),
            "quant_state: shape is [1920]: list should have at least 2 items after validation, not 1.",
        ),
        (
            stated(shape=[2, 24, 40]),
            "quant_state: shape is [2, 24, 40]: list should have at most 2 items after validation, not 3.",
        ),
        (stated(shape=[-48, -40]), "quant_state: shape.0 is -48: input should be greater than or equal to 1."),
        (stated(shape=[48, 41]), "quant_state: a weight of [48, 41], but codes for 1920 values"),
        (stated(shape=[10**20, 10**20]), f"quant_state: a weight of [{10**20}, {10**20}], but codes for 1920 values"),
        (stated(dtype="load"), "quant_state: dtype is \"load\": input should be 'float16', 'bfloat16' or 'float32'."),
        (stated(quant_type="fp4"), "quant_state: fp4 by its data, not by its name"),
        (stated(quant_type="int4"), "quant_state: quant_type is \"int4\": input should be 'nf4' or 'fp4'."),
        (stated(zero=1), "quant_state: zero is 1: extra inputs are not permitted."),
        (
            stated(nested_offset=ABSENT),
            "quant_state: of nested_blocksize, nested_dtype and nested_offset some are missing",
        ),
        (layer() | {STATES[1]: torch.zeros(1, dtype=torch.uint8)}, "quant_state: 2 of them where 1 belongs"),
        ({"weight": layer()["weight"]}, "quant_state: 0 of them where 1 belongs"),
    ],
)
def test_a_quant_state_that_cannot_be_is_refused(tensors: dict[str, Tensor], message: str) -> None:
    """Before anything is computed from it, and when the shape alone is asked for."""
    with pytest.raises(CheckpointError) as caught:
        Bnb4().read(tensors)
    assert caught.value.message.splitlines()[0] == message
    with pytest.raises(CheckpointError) as caught:
        stored_shape(lazily(tensors))
    assert caught.value.message.splitlines()[0] == message


@pytest.mark.parametrize(
    ("nested", "changes", "messages"),
    [
        (False, {"absmax": torch.ones(29)}, ["absmax [29] float32 where absmax [30] float32 belongs"]),
        (False, {"absmax": torch.ones(30).half()}, ["absmax [30] float16 where absmax [30] float32 belongs"]),
        (
            False,
            {"nested_absmax": torch.ones(1)},
            ["nested_absmax has no place in a quant_state without it"],
        ),
        (
            True,
            {"absmax": torch.ones(30), "quant_map": None, "nested_absmax": torch.ones(2)},
            [
                "absmax [30] float32 where absmax [30] uint8 belongs",
                "quant_map is missing",
                "nested_absmax [2] float32 where nested_absmax [1] float32 belongs",
            ],
        ),
        (
            True,
            {"nested_quant_map": torch.ones(255), "nested_absmax": None},
            ["nested_absmax is missing", "nested_quant_map [255] float32 where nested_quant_map [256] float32 belongs"],
        ),
    ],
)
def test_tensors_that_do_not_fit_the_quant_state_are_all_named(
    nested: bool, changes: dict[str, Tensor | None], messages: list[str]
) -> None:
    """Bitsandbytes would read past their ends."""
    changed = layer(nested) | {f"weight.{name}": tensor for name, tensor in changes.items()}
    with pytest.raises(CheckpointError) as caught:
        Bnb4().read({name: tensor for name, tensor in changed.items() if tensor is not None})
    assert caught.value.message.splitlines() == messages


def test_a_quant_state_of_megabytes_is_not_read() -> None:
    """Its size alone says that it is none."""
    parts = lazily(layer())
    parts[STATES[0]] = LazyTensor(TensorSpec(STATES[0], (70_000,), torch.uint8), unread)
    with pytest.raises(CheckpointError, match=r"^quant_state: 70000 bytes are too many$"):
        stored_shape(parts)
