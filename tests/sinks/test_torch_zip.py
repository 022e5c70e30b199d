from __future__ import annotations

import io
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llamaconv.digests import sha256_file
from llamaconv.disk import write_at
from llamaconv.sinks.torch_zip import torch_skeleton
from llamaconv.tensors import TensorSpec
from tests.sinks.files import TorchZipWriter, scattered, specs_of
from tests.sinks.processes import ENVIRONMENT
from tests.sources.files import bits, random_tensor

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")

DTYPES = [getattr(torch, name) for name in (
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
    "float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128",
    "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2",
    "bits8", "bits16", "bits1x8", "bits2x4", "bits4x2",
) if hasattr(torch, name)]  # fmt: skip
NAMES = st.text(st.characters(codec="utf-8"), max_size=6)
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
DRAWN = st.dictionaries(NAMES, st.tuples(st.sampled_from(DTYPES), SHAPES), max_size=6)


def drawn_tensors(drawn: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> dict[str, Tensor]:
    return {name: random_tensor(shape, dtype, seed=i) for i, (name, (dtype, shape)) in enumerate(drawn.items())}


def write(path: Path, tensors: dict[str, Tensor]) -> str:
    writer = TorchZipWriter(path, specs_of(tensors))
    for name, tensor in tensors.items():
        writer.write(name, tensor)
    return writer.close()


def require_equal(loaded: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    assert list(loaded) == list(tensors)
    for name, tensor in tensors.items():
        assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape)
        assert loaded[name].stride() == tensor.stride()
        assert bits(loaded[name]) == bits(tensor)


@given(DRAWN, st.randoms(use_true_random=False))
def test_torch_loads_what_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: dict[str, tuple[torch.dtype, tuple[int, ...]]],
    random: Random,
) -> None:
    """Any names, dtypes and shapes, written or copied in any order, come back from torch.load's defaults and mmap."""
    tensors, folder = drawn_tensors(drawn), tmp_path_factory.mktemp("torch")
    writer = TorchZipWriter(folder / "x.pth", specs_of(tensors))
    for name in random.sample(list(tensors), len(tensors)):
        if random.random() < 0.5:
            writer.write(name, tensors[name])
        else:
            writer.copy(name, scattered(folder, tensors[name], random))
    assert writer.close() == sha256_file(folder / "x.pth")
    require_equal(torch.load(folder / "x.pth"), tensors)
    require_equal(torch.load(folder / "x.pth", mmap=True), tensors)


def listing(file: io.BytesIO | Path) -> list[tuple[str, int, int, int, int]]:
    """Name, size, CRC, flags and compression of each record that depends on the tensors alone."""
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        return [
            (info.filename, info.file_size, info.CRC, info.flag_bits, info.compress_type)
            for info in archive.infolist()
            if info.filename not in ("archive/data.pkl", "archive/.data/serialization_id")
        ]


@given(DRAWN)
def test_records_are_torch_saves(
    tmp_path_factory: pytest.TempPathFactory, drawn: dict[str, tuple[torch.dtype, tuple[int, ...]]]
) -> None:
    """Names, order, sizes, flags and CRCs of the records are torch.save's, and a zip reader finds no fault."""
    tensors, path, theirs = drawn_tensors(drawn), tmp_path_factory.mktemp("records") / "x", io.BytesIO()
    write(path, tensors)
    torch.save(tensors, theirs, pickle_protocol=2)
    assert listing(path) == listing(theirs)


def test_every_dtype_in_one_file(tmp_path: Path) -> None:
    """All dtypes that torch.save takes, scalars and tensors without elements among them."""
    shapes = [(3, 2), (), (0, 4)]
    tensors = {f"{dtype} {shape}": random_tensor(shape, dtype) for dtype in DTYPES for shape in shapes}
    write(tmp_path / "x", tensors)
    require_equal(torch.load(tmp_path / "x"), tensors)
    require_equal(torch.load(tmp_path / "x", mmap=True), tensors)


def test_literal_bytes_of_a_record(tmp_path: Path) -> None:
    """The data lies 64-byte aligned at its record's place; the CRC is behind it and in the central directory."""
    write(tmp_path / "x", {"a": torch.tensor(list(b"123456789"), dtype=torch.uint8), "b": torch.zeros(2)})
    data = (tmp_path / "x").read_bytes()
    nine, crc = (9).to_bytes(4, "little"), (0xCBF43926).to_bytes(4, "little")  # the CRC's check value
    begin = data.index(b"123456789")
    assert begin % 64 == 0
    assert begin == torch.load(tmp_path / "x", map_location="meta")["a"].untyped_storage()._checkpoint_offset
    assert data[begin:].startswith(b"123456789" + b"PK\x07\x08" + crc + nine + nine)
    entry = data.rindex(b"archive/data/0") - 46
    assert data[entry : entry + 4] == b"PK\x01\x02"
    assert data[entry + 16 : entry + 28] == crc + nine + nine
    assert data.count(crc) == 2


