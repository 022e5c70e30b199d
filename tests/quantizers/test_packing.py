from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llamaconv.errors import CheckpointError
from llamaconv.quantizers.packing import CheckpointFormat, GptqWeight, pack, unpack
from tests.quantizers.gptq_weights import BITS, random_codes, random_weight

# 32 codes that count up from 0, and the words they make.
#   2 bits: 3 2 1 0 is 11 10 01 00, one byte E4.
#   3 bits: 7 6 5 4 3 2 1 0 is 111 110 101 100 011 010 001 000, three bytes FA C6 88; words cut the stream of those
#           bytes (88 C6 FA 88 | C6 FA 88 C6 | FA 88 C6 FA) every four.
#   4 bits: a code is a hexadecimal digit.
#   8 bits: a code is a byte.
COUNTING = {
    2: [0xE4E4E4E4, 0xE4E4E4E4],
    3: [0x88FAC688, 0xC688FAC6, 0xFAC688FA],
    4: [0x76543210, 0xFEDCBA98, 0x76543210, 0xFEDCBA98],
    8: [
        0x03020100,
        0x07060504,
        0x0B0A0908,
        0x0F0E0D0C,
        0x13121110,
        0x17161514,
        0x1B1A1918,
        0x1F1E1D1C,
    ],
}

# The zero point of a symmetric grid is 2**(bits-1); v1 stores one less.
SYMMETRIC_ZEROS: Mapping[tuple[int, CheckpointFormat], list[int]] = {
    (2, "gptq"): [0x55555555, 0x55555555],
    (2, "gptq_v2"): [0xAAAAAAAA, 0xAAAAAAAA],
    (3, "gptq"): [0xDB6DB6DB, 0xB6DB6DB6, 0x6DB6DB6D],
    (3, "gptq_v2"): [0x24924924, 0x49249249, 0x92492492],
    (4, "gptq"): [0x77777777] * 4,
    (4, "gptq_v2"): [0x88888888] * 4,
    (8, "gptq"): [0x7F7F7F7F] * 8,
    (8, "gptq_v2"): [0x80808080] * 8,
}


def unsigned(words: Tensor) -> list[int]:
    """int32 words as they look in a hex dump."""
    return [word & 0xFFFFFFFF for word in words.flatten().tolist()]


@pytest.mark.parametrize("bits", BITS)
def test_codes_that_count_up_give_these_words(bits: int) -> None:
    """Codes lie low bits first in one little-endian bit stream; each column has words of its own."""
    up = (torch.arange(32) % (1 << bits)).to(torch.uint8)
    codes = torch.stack([up, torch.zeros_like(up)], 1)
    words = pack(codes, bits)
    assert words.dtype == torch.int32
    assert words.shape == (bits, 2)
    assert unsigned(words[:, 0]) == COUNTING[bits]
    assert unsigned(words[:, 1]) == [0] * bits


@pytest.mark.parametrize("bits", BITS)
def test_codes_are_packed_along_the_last_axis_with_the_same_words(bits: int) -> None:
    """Along the last axis each row has words of its own, and they follow each other."""
    up = (torch.arange(32) % (1 << bits)).to(torch.uint8)
    codes = torch.stack([torch.cat([up, up]), torch.zeros(64, dtype=torch.uint8)])
    words = pack(codes, bits, along_last=True)
    assert words.shape == (2, 2 * bits)
    assert words.is_contiguous()
    assert unsigned(words[0]) == COUNTING[bits] * 2
    assert unsigned(words[1]) == [0] * 2 * bits


