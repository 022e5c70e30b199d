"""What all weight files written in place have in common, whatever their format."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from time import monotonic, sleep

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llamaconv.digests import sha256_file
from llamaconv.errors import CheckpointError, OutputError
from llamaconv.extents import Extent
from llamaconv.sinks.in_place import InPlaceWriter, tensor_bytes
from llamaconv.sources.safetensors_header import DTYPES
from llamaconv.tensors import TensorSpec
from tests.sinks.files import SafetensorsWriter, TorchZipWriter, extent_of, specs_of
from tests.sources.files import bits, random_tensor

Writer = type[SafetensorsWriter] | type[TorchZipWriter]
FORMATS = pytest.mark.parametrize("writer_of", [SafetensorsWriter, TorchZipWriter])
A, B = TensorSpec("a", (2, 3), torch.float32), TensorSpec("b", (1,), torch.int8)


def load(path: Path, writer: InPlaceWriter) -> dict[str, Tensor]:
    loaded: dict[str, Tensor] = load_file(path) if isinstance(writer, SafetensorsWriter) else torch.load(path)
    return loaded


@FORMATS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.uint16, torch.bool])
def test_views_are_written_by_their_values(tmp_path: Path, writer_of: Writer, dtype: torch.dtype) -> None:
    """Transposed, strided, expanded and gradient-carrying tensors are written as what they show, and no more."""
    base = random_tensor((4, 6), dtype)
    views = {"t": base.T, "s": base[:, ::2], "e": base[:1].expand(3, 6), "p": base[1:, 2:].permute(1, 0)}
    if dtype is torch.float32:
        views["g"] = torch.nn.Parameter(base.clone())
    writer = writer_of(tmp_path / "x", specs_of(views))
    for name, view in views.items():
        writer.write(name, view)
    writer.close()
    loaded = load(tmp_path / "x", writer)
    for name, view in views.items():
        assert (loaded[name].shape, loaded[name].dtype) == (view.shape, dtype)
        assert bits(loaded[name]) == bits(view.detach())
        assert loaded[name].is_contiguous()


@FORMATS
def test_lazily_conjugated_and_negated_views_are_written_by_their_values(tmp_path: Path, writer_of: Writer) -> None:
    """torch keeps conjugates as a flag over the same memory; the file gets the values."""
    base = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64)
    views = {"conj": base.conj(), "neg": base.conj().imag}
    writer = writer_of(tmp_path / "x", specs_of(views))
    for name, view in views.items():
        writer.write(name, view)
    writer.close()
    loaded = load(tmp_path / "x", writer)
    assert loaded["conj"].tolist() == [1 - 2j, 3 + 4j]
    assert loaded["neg"].tolist() == [-2, 4]


@pytest.mark.parametrize("dtype", list(DTYPES.values()))
def test_contiguous_memory_is_not_copied(dtype: torch.dtype) -> None:
    """The bytes of a contiguous tensor, a slice of a larger one too, are its own memory."""
    tensor = random_tensor((5, 3), dtype)[1:3]
    view = tensor_bytes(tensor)
    assert np.frombuffer(view, dtype=np.uint8).ctypes.data == tensor.data_ptr()
    assert len(view) == 2 * 3 * dtype.itemsize


def test_an_axis_of_one_value_may_have_any_stride() -> None:
    """torch calls such a tensor contiguous although its stride is not one."""
    odd = torch.arange(4, dtype=torch.int16).as_strided((1,), (0,))
    assert (odd.is_contiguous(), bytes(tensor_bytes(odd))) == (True, bytes(2))


@FORMATS
def test_mistakes_of_the_caller_are_refused(tmp_path: Path, writer_of: Writer) -> None:
    """An unknown name, another shape or dtype, no data, too little data, a second write: the file stays as it is."""
    path = tmp_path / "x"
    (tmp_path / "source").write_bytes(b"0123")
    three = [extent_of(tmp_path / "source", 0, 2), extent_of(tmp_path / "source", 3, 1)]
    writer = writer_of(path, [A, B])
    writer.write("a", torch.ones(2, 3))
    before = path.read_bytes()
    for name, tensor, message in [
        ("c", torch.ones(1), "'c' is not among this file's tensors"),
        ("a", torch.zeros(2, 3), "'a' was written already"),
        ("b", torch.ones(2, dtype=torch.int8), "announced b [1] int8, got b [2] int8 (cpu)"),
        ("b", torch.ones(1, dtype=torch.uint8), "announced b [1] int8, got b [1] uint8 (cpu)"),
        ("b", torch.ones(1, dtype=torch.int8, device="meta"), "announced b [1] int8, got b [1] int8 (meta)"),
        ("c", three, "'c' is not among this file's tensors"),
        ("a", three, "'a' was written already"),
        ("b", three, "announced b [1] int8 of 1 bytes, got 3"),
        ("b", [], "announced b [1] int8 of 1 bytes, got 0"),
    ]:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared whole below
            writer.write(name, tensor) if isinstance(tensor, Tensor) else writer.copy(name, tensor)
        assert str(caught.value) == f"{path}: {message}"
    assert path.read_bytes() == before
    assert (writer.missing, writer.bytes_written) == (("b",), 24)
    with pytest.raises(ValueError, match=r"x: never written: 'b'$"):
        writer.close()
    with pytest.raises(ValueError, match=r"x: 'b' comes after the file was closed$"):
        writer.write("b", torch.ones(1, dtype=torch.int8))
    writer.abort()


@FORMATS
def test_what_failed_can_be_written_again(tmp_path: Path, writer_of: Writer) -> None:
    """A source that fails leaves the tensor to be written, and the file to be finished."""
    writer = writer_of(tmp_path / "x", [A])
    with pytest.raises(CheckpointError):
        writer.copy("a", [Extent(tmp_path / "nowhere", 0, A.nbytes, (24, 0))])
    assert (writer.missing, writer.bytes_written) == (("a",), 0)
    writer.write("a", torch.ones(2, 3))
    writer.close()
    assert load(tmp_path / "x", writer)["a"].tolist() == [[1.0] * 3] * 2


@FORMATS
def test_the_whole_size_is_reserved_at_once(tmp_path: Path, writer_of: Writer) -> None:
    """Before the first tensor the file has its size and its blocks."""
    writer = writer_of(tmp_path / "x", [TensorSpec("a", (3, 2**18), torch.float32)])
    info = (tmp_path / "x").stat()
    writer.write("a", torch.zeros(3, 2**18))
    writer.close()
    assert info.st_blocks * 512 >= info.st_size == (tmp_path / "x").stat().st_size > 3 * 2**20


@FORMATS
def test_a_file_that_cannot_be_reserved_is_removed(tmp_path: Path, writer_of: Writer) -> None:
    """A file system's size limit shows before any data, and the stump goes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    specs = [TensorSpec("a", (2**17,), torch.int8)]
    writer_of(tmp_path / "warm", specs).abort()  # what is loaded then may be compiled to files
    (tmp_path / "warm").unlink()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
        with pytest.raises(OutputError) as caught:
            writer_of(tmp_path / "x", specs)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.message == f"{tmp_path / 'x'}: File too large."
    assert caught.value.hint == (
        "Files may not be so large here: write elsewhere, raise `ulimit -f`, or make smaller shards."
    )
    assert list(tmp_path.iterdir()) == []