def test_unzip_finds_no_fault(tmp_path: Path) -> None:
    """Info-ZIP's own test passes."""
    unzip = shutil.which("unzip")
    if unzip is None:
        pytest.skip("there is no unzip")
    write(tmp_path / "x.pth", {f"t{i}": random_tensor((i, 3), torch.bfloat16, seed=i) for i in range(50)})
    done = subprocess.run([unzip, "-tq", tmp_path / "x.pth"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (
        0,
        [f"No errors detected in compressed data of {tmp_path / 'x.pth'}."],
    )


PRINT_DIGEST = """
import sys
from pathlib import Path
import torch
from llamaconv.tensors import TensorSpec
from tests.sinks.files import TorchZipWriter

writer = TorchZipWriter(Path(sys.argv[1]), [TensorSpec(name, (3, 5), torch.float16) for name in "abc"])
for name in "cab":
    writer.write(name, torch.full((3, 5), ord(name), dtype=torch.float16))
print(writer.close())
"""


def test_the_bytes_depend_on_nothing_but_the_tensors(tmp_path: Path) -> None:
    """Another file name, order of writing, process, hash seed or default device makes no difference."""
    tensors = {name: torch.full((3, 5), ord(name), dtype=torch.float16) for name in "abc"}
    digests = {write(tmp_path / "one", tensors)}
    with torch.device("meta"), torch.inference_mode():
        writer = TorchZipWriter(tmp_path / "other.pth", specs_of(tensors))
    for name in "bca":
        writer.write(name, tensors[name])
    digests.add(writer.close())
    command = [sys.executable, "-c", PRINT_DIGEST, tmp_path / "elsewhere.bin"]
    environment = {**ENVIRONMENT, "PYTHONHASHSEED": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert {*digests, done.stdout.strip() or done.stderr} == digests
    assert len(digests) == 1


def test_records_and_offsets_over_four_gigabytes(tmp_path: Path) -> None:
    """A record over 4 GiB, what follows it, and the places of their checksums are found, in zip64's fields."""
    small = {"first": random_tensor((7,), torch.int16), "last": random_tensor((3, 5), torch.bfloat16, seed=1)}
    big, first, last = TensorSpec("big", (2**32 + 3,), torch.uint8), *specs_of(small)
    skeleton = torch_skeleton([first, big, TensorSpec("none", (0,), torch.float32), last])
    data = {name: bits(tensor) for name, tensor in small.items()} | {"big": b"end"}  # after 4 GiB of zeros
    places = {"first": 0, "big": 2**32, "last": 0}
    crcs = {name: zlib.crc32(data[name]) for name in small} | {"big": 0x01234567}  # adding it up takes seconds
    with (tmp_path / "x").open("wb") as file:
        for offset, piece in skeleton.pieces:
            write_at(file.fileno(), piece, offset)
        assert list(skeleton.checksums) == list(places)
        for name, place in places.items():
            write_at(file.fileno(), data[name], skeleton.offsets[name] + place)
            for where in skeleton.checksums[name]:
                write_at(file.fileno(), crcs[name].to_bytes(4, "little"), where)
    assert (tmp_path / "x").stat().st_size == skeleton.nbytes
    with zipfile.ZipFile(tmp_path / "x") as archive:
        infos = {info.filename: (info.file_size, info.CRC) for info in archive.infolist()}
        for number, name in [(0, "first"), (3, "last")]:
            assert archive.read(f"archive/data/{number}") == data[name]  # it checks the CRC
    assert infos["archive/data/1"] == (big.nbytes, crcs["big"])
    with (tmp_path / "x").open("rb") as file:
        file.seek(skeleton.offsets["big"] + big.nbytes)
        assert file.read(24) == b"PK\x07\x08" + struct.pack("<IQQ", crcs["big"], big.nbytes, big.nbytes)
    loaded = torch.load(tmp_path / "x", mmap=True)
    assert loaded["big"][-4:].tolist() == [0, *b"end"]
    require_equal({name: loaded[name] for name in small}, small)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([TensorSpec("a", (1,), torch.int8), TensorSpec("a", (2,), torch.int8)], "the tensor name 'a' is taken"),
        ([TensorSpec("a", (2, 3), torch.qint8)], "torch.save cannot hold a [2, 3] qint8"),
        ([TensorSpec("a", (), torch.int8), TensorSpec("b", (1,), torch.uint4)], "torch.save cannot hold b [1] uint4"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_before_the_file_exists(
    tmp_path: Path, specs: list[TensorSpec], message: str
) -> None:
    """Names twice, and dtypes that are not bytes in a row, are refused."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
        TorchZipWriter(tmp_path / "x", specs)
    assert str(caught.value) == message
    assert not (tmp_path / "x").exists()


def test_a_change_of_torch_saves_ways_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If torch.save left out other records than one for each tensor, nothing would be written."""
    real = torch.save

    def save(obj: object, file: io.BytesIO, **how: int) -> None:
        real(obj["a"] if isinstance(obj, dict) else obj, file, **how)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(RuntimeError, match=r"^torch\.save did not write one record for each tensor, in their order$"):
        TorchZipWriter(tmp_path / "x", [TensorSpec(name, (3,), torch.int8) for name in "ab"])
    assert not (tmp_path / "x").exists()
