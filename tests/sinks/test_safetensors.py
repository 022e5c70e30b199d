from __future__ import annotations

import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from llamaconv.digests import sha256_file
from llamaconv.errors import OutputError
from llamaconv.sinks.safetensors import SafetensorsWriter, ShardedWriter, encode_header, tensor_bytes
from llamaconv.sinks.sharding import Shard, index, shard
from llamaconv.sources.open import open_checkpoint
from llamaconv.sources.safetensors_header import DTYPES
from llamaconv.tensors import TensorSpec
from tests.sources.files import bits, random_tensor

NAMES = st.text(st.characters(codec="utf-8"), max_size=6).filter(lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
DRAWN = st.dictionaries(NAMES, st.tuples(st.sampled_from(list(DTYPES.values())), SHAPES), max_size=6)
METADATA: st.SearchStrategy[dict[str, str] | None] = (
    st.none() | st.just({}) | st.just({"format": "pt"}) | st.dictionaries(NAMES, NAMES, max_size=1)
)


def specs_of(tensors: dict[str, Tensor]) -> list[TensorSpec]:
    return [TensorSpec.of(name, tensor) for name, tensor in tensors.items()]


@given(DRAWN, METADATA, st.randoms(use_true_random=False))
def test_files_are_the_librarys_byte_for_byte(tmp_path_factory, drawn, metadata, random) -> None:  # type: ignore[no-untyped-def]
    """Any names, dtypes and shapes, written in any order, make the file that save_file makes."""
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
        writer.write(name, tensors[name])
    writer.close()
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.uint16, torch.bool])
def test_views_are_written_by_their_values(tmp_path: Path, dtype: torch.dtype) -> None:
    """Transposed, strided, expanded and gradient-carrying tensors are written as what they show."""
    base = random_tensor((4, 6), dtype)
    views = {"t": base.T, "s": base[:, ::2], "e": base[:1].expand(3, 6), "p": base[1:, 2:].permute(1, 0)}
    if dtype is torch.float32:
        views["g"] = torch.nn.Parameter(base.clone())
    writer = SafetensorsWriter(tmp_path / "x", specs_of(views))
    for name, view in views.items():
        writer.write(name, view)
    writer.close()
    loaded = load_file(tmp_path / "x")
    for name, view in views.items():
        assert (loaded[name].shape, loaded[name].dtype) == (view.shape, dtype)
        assert bits(loaded[name]) == bits(view.detach())


def test_lazily_conjugated_and_negated_views_are_written_by_their_values(tmp_path: Path) -> None:
    """torch keeps conjugates as a flag over the same memory; the file gets the values."""
    base = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64)
    views = {"conj": base.conj(), "neg": base.conj().imag}
    writer = SafetensorsWriter(tmp_path / "x", specs_of(views))
    for name, view in views.items():
        writer.write(name, view)
    writer.close()
    loaded = load_file(tmp_path / "x")
    assert loaded["conj"].tolist() == [1 - 2j, 3 + 4j]
    assert loaded["neg"].tolist() == [-2, 4]


@pytest.mark.parametrize("dtype", list(DTYPES.values()))
def test_contiguous_memory_is_not_copied(dtype: torch.dtype) -> None:
    """The bytes of a contiguous tensor, a slice of a larger one too, are its own memory."""
    tensor = random_tensor((5, 3), dtype)[1:3]
    view = tensor_bytes(tensor)
    assert np.frombuffer(view, dtype=np.uint8).ctypes.data == tensor.data_ptr()
    assert len(view) == 2 * 3 * dtype.itemsize


