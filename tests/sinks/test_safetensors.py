from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import save_file

from llamaconv.digests import sha256_file
from llamaconv.sinks.safetensors import encode_header
from llamaconv.sources.safetensors_header import DTYPES
from llamaconv.tensors import TensorSpec
from tests.sinks.files import SafetensorsWriter, scattered, specs_of
from tests.sources.files import random_tensor

NAMES = st.text(st.characters(codec="utf-8"), max_size=6).filter(lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
DRAWN = st.dictionaries(NAMES, st.tuples(st.sampled_from(list(DTYPES.values())), SHAPES), max_size=6)
METADATA: st.SearchStrategy[dict[str, str] | None] = (
    st.none() | st.just({}) | st.just({"format": "pt"}) | st.dictionaries(NAMES, NAMES, max_size=1)
)


@given(DRAWN, METADATA, st.randoms(use_true_random=False))
def test_files_are_the_librarys_byte_for_byte(tmp_path_factory, drawn, metadata, random) -> None:  # type: ignore[no-untyped-def]
    """Any names, dtypes and shapes, written or copied in any order, make the file that save_file makes."""
    tensors = {
        name: random_tensor(shape, dtype, seed=i)
        for i, (name, (dtype, shape)) in enumerate(drawn.items())
        if shape or dtype != DTYPES.get("F4")
    }
    assume(tensors or metadata != {})  # there the library forgets a brace and writes no JSON
    folder = tmp_path_factory.mktemp("bytes")
    save_file(tensors, folder / "theirs", metadata)
    writer = SafetensorsWriter(folder / "ours", specs_of(tensors), metadata)
    order = list(tensors)
    random.shuffle(order)
    for name in order:
        if random.random() < 0.5:
            writer.write(name, tensors[name])
        else:
            writer.copy(name, scattered(folder, tensors[name], random))
    assert writer.close() == sha256_file(folder / "theirs")
    assert (folder / "ours").read_bytes() == (folder / "theirs").read_bytes()
    assert writer.bytes_written == sum(spec.nbytes for spec in specs_of(tensors))


def test_every_dtype_in_one_file(tmp_path: Path) -> None:
    """All dtypes together are ranked as the library ranks them."""
    tensors = {f"{i % 3}.{code}": random_tensor((3, 2), dtype) for i, (code, dtype) in enumerate(DTYPES.items())}
    save_file(tensors, tmp_path / "theirs", {"format": "pt"})
    writer = SafetensorsWriter(tmp_path / "ours", specs_of(tensors))
    for name, tensor in tensors.items():
        writer.write(name, tensor)
    writer.close()
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_literal_bytes_of_a_file(tmp_path: Path) -> None:
    """Length, header padded to eight bytes, then data by dtype and name, with JSON's own escapes."""
    tensors = {'q"\n\x01é': torch.tensor([1, 2], dtype=torch.int16), "f": torch.tensor(1.0)}
    writer = SafetensorsWriter(tmp_path / "x", specs_of(tensors))
    for name, tensor in tensors.items():
        writer.write(name, tensor)
    writer.close()
    header = (
        '{"__metadata__":{"format":"pt"},"f":{"dtype":"F32","shape":[],"data_offsets":[0,4]},'
        '"q\\"\\n\\u0001é":{"dtype":"I16","shape":[2],"data_offsets":[4,8]}}'
    ).encode()
    padded = header + b" " * (-len(header) % 8)
    assert (tmp_path / "x").read_bytes() == (
        len(padded).to_bytes(8, "little") + padded + b"\x00\x00\x80\x3f" + b"\x01\x00\x02\x00"
    )
    assert encode_header(specs_of(tensors)) == (
        len(padded).to_bytes(8, "little") + padded,
        {"f": 8 + len(padded), 'q"\n\x01é': 12 + len(padded)},
        16 + len(padded),
    )


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (
            [TensorSpec("a", (1,), torch.int8), TensorSpec("a", (2,), torch.int8)],
            "the tensor name 'a' is taken",
        ),
        ([TensorSpec("__metadata__", (1,), torch.int8)], "safetensors keeps the name '__metadata__' for itself"),
        ([TensorSpec("a", (1,), torch.complex128)], "safetensors cannot hold a [1] complex128"),
        (
            [TensorSpec("a", (), torch.float4_e2m1fn_x2)],
            "safetensors cannot hold the scalar a [] float4_e2m1fn_x2",
        ),
        ([TensorSpec("\ud800", (1,), torch.int8)], "safetensors cannot hold the name '\\ud800', which is no text"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_before_the_file_exists(
    tmp_path: Path, specs: list[TensorSpec], message: str
) -> None:
    """Names twice, reserved or unencodable, and foreign dtypes are refused."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
        SafetensorsWriter(tmp_path / "x", specs)
    assert str(caught.value) == message
    assert not (tmp_path / "x").exists()
