from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from llamaconv.errors import CheckpointError
from llamaconv.sources.safetensors_header import MAX_HEADER_BYTES, read_header
from llamaconv.tensors import TensorSpec
from tests.sources.files import entry, write_raw

DAMAGED = "The file is damaged: download or copy it again."


def refused(path: Path) -> CheckpointError:
    """The error of reading the header of a file, which the library refuses to open too."""
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    with pytest.raises((SafetensorError, OSError)), safe_open(path, framework="pt"):
        pass
    assert caught.value.exit_code == 3
    return caught.value


def test_literal_bytes_of_the_format(tmp_path: Path) -> None:
    """A file written out by hand gives its specs in the order of the data, its offsets and its metadata."""
    path = tmp_path / "model.safetensors"
    header = (
        b'{"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[3,1],"data_offsets":[5,11]},'
        b'"a":{"dtype":"BOOL","shape":[5],"data_offsets":[0,5]},'
        b'"s":{"dtype":"I64","shape":[],"data_offsets":[11,19]}}'
    )
    path.write_bytes(b"\xd0\0\0\0\0\0\0\0" + header.ljust(0xD0) + bytes(19))
    read = read_header(path)
    assert list(read.specs.items()) == [
        ("a", TensorSpec("a", (5,), torch.bool)),
        ("b", TensorSpec("b", (3, 1), torch.bfloat16)),
        ("s", TensorSpec("s", (), torch.int64)),
    ]
    assert read.offsets == {"a": 216, "b": 221, "s": 227}
    assert read.metadata == {"format": "pt"}
    assert read.stamp == (235, path.stat().st_mtime_ns)