def test_mistakes_of_the_caller_are_refused(tmp_path: Path) -> None:
    """An unknown name, another shape or dtype, no data, and a second write change nothing in the file."""
    specs = [TensorSpec("a", (2, 3), torch.float32), TensorSpec("b", (1,), torch.int8)]
    path = tmp_path / "x"
    writer = SafetensorsWriter(path, specs)
    writer.write("a", torch.ones(2, 3))
    before = path.read_bytes()
    for name, tensor, message in [
        ("c", torch.ones(1), "'c' is not among this file's tensors"),
        ("a", torch.zeros(2, 3), "'a' was written already"),
        ("b", torch.ones(2, dtype=torch.int8), "announced b [1] int8, got b [2] int8 (cpu)"),
        ("b", torch.ones(1, dtype=torch.uint8), "announced b [1] int8, got b [1] uint8 (cpu)"),
        ("b", torch.ones(1, dtype=torch.int8, device="meta"), "announced b [1] int8, got b [1] int8 (meta)"),
    ]:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared whole below
            writer.write(name, tensor)
        assert str(caught.value) == f"{path}: {message}"
    assert path.read_bytes() == before
    assert (writer.missing, writer.bytes_written) == (("b",), 24)
    with pytest.raises(ValueError, match=r"x: never written: 'b'$"):
        writer.close()
    writer.abort()


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (
            [TensorSpec("a", (1,), torch.int8), TensorSpec("a", (2,), torch.int8)],
            "the tensor name 'a' is taken",
        ),
        ([TensorSpec("__metadata__", (1,), torch.int8)], "the tensor name '__metadata__' is taken"),
        ([TensorSpec("a", (1,), torch.complex128)], "safetensors cannot hold a [1] complex128"),
        (
            [TensorSpec("a", (), torch.float4_e2m1fn_x2)],
            "safetensors cannot hold the scalar a [] float4_e2m1fn_x2",
        ),
        ([TensorSpec("\ud800", (1,), torch.int8)], "'utf-8' codec can't encode"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_before_the_file_exists(
    tmp_path: Path, specs: list[TensorSpec], message: str
) -> None:
    """Names twice, reserved or unencodable, and foreign dtypes are refused."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
        SafetensorsWriter(tmp_path / "x", specs)
    assert str(caught.value).startswith(message)
    assert not (tmp_path / "x").exists()


def test_the_whole_size_is_reserved_at_once(tmp_path: Path) -> None:
    """Before the first tensor the file has its size and its blocks, and the header is readable."""
    writer = SafetensorsWriter(tmp_path / "x", [TensorSpec("a", (3, 2**18), torch.float32)])
    info = (tmp_path / "x").stat()
    writer.abort()
    assert info.st_size == 3 * 2**20 + len(encode_header([TensorSpec("a", (3, 2**18), torch.float32)])[0])
    assert info.st_blocks * 512 >= 3 * 2**20


def test_a_file_that_cannot_be_reserved_is_removed(tmp_path: Path) -> None:
    """A file system's size limit shows before any data, and the stump goes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
        with pytest.raises(OutputError) as caught:
            SafetensorsWriter(tmp_path / "x", [TensorSpec("a", (2**17,), torch.int8)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.message == f"{tmp_path / 'x'}: File too large."
    assert caught.value.hint == "The file system limits file sizes: use smaller shards."
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_the_files_place_is_not_followed(tmp_path: Path) -> None:
    """Writing never goes through a symbolic link to somewhere else."""
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "x").symlink_to("precious")
    with pytest.raises(OutputError, match="Too many levels of symbolic links"):
        SafetensorsWriter(tmp_path / "x", [])
    assert (tmp_path / "precious").read_text() == "mine"


def test_shards_are_final_one_by_one_and_read_back(tmp_path: Path) -> None:
    """A shard is whole and hashed with its last tensor; tensors may come in any order across shards."""
    tensors = {f"t{i}": random_tensor((i + 1, 4), torch.float32, seed=i) for i in range(5)}
    shards = shard(specs_of(tensors), max_bytes=100)
    assert len(shards) == 3
    writer = ShardedWriter(tmp_path, shards)
    assert list(tmp_path.iterdir()) == []
    for name in ("t3", "t0", "t2"):
        writer.write(name, tensors[name])
    assert writer.bytes_written == (4 + 1 + 3) * 16
    assert load_file(tmp_path / shards[1].filename)["t3"].equal(tensors["t3"])
    for name in ("t1", "t4"):
        writer.write(name, tensors[name])
    digests = writer.finish()
    assert list(digests) == [*(part.filename for part in shards), "model.safetensors.index.json"]
    assert digests == {name: sha256_file(tmp_path / name) for name in digests}
    assert sorted(digests) == sorted(path.name for path in tmp_path.iterdir())
    for part in shards:
        save_file({spec.name: tensors[spec.name] for spec in part.specs}, tmp_path / "theirs", {"format": "pt"})
        assert (tmp_path / part.filename).read_bytes() == (tmp_path / "theirs").read_bytes()
    (tmp_path / "theirs").unlink()
    reader = open_checkpoint(tmp_path).reader
    assert {name: reader[name].read().tolist() for name in reader.specs} == {
        name: tensor.tolist() for name, tensor in tensors.items()
    }


def test_the_index_file_is_what_transformers_writes(tmp_path: Path) -> None:
    """Two spaces of indent, a newline at the end, metadata first."""
    shards = shard([TensorSpec(name, (4,), torch.int8) for name in "ba"], max_bytes=4)
    writer = ShardedWriter(tmp_path, shards)
    for name in "ab":
        writer.write(name, torch.zeros(4, dtype=torch.int8))
    writer.finish()
    assert (tmp_path / "model.safetensors.index.json").read_text() == (
        '{\n  "metadata": {\n    "total_size": 8\n  },\n  "weight_map": {\n'
        '    "a": "model-00002-of-00002.safetensors",\n    "b": "model-00001-of-00002.safetensors"\n  }\n}\n'
    )
    assert index(shards)["metadata"] == {"total_size": 8}


def test_an_unfinished_checkpoint_is_not_finished(tmp_path: Path) -> None:
    """finish() names the incomplete shards and leaves no descriptor open; wrong writes are refused."""
    held = len(os.listdir("/dev/fd"))
    shards = shard([TensorSpec(name, (4,), torch.int8) for name in "abc"], max_bytes=8)
    writer = ShardedWriter(tmp_path, shards)
    zeros = torch.zeros(4, dtype=torch.int8)
    for name in "ac":
        writer.write(name, zeros)
    for name, message in [
        ("x", "'x' is in no shard"),
        ("c", "'c' was written already"),
        ("a", "'a' was written"),
    ]:
        with pytest.raises(ValueError, match=message):
            writer.write(name, zeros)
    with pytest.raises(ValueError, match=r"incomplete: model-00001-of-00002\.safetensors$"):
        writer.finish()
    assert len(os.listdir("/dev/fd")) == held
    writer.abort()


def test_shards_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    """A tensor in two shards, a file name twice, or an empty shard is a mistake of the caller."""
    a, b = TensorSpec("a", (1,), torch.int8), TensorSpec("b", (1,), torch.int8)
    with pytest.raises(ValueError, match="a tensor is in two shards"):
        ShardedWriter(tmp_path, [Shard("1", (a,)), Shard("2", (a, b))])
    for shards in ([Shard("1", (a,)), Shard("1", (b,))], [Shard("1", (a,)), Shard("2", ())]):
        with pytest.raises(ValueError, match="two shards share a file name, or one holds nothing"):
            ShardedWriter(tmp_path, shards)


def peak_kib(reset: bool) -> int:
    """The process's peak resident memory since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's resettable peak")
def test_a_copy_needs_the_memory_of_one_tensor(tmp_path: Path) -> None:
    """Forty tensors of 8 MiB through the writer and back raise the peak memory by a few of them."""
    specs = [TensorSpec(f"t{i}", (2, 2**20), torch.float32) for i in range(40)]
    writer = ShardedWriter(tmp_path, shard(specs, 2**26))
    before = peak_kib(reset=True)
    for i, spec in enumerate(specs):
        writer.write(spec.name, torch.full(spec.shape, float(i)))
    writer.finish()
    reader = open_checkpoint(tmp_path).reader
    for i, spec in enumerate(specs):
        assert reader[spec.name].read()[1, 7].item() == i
    assert peak_kib(reset=False) - before < 32 * 1024