@pytest.mark.parametrize(
    ("position", "code", "words"),
    [
        (0, 0b111, [0x00000007, 0x00000000, 0x00000000]),
        (9, 0b111, [0x38000000, 0x00000000, 0x00000000]),
        (10, 0b001, [0x40000000, 0x00000000, 0x00000000]),
        (10, 0b010, [0x80000000, 0x00000000, 0x00000000]),
        (10, 0b100, [0x00000000, 0x00000001, 0x00000000]),
        (11, 0b111, [0x00000000, 0x0000000E, 0x00000000]),
        (21, 0b001, [0x00000000, 0x80000000, 0x00000000]),
        (21, 0b110, [0x00000000, 0x00000000, 0x00000003]),
        (31, 0b111, [0x00000000, 0x00000000, 0xE0000000]),
    ],
)
def test_a_3_bit_code_may_straddle_two_words(position: int, code: int, words: list[int]) -> None:
    """Codes 10 and 21 of 32 leave their high bits to the next word, no other code does."""
    codes = torch.zeros(32, 1, dtype=torch.uint8)
    codes[position] = code
    assert unsigned(pack(codes, 3)) == words
    assert torch.equal(unpack(pack(codes, 3), 3), codes)


@given(st.sampled_from(BITS), st.integers(1, 4), st.integers(1, 9), st.booleans(), st.integers(0, 1000))
def test_unpack_undoes_pack(bits: int, runs: int, others: int, along_last: bool, seed: int) -> None:
    """Any codes of any shape come back, along either axis; the packed axis shrinks by bits / 32."""
    shape = (others, 32 * runs) if along_last else (32 * runs, others)
    codes = random_codes(seed, shape, bits)
    words = pack(codes, bits, along_last=along_last)
    assert words.shape == ((others, runs * bits) if along_last else (runs * bits, others))
    back = unpack(words, bits, along_last=along_last)
    assert back.dtype == torch.uint8
    assert back.is_contiguous()
    assert torch.equal(back, codes)


@given(st.sampled_from(BITS), st.integers(1, 3), st.integers(1, 5), st.integers(0, 1000))
def test_pack_undoes_unpack(bits: int, runs: int, columns: int, seed: int) -> None:
    """Any words come back: no bit of a word is unused."""
    random = torch.Generator().manual_seed(seed)
    words = torch.randint(-(2**31), 2**31, (runs * bits, columns), generator=random).to(torch.int32)
    assert torch.equal(pack(unpack(words, bits), bits), words)


@pytest.mark.parametrize(("bits", "format"), SYMMETRIC_ZEROS)
def test_zeros_of_a_symmetric_grid(bits: int, format: CheckpointFormat) -> None:
    """The zero point 2**(bits-1) is stored less one in v1, as it is in v2, and read back from either."""
    weight = GptqWeight(
        codes=torch.full((32, 64), 1 << (bits - 1), dtype=torch.uint8),
        scales=torch.ones(32, 1, dtype=torch.float16),
        zeros=torch.full((32, 1), 1 << (bits - 1), dtype=torch.uint8),
        group_index=torch.zeros(64, dtype=torch.int32),
        bits=bits,
        format=format,
    )
    tensors = weight.tensors()
    assert unsigned(tensors["qzeros"]) == SYMMETRIC_ZEROS[bits, format]
    assert not GptqWeight.read(tensors, bits, format).dequantize().any()


def test_the_bytes_of_a_small_4_bit_weight() -> None:
    """Rows are columns of qweight, groups are rows of scales and qzeros, and (code - zero) * scale is the weight."""
    codes = torch.zeros(32, 64, dtype=torch.uint8)
    codes[5] = torch.arange(64) % 16
    zeros = torch.full((32, 2), 8, dtype=torch.uint8)
    zeros[5] = torch.tensor([1, 15])
    scales = torch.ones(32, 2, dtype=torch.float16)
    scales[5] = torch.tensor([0.5, 2.0])
    weight = GptqWeight(codes, scales, zeros, torch.tensor([0, 1] * 32, dtype=torch.int32), 4)
    tensors = weight.tensors()
    assert list(tensors) == ["qweight", "qzeros", "scales", "g_idx"]
    assert unsigned(tensors["qweight"][:, 5]) == [0x76543210, 0xFEDCBA98] * 4
    assert not tensors["qweight"][:, :5].any()
    assert not tensors["qweight"][:, 6:].any()
    assert unsigned(tensors["qzeros"]) == [0x77077777, *[0x77777777] * 3, 0x77E77777, *[0x77777777] * 3]
    assert tensors["scales"].shape == (2, 32)
    assert tensors["scales"][:, 5].tolist() == [0.5, 2.0]
    assert tensors["g_idx"].tolist() == [0, 1] * 32
    row = weight.dequantize()[5, :16].tolist()
    assert row[0::2] == [(code - 1) * 0.5 for code in range(0, 16, 2)]
    assert row[1::2] == [(code - 15) * 2.0 for code in range(1, 16, 2)]


