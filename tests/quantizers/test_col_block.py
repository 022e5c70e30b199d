from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llamaconv.errors import CheckpointError, UnsupportedError
from llamaconv.layouts.quantized import STORAGES
from llamaconv.quantizers.col_block import ColBlock, ColBlockWeight
from llamaconv.quantizers.packing import CheckpointFormat, GptqWeight

BITS = (2, 4, 8)


def random_gptq(seed: int, bits: int, rows: int, groups: int, size: int, format: CheckpointFormat) -> GptqWeight:
    """Any codes and zero points, in groups of ``size`` columns that follow each other."""
    random = torch.Generator().manual_seed(seed)
    least = 1 if format == "gptq" else 0
    return GptqWeight(
        codes=torch.randint(0, 1 << bits, (rows, groups * size), dtype=torch.uint8, generator=random),
        scales=torch.randn((rows, groups), generator=random).half(),
        zeros=torch.randint(least, 1 << bits, (rows, groups), dtype=torch.uint8, generator=random),
        group_index=torch.arange(groups * size, dtype=torch.int32) // size,
        bits=bits,
        format=format,
    )


weights = st.builds(
    random_gptq,
    st.integers(0, 1000),
    st.sampled_from(BITS),
    st.integers(1, 9).map(lambda n: 8 * n),
    st.integers(1, 5),
    st.integers(1, 7).map(lambda n: 8 * n),
    st.sampled_from(["gptq", "gptq_v2"]),
)


def fields(weight: GptqWeight) -> dict[str, Any]:
    """Values that compare bit for bit."""
    return {
        name: (value.dtype, value.tolist()) if isinstance(value, Tensor) else value
        for name, value in vars(weight).items()
    }