def test_packed_pairs_are_counted_as_torch_does(tmp_path: Path) -> None:
    """F4 is two elements to a byte: the header counts elements, the spec torch's pairs."""
    path = write_raw(tmp_path / "f4.safetensors", {"w": entry([3, 4], 0, 6, "F4")}, bytes(6))
    assert read_header(path).specs["w"] == TensorSpec("w", (3, 2), torch.float4_e2m1fn_x2)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "0 bytes are too few for a safetensors file."),
        (b"\2\0\0\0\0\0\0", "7 bytes are too few for a safetensors file."),
        (b"\3\0\0\0\0\0\0\0{}", "truncated: the header ends at byte 11, the file at byte 10."),
        (
            (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}",
            "a header of 100000001 bytes, where safetensors allows 100000000.",
        ),
        (b"\xff" * 16, "a header of 18446744073709551615 bytes, where safetensors allows 100000000."),
        (b"\2\0\0\0\0\0\0\0[]", "the header is not JSON (it does not begin with '{')."),
        (b"\3\0\0\0\0\0\0\0{,}", "the header is not JSON (Expecting property name enclosed in double quotes"),
        (b"\4\0\0\0\0\0\0\0{\xff\xff}", "the header is not valid UTF-8 (byte 1)."),
    ],
)
def test_a_file_without_a_header_says_why(tmp_path: Path, content: bytes, fault: str) -> None:
    """Too short, truncated, huge and not JSON are told apart; a huge length reserves no memory."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    error = refused(path)
    assert error.message.startswith(f"{path}: {fault}")
    assert error.hint == DAMAGED


def test_duplicate_names_are_refused(tmp_path: Path) -> None:
    """A header that names a tensor twice means two things, so it means nothing."""
    one = json.dumps(entry([1], 0, 4))
    path = write_raw(tmp_path / "x.safetensors", f'{{"a": {one}, "a": {one}}}'.encode(), bytes(4))
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert caught.value.message == f'{path}: the header is not usable: the key "a" stands in it twice.'


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ([1], "lacks dtype, shape or data_offsets"),
        ({"dtype": "F32", "shape": [1]}, "lacks dtype, shape or data_offsets"),
        (entry([1], 0, 4, "F31"), "has dtype 'F31', which is none of BOOL, F4, U8, I8, F8_E5M2, F8_E4M3, "),
        (entry([1], 0, 4) | {"dtype": 7}, "has dtype 7, which is none of "),
        (entry([-1], 0, 4), "has the impossible shape [-1]"),
        (entry([1], 0, 4) | {"shape": [1.0]}, "has the impossible shape [1.0]"),
        (entry([1], 0, 4) | {"shape": [True]}, "has the impossible shape [True]"),
        (entry([1], 0, 4) | {"shape": 1}, "has the impossible shape 1"),
        (entry([2**31, 2**31], 0, 4), "has the impossible shape [2147483648, 2147483648]"),
        (
            entry([1] * 60, 0, 4) | {"data_offsets": [0] * 60},
            f"has the impossible data_offsets [{'0, ' * 26}…",
        ),
        (entry([1], -4, 0), "has the impossible data_offsets [-4, 0]"),
        (entry([1], 4, 0), "has the impossible data_offsets [4, 0]"),
        (entry([1], 0, 4) | {"data_offsets": [4]}, "has the impossible data_offsets [4]"),
        (entry([3], 0, 4), "has 4 bytes of data, but F32 [3] takes 12"),
        (entry([0], 0, 4), "has 4 bytes of data, but F32 [0] takes 0"),
        (entry([], 0, 8), "has 8 bytes of data, but F32 [] takes 4"),
        (entry([3, 3], 0, 4, "F4"), "has shape [3, 3], but F4 comes in pairs along the last axis"),
    ],
)
def test_an_impossible_tensor_is_named_with_the_reason(tmp_path: Path, value: Any, fault: str) -> None:
    """Wrong types, unknown dtypes, negative or contradictory numbers are named with the tensor."""
    error = refused(write_raw(tmp_path / "x.safetensors", {"layer.w": value}, bytes(4)))
    assert error.message.startswith(f"{tmp_path / 'x.safetensors'}: tensor 'layer.w' {fault}")


@pytest.mark.parametrize(
    ("table", "size", "fault"),
    [
        (
            {"a": entry([2], 0, 8), "b": entry([2], 4, 12)},
            12,
            "tensor 'b' begins at byte 4 of the data and overlaps 'a', which ends at byte 8.",
        ),
        (
            {"a": entry([2], 0, 8), "b": entry([2], 0, 8)},
            8,
            "tensor 'b' begins at byte 0 of the data and overlaps 'a', which ends at byte 8.",
        ),
        (
            {"a": entry([4], 0, 16), "e": entry([0], 8, 8)},
            16,
            "tensor 'e' begins at byte 8 of the data and overlaps 'a', which ends at byte 16.",
        ),
        (
            {"a": entry([1], 0, 4), "b": entry([1], 8, 12)},
            12,
            "bytes 4 to 8 of the data, after 'a', belong to no tensor.",
        ),
        ({"a": entry([1], 4, 8)}, 8, "bytes 0 to 4 of the data, at the start, belong to no tensor."),
        ({"a": entry([3], 0, 12)}, 11, "truncated: the header describes 12 bytes of data, the file has 11."),
        (
            {"a": entry([3], 0, 12)},
            13,
            "trailing bytes: the header describes 12 bytes of data, the file has 13.",
        ),
        ({}, 1, "trailing bytes: the header describes 0 bytes of data, the file has 1."),
        (
            {"a": entry([2**40], 0, 2**42)},
            4,
            "truncated: the header describes 4398046511104 bytes of data, the file has 4.",
        ),
        ({"__metadata__": {"format": 1}}, 0, "__metadata__ is not an object of strings."),
        ({"__metadata__": "pt"}, 0, "__metadata__ is not an object of strings."),
    ],
)
def test_data_must_be_covered_exactly_once(tmp_path: Path, table: Any, size: int, fault: str) -> None:
    """Overlaps, holes, truncated and trailing data are told apart, with the bytes."""
    error = refused(write_raw(tmp_path / "x.safetensors", table, bytes(size)))
    assert error.message == f"{tmp_path / 'x.safetensors'}: {fault}"


def test_a_thousand_faults_are_counted_not_listed(tmp_path: Path) -> None:
    """Past a hundred lines the message counts."""
    path = write_raw(tmp_path / "x.safetensors", {f"t{i}": 0 for i in range(1000)})
    lines = refused(path).message.splitlines()
    assert len(lines) == 101
    assert lines[-1] == "… and 900 more."


@given(st.binary(max_size=60), st.binary(max_size=8))
def test_garbage_never_escapes_our_errors(tmp_path_factory: pytest.TempPathFactory, raw: bytes, data: bytes) -> None:
    """Whatever stands in the header, the answer is a header or an input error."""
    path = write_raw(tmp_path_factory.mktemp("garbage") / "x.safetensors", b"{" + raw, data)
    try:
        read_header(path)
    except CheckpointError:
        return
    with safe_open(path, framework="pt") as file:
        assert not file.keys()


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.floats() | st.sampled_from(["F32", "BOOL", "F4", "a"]),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@given(
    st.dictionaries(
        st.text(max_size=3),
        st.fixed_dictionaries({"dtype": _VALUES, "shape": _VALUES, "data_offsets": _VALUES}),
    )
)
def test_no_table_of_values_escapes_our_errors(tmp_path_factory: pytest.TempPathFactory, table: Any) -> None:
    """Entries of any JSON value are either a header that the library accepts too, or refused."""
    path = write_raw(tmp_path_factory.mktemp("values") / "x.safetensors", table, bytes(4))
    try:
        header = read_header(path)
    except CheckpointError:
        return
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(header.specs)
