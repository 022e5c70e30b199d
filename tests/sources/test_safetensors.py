from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from llamaconv.errors import CheckpointError
from llamaconv.sources.files import FilesReader
from llamaconv.sources.safetensors import read_safetensors
from llamaconv.sources.safetensors_header import DTYPES
from llamaconv.tensors import TensorSpec
from tests.sources.files import bits, entry, random_tensor, write_raw


def reader_of(*paths: Path) -> FilesReader:
    return FilesReader([read_safetensors(path) for path in paths])


@given(st.data())
def test_reads_what_the_library_reads(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Every dtype and shape, scalars and empty tensors too, comes back bit for bit."""
    shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
    drawn = data.draw(st.lists(st.tuples(st.sampled_from(list(DTYPES.values())), shapes), max_size=6))
    tensors = {
        f"t{i}": random_tensor(shape, dtype, seed=i)
        for i, (dtype, shape) in enumerate(drawn)
        if shape or dtype != DTYPES.get("F4")
    }
    path = tmp_path_factory.mktemp("any") / "model.safetensors"
    save_file(tensors, path)
    reader = reader_of(path)
    assert dict(reader.specs) == {name: TensorSpec.of(name, tensor) for name, tensor in tensors.items()}
    length = int.from_bytes(path.read_bytes()[:8], "little")
    assert list(reader.specs) == list(json.loads(path.read_bytes()[8 : 8 + length]))
    with safe_open(path, framework="pt") as file:
        for name, tensor in tensors.items():
            read = reader[name].read()
            assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
            assert bits(read) == bits(file.get_tensor(name)) == bits(tensor)
            raw = [path.read_bytes()[e.offset : e.offset + e.nbytes] for e in reader[name].extents]
            assert raw == [bits(tensor)] * bool(tensor.numel())


def test_a_read_tensor_is_its_callers_own(tmp_path: Path) -> None:
    """Each read gives new memory of exactly the tensor's size, which may be written to."""
    save_file({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(5)}, tmp_path / "model.safetensors")
    lazy = reader_of(tmp_path / "model.safetensors")["a"]
    first, second = lazy.read(), lazy.read()
    first.zero_()
    assert second.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert second.untyped_storage().nbytes() == 24
    assert lazy.spec == TensorSpec("a", (2, 3), torch.float32)


def test_reading_ignores_the_default_device(tmp_path: Path) -> None:
    """Under a default device of "meta", as when a model is built, a read tensor still has its data."""
    save_file({"a": torch.tensor([1.5, 2.5])}, tmp_path / "model.safetensors")
    lazy = reader_of(tmp_path / "model.safetensors")["a"]
    with torch.device("meta"):
        read = lazy.read()
    assert read.tolist() == [1.5, 2.5]


def test_unknown_names_come_with_the_nearest_ones(tmp_path: Path) -> None:
    """A misspelt name is answered with the names that resemble it."""
    save_file({f"model.layers.{i}.mlp.up_proj.weight": torch.zeros(1) + i for i in range(3)}, tmp_path / "m")
    with pytest.raises(CheckpointError) as caught:
        reader_of(tmp_path / "m")["model.layers.1.mlp.up_proj.weigth"]
    assert caught.value.message == "The checkpoint has no tensor 'model.layers.1.mlp.up_proj.weigth'."
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("The nearest names are 'model.layers.1.mlp.up_proj.weight', 'model.layers.")
    with pytest.raises(CheckpointError) as caught:
        reader_of(tmp_path / "m")["?"]
    assert caught.value.hint is None


def test_two_hundred_shards_need_one_descriptor(tmp_path: Path) -> None:
    """Headers, lazy tensors and reads of 200 files work where only a few descriptors are left."""
    for i in range(200):
        save_file({f"t{i}": torch.full((2, 3), float(i))}, tmp_path / f"{i:03}.safetensors")
    held = len(os.listdir("/dev/fd"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/dev/fd"))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 4, limits[1]))
        reader = reader_of(*sorted(tmp_path.iterdir()))
        lazies = [reader[name] for name in reader.specs]
        sums = [lazy.read().sum().item() for lazy in lazies]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert sums == [6.0 * i for i in range(200)]
    assert len(os.listdir("/dev/fd")) == held


def test_a_file_that_changes_after_its_header_was_read_is_noticed(tmp_path: Path) -> None:
    """Bytes read by the offsets of an older header would be garbage, so they are not returned."""
    path = write_raw(tmp_path / "x.safetensors", {"a": entry([2], 0, 8)}, bytes(8))
    lazy = reader_of(path)["a"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError) as caught:
        lazy.read()
    assert caught.value.message == (
        f"{path}: the file changed after its header was read, so its tensors cannot be trusted."
    )
    path.unlink()
    with pytest.raises(CheckpointError) as caught:
        lazy.read()
    assert caught.value.message == f"{path}: cannot be read: No such file or directory."


def test_only_headers_are_read_before_read(tmp_path: Path) -> None:
    """A checkpoint of 1 TiB of holes opens at once."""
    path = write_raw(tmp_path / "x.safetensors", {"a": entry([2**38], 0, 2**40), "b": entry([], 2**40, 2**40 + 4)})
    os.truncate(path, path.stat().st_size + 2**40 + 4)
    reader = reader_of(path)
    assert reader.specs["a"].nbytes == 2**40
    assert reader["b"].read().item() == 0.0