@given(st.sampled_from(BITS), st.sampled_from(["gptq", "gptq_v2"]), st.integers(0, 1000))
def test_a_weight_is_read_back_from_its_tensors(bits: int, format: CheckpointFormat, seed: int) -> None:
    """Codes, scales, zero points and groups come back as they were, whatever the format."""
    weight = random_weight(seed, bits, format)
    tensors = weight.tensors()
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    back = GptqWeight.read(tensors, bits, format)
    assert (back.bits, back.format) == (bits, format)
    for name in ("codes", "scales", "zeros", "group_index"):
        assert torch.equal(getattr(back, name), getattr(weight, name)), name
    assert torch.equal(back.dequantize(), weight.dequantize())


@pytest.mark.parametrize("bits", BITS)
def test_v1_does_not_store_a_zero_point_of_0(bits: int) -> None:
    """A zero point of 0 cannot be written as v1, and is written as 0 in v2."""
    weight = random_weight(0, bits, "gptq_v2")
    weight.zeros[3, 1] = 0
    back = GptqWeight.read(weight.tensors(), bits, "gptq_v2")
    assert torch.equal(back.zeros, weight.zeros)
    with pytest.raises(ValueError, match=r"^the gptq v1 format cannot store a zero point of 0$"):
        GptqWeight(weight.codes, weight.scales, weight.zeros, weight.group_index, bits).tensors()


@pytest.mark.parametrize("bits", BITS)
def test_all_ones_in_v1_zeros_are_read_as_0(bits: int) -> None:
    """Writers that subtract 1 from a zero point of 0 leave all ones; the weight is still read right."""
    weight = random_weight(0, bits, "gptq_v2")
    weight.zeros.zero_()
    stored = weight.tensors() | {"qzeros": torch.full((3, 96 // 32 * bits), -1, dtype=torch.int32)}
    assert torch.equal(GptqWeight.read(stored, bits).dequantize(), weight.dequantize())


def test_without_g_idx_groups_follow_each_other() -> None:
    """Writers of old left it out where columns keep their order."""
    weight = random_weight(0, 4, "gptq", columns=96)
    groups = torch.arange(96, dtype=torch.int32) // 32
    weight = replace(weight, group_index=groups)
    tensors = weight.tensors()
    del tensors["g_idx"]
    back = GptqWeight.read(tensors, 4)
    assert torch.equal(back.group_index, groups)
    assert torch.equal(back.dequantize(), weight.dequantize())


@pytest.mark.parametrize(("group", "message"), [(3, "from 0 to 3"), (-1, "from -1 to 2")])
def test_a_group_that_is_not_there_is_refused(group: int, message: str) -> None:
    """A damaged g_idx neither fails later nor counts from the end."""
    tensors = random_weight(0, 4, "gptq").tensors()
    tensors["g_idx"][5] = group
    with pytest.raises(CheckpointError) as caught:
        GptqWeight.read(tensors, 4)
    assert caught.value.message == f"g_idx names groups {message} of 3"


@pytest.mark.interop
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("format", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("method", ["pack_block", "pack_original"])
def test_gptqmodel_packs_the_same_bytes(
    packed_by_gptqmodel: dict[str, Tensor], method: str, format: CheckpointFormat, bits: int
) -> None:
    """Both of GPTQModel's ways to pack on the CPU, and its step from v2 to v1, give our tensors bit for bit."""
    ours = random_weight(bits, bits, format).tensors()
    for name, tensor in ours.items():
        theirs = packed_by_gptqmodel[f"from_1.{method}.{format}.{bits}.{name}"]
        assert theirs.dtype == tensor.dtype, name
        assert torch.equal(theirs, tensor), name