@FORMATS
def test_a_link_in_the_files_place_is_not_followed(tmp_path: Path, writer_of: Writer) -> None:
    """Writing never goes through a symbolic link to somewhere else."""
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "x").symlink_to("precious")
    with pytest.raises(OutputError, match="Too many levels of symbolic links"):
        writer_of(tmp_path / "x", [])
    assert (tmp_path / "precious").read_text() == "mine"


@FORMATS
def test_a_file_that_is_cut_short_meanwhile_is_not_called_whole(tmp_path: Path, writer_of: Writer) -> None:
    """If somebody truncates the file behind our back, closing it fails and says so."""
    writer = writer_of(tmp_path / "x", [A])
    writer.write("a", torch.ones(2, 3))
    os.truncate(tmp_path / "x", 60)
    with pytest.raises(OutputError) as caught:
        writer.close()
    assert caught.value.message == f"{tmp_path / 'x'}: the file was cut short while it was written."


class Watched(list[Extent]):
    """Extents that let somebody look on while they are copied."""

    def __init__(self, extents: list[Extent], begun: Event, go_on: Event) -> None:
        super().__init__(extents)
        self.begun, self.go_on = begun, go_on

    def __iter__(self) -> Iterator[Extent]:
        self.begun.set()
        assert self.go_on.wait(60)
        return super().__iter__()