def by_the_letter(stored: dict[str, Tensor], bits: int) -> list[list[float]]:
    """What lit-llama's module computes, one weight at a time."""
    packed, scales, zeros = (stored[name].tolist() for name in ("quant_weight", "scales", "zeros"))
    per_byte = 8 // bits
    columns, groups = len(packed[0]) * per_byte, len(scales[0])
    return [
        [
            ((row[c // per_byte] >> bits * (c % per_byte)) % 2**bits - zero[c * groups // columns])
            * scale[c * groups // columns]
            for c in range(columns)
        ]
        for row, scale, zero in zip(packed, scales, zeros, strict=True)
    ]


@given(weights)
def test_from_gptq_and_back_changes_no_bit(weight: GptqWeight) -> None:
    """Codes, scales, zero points and groups are the same, and so are the tensors that a checkpoint stores."""
    there = ColBlockWeight.from_gptq(weight)
    assert (there.scales.dtype, there.zeros.dtype) == (torch.float32, torch.float32)
    assert fields(there.to_gptq(weight.format)) == fields(weight)


@given(weights)
def test_both_formats_stand_for_the_same_weight(weight: GptqWeight) -> None:
    """Bit for bit in float32, row by row too."""
    there = ColBlockWeight.from_gptq(weight)
    dense = weight.dequantize()
    assert there.dequantize().dtype == torch.float32
    assert torch.equal(there.dequantize(), dense)
    assert torch.equal(there.rows(slice(3, 5)).dequantize(), dense[3:5])


@given(weights, st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_tensors_are_read_back_as_lit_llama_reads_them(weight: GptqWeight, dtype: torch.dtype) -> None:
    """In the dtype that they have, and transposed as lit-llama's quantizer leaves them."""
    written = ColBlockWeight.from_gptq(weight)
    written = replace(written, scales=written.scales.to(dtype), zeros=written.zeros.to(dtype))
    stored = written.tensors()
    rows, columns = weight.codes.shape
    assert all(tensor.is_contiguous() for tensor in stored.values())
    assert stored["quant_weight"].shape == (rows, columns * weight.bits // 8)
    assert (stored["quant_weight"].dtype, stored["scales"].dtype, stored["zeros"].dtype) == (torch.uint8, dtype, dtype)
    transposed = stored | {"quant_weight": stored["quant_weight"].t().contiguous().t()}
    for tensors in (stored, transposed):
        back = ColBlock(weight.bits).read(tensors)
        assert torch.equal(back.codes, weight.codes)
        assert torch.equal(back.dequantize(), torch.tensor(by_the_letter(stored, weight.bits)))
        assert {name: part.tolist() for name, part in back.tensors().items()} == {
            name: part.tolist() for name, part in stored.items()
        }


@pytest.mark.parametrize(
    ("bits", "codes", "packed"),
    [
        (2, [3, 0, 1, 2, 0, 3, 3, 1], [0b10_01_00_11, 0b01_11_11_00]),
        (4, [0x1, 0x2, 0xF, 0x0], [0x21, 0x0F]),
        (8, [7, 255], [7, 255]),
    ],
)
def test_literal_bytes(bits: int, codes: list[int], packed: list[int]) -> None:
    """The first code of a byte is in its low bits; (code - zero) * scale is the weight, group by group."""
    weight = ColBlockWeight(
        torch.tensor([codes], dtype=torch.uint8), torch.tensor([[0.5, 2.0]]), torch.tensor([[1.0, 3.0]]), bits
    )
    stored = weight.tensors()
    assert list(stored) == ["quant_weight", "scales", "zeros"]
    assert (stored["quant_weight"].dtype, stored["quant_weight"].tolist()) == (torch.uint8, [packed])
    assert (stored["scales"].tolist(), stored["zeros"].tolist()) == ([[0.5, 2.0]], [[1.0, 3.0]])
    half = len(codes) // 2
    values = [(code - 1) * 0.5 for code in codes[:half]] + [(code - 3) * 2.0 for code in codes[half:]]
    assert ColBlock(bits).read(stored).dequantize().tolist() == [values]


def test_codes_of_3_bits_have_no_place() -> None:
    """Eight of them fill three bytes, but a byte holds whole codes here."""
    weight = GptqWeight(
        torch.zeros((32, 32), dtype=torch.uint8),
        torch.ones((32, 1), dtype=torch.float16),
        torch.ones((32, 1), dtype=torch.uint8),
        torch.zeros(32, dtype=torch.int32),
        3,
    )
    with pytest.raises(UnsupportedError, match=r"^codes of 3 bits do not fill bytes, as lit-llama packs them$"):
        ColBlockWeight.from_gptq(weight)


@pytest.mark.parametrize("index", [[0, 1] * 8, [1] * 8 + [0] * 8, [0] * 7 + [1] * 8 + [0]])
def test_groups_that_are_not_runs_have_no_place(index: list[int]) -> None:
    """The file does not say which group a column is in; with one group for a row, its order does not matter."""
    weight = random_gptq(0, 4, 32, 2, 8, "gptq")
    scattered = replace(weight, group_index=torch.tensor(index, dtype=torch.int32))
    with pytest.raises(UnsupportedError) as caught:
        ColBlockWeight.from_gptq(scattered)
    assert caught.value.message == (
        "the 2 groups are not runs of columns in their order (act-order), as lit-llama needs them"
    )
    assert caught.value.hint == "Quantize without act-order, or with one group for each row."


@pytest.mark.parametrize(("columns", "size"), [(96, 64), (15, 8)])
def test_a_last_group_that_is_smaller_has_no_place(columns: int, size: int) -> None:
    """The size of groups is told from their number, so all must have it, also where that would divide the columns."""
    weight = random_gptq(0, 4, 32, 2, size, "gptq")
    uneven = replace(weight, codes=weight.codes[:, :columns], group_index=weight.group_index[:columns])
    with pytest.raises(UnsupportedError) as caught:
        ColBlockWeight.from_gptq(uneven)
    assert caught.value.message == f"{columns} columns are not 2 groups of one size in whole bytes"
    assert caught.value.hint == ("Quantize with a group size that divides the columns, or with one group for each row.")


@pytest.mark.parametrize(
    ("scale", "zero", "message"),
    [
        (1 + 2.0**-11, 8.0, "1 of 64 scales are not exact in float16"),
        (1e6, 8.0, "1 of 64 scales are not exact in float16"),
        (float("nan"), 8.0, "1 of 64 scales are not exact in float16"),
        (1.0, 7.5, "1 of 64 zero points are no codes"),
        (1.0, 16.0, "1 of 64 zero points are no codes"),
        (1.0, -1.0, "1 of 64 zero points are no codes"),
        (
            2.0**-25,
            float("nan"),
            "1 of 64 scales are not exact in float16 and 1 of 64 zero points are no codes",
        ),
    ],
)
def test_what_gptq_does_not_hold_exactly_is_counted(scale: float, zero: float, message: str) -> None:
    """Nothing is rounded on the way."""
    weight = ColBlockWeight.from_gptq(random_gptq(0, 4, 32, 2, 8, "gptq_v2"))
    weight.scales[3, 1], weight.zeros[3, 1] = scale, zero
    with pytest.raises(UnsupportedError) as caught:
        weight.to_gptq()
    assert caught.value.message == f"GPTQ's format does not hold it: {message}"


def test_scales_of_bfloat16_that_float16_holds_are_taken() -> None:
    """As lit-llama's quantizer leaves them if it is told to load the model in bfloat16."""
    weight = ColBlockWeight.from_gptq(random_gptq(0, 8, 32, 1, 16, "gptq_v2"))
    narrow = replace(weight, scales=weight.scales.bfloat16(), zeros=weight.zeros.bfloat16())
    assert torch.equal(narrow.to_gptq("gptq_v2").dequantize(), narrow.dequantize())


@pytest.mark.parametrize(
    "changes",
    [
        {"scales": torch.ones(31, 2)},
        {"zeros": torch.ones(32, 1)},
        {"scales": torch.ones(32), "zeros": torch.ones(32)},
        {"quant_weight": torch.zeros(32, dtype=torch.uint8)},
        {"quant_weight": torch.zeros((32, 8), dtype=torch.int32)},
        {"scales": torch.ones((32, 2), dtype=torch.int32), "zeros": torch.ones((32, 2), dtype=torch.int32)},
        {"zeros": torch.ones((32, 2), dtype=torch.float16)},
        {"zeros": torch.ones((32, 2), dtype=torch.uint8)},
    ],
)
def test_tensors_that_do_not_go_together_are_shown(changes: dict[str, Tensor]) -> None:
    """With their shapes and dtypes."""
    stored = ColBlockWeight.from_gptq(random_gptq(0, 4, 32, 2, 8, "gptq")).tensors() | changes
    with pytest.raises(CheckpointError) as caught:
        ColBlock(4).read(stored)
    shown = ", ".join(
        f"{name} {list(part.shape)} {str(part.dtype).removeprefix('torch.')}" for name, part in stored.items()
    )
    assert caught.value.message == f"these do not go together: {shown}"


def test_groups_that_do_not_divide_the_columns_are_refused() -> None:
    """How many columns each had cannot be told."""
    stored = ColBlockWeight.from_gptq(random_gptq(0, 4, 32, 2, 8, "gptq")).tensors()
    stored |= {name: torch.ones(32, 3) for name in ("scales", "zeros")}
    with pytest.raises(UnsupportedError, match=r"^16 columns are not 3 groups of one size in whole bytes$"):
        ColBlock(4).read(stored)


@pytest.mark.parametrize("bits", BITS)
def test_the_reader_says_what_it_reads(bits: int) -> None:
    """Its suffixes are those by which headers are told to be lit-llama's."""
    reader = ColBlock(bits)
    [storage] = [storage for storage in STORAGES if storage.marker == reader.marker]
    assert (storage.suffixes, storage.codes, reader.bits) == (reader.suffixes, "quant_weight", bits)
    assert reader.mode == f"lit-llama.gptq.int{bits}"