@FORMATS
def test_a_tensor_is_one_threads_and_a_file_in_use_is_not_closed(tmp_path: Path, writer_of: Writer) -> None:
    """While one thread copies a tensor, others are refused it but not its neighbour; abort waits until it stopped."""
    (tmp_path / "source").write_bytes(bytes(range(24)))
    begun, go_on, held = Event(), Event(), len(os.listdir("/dev/fd"))
    writer = writer_of(tmp_path / "x", [A, B])
    with ThreadPoolExecutor(2) as pool:
        extents = Watched([extent_of(tmp_path / "source", 0, 24)], begun, go_on)
        copying = pool.submit(writer.copy, "a", extents)
        assert begun.wait(60)
        with pytest.raises(ValueError, match=r"x: 'a' is being written$"):
            writer.write("a", torch.ones(2, 3))
        writer.write("b", torch.ones(1, dtype=torch.int8))
        assert writer.missing == ("a",)
        ending = pool.submit(writer.abort)
        with pytest.raises(TimeoutError):
            ending.result(0.1)
        go_on.set()
        ending.result(60)
        with pytest.raises(ValueError, match=r"x: given up$"):
            copying.result(60)
    assert writer.missing == ("a",)
    assert len(os.listdir("/dev/fd")) == held


@FORMATS
def test_giving_up_does_not_wait_for_gigabytes(tmp_path: Path, writer_of: Writer) -> None:
    """A tensor of 4 GiB that is being copied holds up nobody who gives up."""
    size = 2**32
    with (tmp_path / "source").open("wb") as file:
        file.truncate(size)
    writer = writer_of(tmp_path / "x", [TensorSpec("a", (size,), torch.int8)])
    with ThreadPoolExecutor(1) as pool:
        copying = pool.submit(writer.copy, "a", [extent_of(tmp_path / "source", 0, size)])
        sleep(0.05)
        begun = monotonic()
        writer.abort()
        assert monotonic() - begun < 2
        with pytest.raises(ValueError, match=r"x: (given up|'a' comes after the file was closed)$"):
            copying.result(60)
    assert writer.missing == ("a",)
    (tmp_path / "x").unlink()


@FORMATS
def test_the_front_is_hashed_while_the_rest_is_to_come(tmp_path: Path, writer_of: Writer) -> None:
    """What lies before the first missing tensor can be hashed and made durable; in the end the digest is the file's."""
    tensors = {name: random_tensor((5, 3), torch.float32, seed=i) for i, name in enumerate("abc")}
    tensors["empty"] = torch.zeros(0)
    writer = writer_of(tmp_path / "x", specs_of(tensors))
    unsealed, fleeting = [], []
    for name in ("b", "a", "c", "empty"):
        writer.write(name, tensors[name])
        unsealed.append(writer.unsealed)
        writer.seal()
        fleeting.append(writer.fleeting)
        writer.sync()
        assert (writer.unsealed, writer.fleeting) == (0, 0)
        assert writer.complete == (name == "empty")
    assert unsealed == fleeting
    assert unsealed[0] >= 8  # what lies before the first tensor
    assert unsealed[1] >= 2 * 60
    assert unsealed[2] >= 60
    assert (sum(unsealed), unsealed[3]) == ((tmp_path / "x").stat().st_size, 0)
    assert writer.close() == sha256_file(tmp_path / "x")
    assert bits(load(tmp_path / "x", writer)["b"]) == bits(tensors["b"])
