from __future__ import annotations

import os
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from torch import Tensor

from llamaconv.errors import CheckpointError, InputError, UnsupportedError
from llamaconv.sources.safetensors_header import DTYPES
from llamaconv.sources.torch_zip import read_torch_zip
from llamaconv.tensors import TensorSpec
from tests.sources.torch_files import Storage, pickled, tensor_of, write_archive, write_holes, write_zip
from tests.sources.views import assert_same, state_dicts

DAMAGED = "The file is damaged: download or copy it again."


def refused(path: Path, kind: type[InputError] = CheckpointError) -> InputError:
    with pytest.raises(kind) as caught:
        read_torch_zip(path)
    assert caught.value.exit_code == 3
    return caught.value


def made(path: Path, content: object, **records: bytes) -> Path:
    """An archive of a pickle of ``content`` and of storages ``s0`` and so on."""
    return write_archive(path, {"data.pkl": pickled(content), **{f"data/{key}": data for key, data in records.items()}})


@given(state_dicts(list(DTYPES.values())))
def test_reads_what_torch_reads(tmp_path_factory: pytest.TempPathFactory, content: dict[str, Tensor]) -> None:
    """Tensors of every dtype, views, transposes, expansions and aliases come back bit for bit; extents are right."""
    path = write_zip(tmp_path_factory.mktemp("any") / "model.pth", content)
    assert_same(read_torch_zip(path), torch.load(path, weights_only=True))


def test_parameters_and_tensors_with_attributes_are_tensors(tmp_path: Path) -> None:
    """What requires gradients, is a parameter, or carries Python attributes reads like any other."""
    marked = torch.nn.Parameter(torch.arange(4.0))
    marked.note = "split along 0"  # type: ignore[attr-defined]
    noted = torch.arange(2)
    noted.note = "a buffer"  # type: ignore[attr-defined]
    content = OrderedDict(
        p=torch.nn.Parameter(torch.ones(2, 3)), m=marked, n=noted, g=torch.ones(1, requires_grad=True)
    )
    path = write_zip(tmp_path / "x.pth", content)
    assert_same(read_torch_zip(path), {name: tensor.detach() for name, tensor in content.items()})


def test_a_modules_own_state_dict_reads(tmp_path: Path) -> None:
    """Its metadata, an attribute of the dictionary, is left where it is."""
    module = torch.nn.BatchNorm1d(3)
    read = read_torch_zip(write_zip(tmp_path / "x.pth", module.state_dict()))
    assert_same(read, module.state_dict())


def test_literal_bytes_of_the_format(tmp_path: Path) -> None:
    """An archive written out by hand gives its tensors, their offsets and their values."""
    instructions = (
        b"\x80\x02}(X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n"
        b"((X\x07\x00\x00\x00storagectorch\nHalfStorage\nX\x01\x00\x00\x007X\x03\x00\x00\x00cpuK\x04tQ"
        b"K\x01K\x03\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtRu."
    )
    file, directory = b"", b""
    values = struct.pack("<4e", 0.5, 1, 1.5, -2)
    for name, body in ((b"x/data.pkl", instructions), (b"x/version", b"3"), (b"x/data/7", values)):
        sizes = struct.pack("<3L2H", 0, len(body), len(body), len(name), 0)
        directory += b"PK\1\2" + bytes(12) + sizes + bytes(10) + struct.pack("<L", len(file)) + name
        file += b"PK\3\4" + bytes(10) + sizes + name + body
    path = tmp_path / "x.pth"
    path.write_bytes(file + directory + b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 3, 3, len(directory), len(file), 0))
    read = read_torch_zip(path)
    assert dict(read.specs) == {"w": TensorSpec("w", (3,), torch.float16)}
    assert read["w"].extents[0].offset == file.index(b"x/data/7") + 8 + 2
    assert read["w"].read().tolist() == [1, 1.5, -2]
    assert torch.load(path, weights_only=True)["w"].tolist() == [1, 1.5, -2]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_any_pickle_protocol(tmp_path: Path, protocol: int) -> None:
    """torch's default refuses protocols 4 and 5; they say nothing else."""
    path = write_zip(tmp_path / "x.pth", OrderedDict(a=torch.arange(3)), protocol)
    assert read_torch_zip(path)["a"].read().tolist() == [0, 1, 2]


def test_storages_may_be_numbered(tmp_path: Path) -> None:
    """The keys of lit-llama's and litgpt's writer are numbers where torch's are strings of digits."""
    content = {"a": tensor_of(Storage(0, 1), 0, (1,), (1,)), "b": tensor_of(Storage(1, 1), 0, (1,), (1,))}
    records = {"data/0": bytes(4), "data/1": struct.pack("<f", 2.5), "data.pkl": pickled(content, 5)}
    read = read_torch_zip(write_archive(tmp_path / "lit-llama.pth", records))
    assert (read["a"].read().tolist(), read["b"].read().tolist()) == ([0], [2.5])


def test_records_are_found_wherever_they_lie(tmp_path: Path) -> None:
    """In a file packed anew, its records in another order than the pickle's, no tensor is taken for another."""
    written = write_zip(tmp_path / "written.pth", {name: torch.full((4,), float(i)) for i, name in enumerate("abcd")})
    with zipfile.ZipFile(written) as archive:
        records = {name.partition("/")[2]: archive.read(name) for name in reversed(archive.namelist())}
    path = write_archive(tmp_path / "packed.pth", {"version": b"3", **records}, top="packed")
    assert_same(read_torch_zip(path), torch.load(written, weights_only=True))


@pytest.mark.parametrize(
    ("storage", "offset", "shape", "stride", "fault"),
    [
        (4, 0, (5,), (1,), "reaches to byte 20 of a storage of 16"),
        (4, 3, (2,), (1,), "reaches to byte 20 of a storage of 16"),
        (4, 0, (2, 2), (3, 1), "reaches to byte 20 of a storage of 16"),
        (4, 0, (2,), (2**62,), f"reaches to byte {4 * (2**62 + 1)} of a storage of 16"),
        (4, -1, (2,), (1,), "has the impossible shape [2] with strides [1] from element -1"),
        (4, 3, (2,), (-1,), "has the impossible shape [2] with strides [-1] from element 3"),
        (4, 0, (-2,), (1,), "has the impossible shape [-2] with strides [1] from element 0"),
        (4, 0, (2, 2), (1,), "has the impossible shape [2, 2] with strides [1] from element 0"),
        (4, 0, (2**30, 2**30), (0, 0), "has the impossible shape [1073741824, 1073741824] with strides [0, 0] from"),
        (5, 0, (4,), (1,), "is in the storage 's' of 20 bytes, of which there are 16"),
        (2**61, 0, (2**61,), (1,), f"is in the storage 's' of {2**63} bytes, of which there are 16"),
    ],
)
def test_a_tensor_that_cannot_be_is_named(
    tmp_path: Path,
    storage: int,
    offset: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    fault: str,
) -> None:
    """Numbers that point outside the storage, or claim more than the record has, never become a tensor."""
    view = tensor_of(Storage("s", storage), offset, shape, stride)
    path = made(
        tmp_path / "x.pth", {"w": view, "good": tensor_of(Storage("g", 1), 0, (1,), (1,))}, s=bytes(16), g=bytes(4)
    )
    error = refused(path)
    assert error.message.startswith(f"{path}: tensor 'w' {fault}")
    assert (len(error.message.splitlines()), error.hint) == (1, DAMAGED)


def test_all_impossible_tensors_are_in_one_error(tmp_path: Path) -> None:
    """A storage without a record, and a view past the end of one."""
    gone = tensor_of(Storage("9", 1), 0, (1,), (1,))
    past = tensor_of(Storage("0", 1), 1, (1,), (1,))
    path = made(tmp_path / "x.pth", {"a": gone, "b": past}, **{"0": bytes(4)})
    assert refused(path).message.splitlines() == [
        f"{path}: tensor 'a' is in the storage '9', which is missing.",
        f"{path}: tensor 'b' reaches to byte 8 of a storage of 4.",
    ]


def test_odd_strides_along_an_axis_of_one_are_harmless(tmp_path: Path) -> None:
    """They are never stepped along, so they may be anything, even what torch cannot take."""
    path = made(
        tmp_path / "x.pth", {"w": tensor_of(Storage("s", 4), 0, (1, 2), (2**62, 2))}, s=struct.pack("<4f", *range(4))
    )
    assert read_torch_zip(path)["w"].read().tolist() == [[0, 2]]


@pytest.mark.parametrize(
    ("records", "kind", "fault"),
    [
        ({"data.pkl": b"", "constants.pkl": b""}, UnsupportedError, "a TorchScript archive, which holds a program."),
        ({"readme.txt": b""}, UnsupportedError, "a zip archive, but not one of torch.save."),
        (
            {"data.pkl": pickled({}), "byteorder": b"big"},
            UnsupportedError,
            "written with the bytes of each number in big-endian order.",
        ),
        ({"data.pkl": pickled({}), "byteorder": b"middle"}, CheckpointError, "the byte order is b'middle'."),
        (
            {"data.pkl": bytes(32_000_001)},
            CheckpointError,
            "a pickle of 32000001 bytes, where 32000000 are enough.",
        ),
    ],
)
def test_other_archives_are_told_apart(
    tmp_path: Path, records: dict[str, bytes], kind: type[InputError], fault: str
) -> None:
    """TorchScript, any other zip, and bytes in the other order are named for what they are."""
    path = write_archive(tmp_path / "x.pth", records)
    assert refused(path, kind).message == f"{path}: {fault}"


def strided() -> dict[str, tuple[Tensor, int]]:
    """Views of 12 MB, and how many elements one slice spans where 2**20 make 4 MB."""
    base = torch.arange(3_000_000, dtype=torch.int32)
    return {
        "columns": (base.view(1500, 2000).t(), 524 * 2000),  # 524 rows of 2000
        "steps": (base[::7], 149_796 * 7 - 6),  # 149_796 elements
        "wide": (base.view(3, 1_000_000)[:, ::1000], 999_001),  # one row, less what follows its last element
        "permuted": (base.view(30, 100, 1000).permute(2, 0, 1), 10 * 100_000),
        "overlapping": (base.as_strided((3, 1_400_000), (500_000, 1)), 500_000 + 1_400_000),
        "expanded": (base[:3].expand(4, 3), 3),
        "far": (base.as_strided((2, 1, 3), (2_000_000, 0, 5)), 11),
    }


@pytest.mark.parametrize("name", strided())
def test_a_strided_tensor_is_read_in_slices(tmp_path: Path, name: str) -> None:
    """Along the axis with the largest stride, as many elements as span 4 MB, or double what one spans, or one."""
    tensor, span = strided()[name]
    read = read_torch_zip(write_zip(tmp_path / "x.pth", {name: tensor}))
    assert_same(read, {name: tensor})
    assert read[name].extra_bytes == 4 * span


def test_a_tensor_in_row_major_order_takes_its_own_memory(tmp_path: Path) -> None:
    """It is read to where it stays."""
    read = read_torch_zip(write_zip(tmp_path / "x.pth", {"w": torch.ones(3, 2), "none": torch.ones(0, 2).t()}))
    assert [read[name].extra_bytes for name in read.specs] == [0, 0]


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    """Bytes at the places of an older directory would be garbage, so they are not returned."""
    path = write_zip(tmp_path / "x.pth", {"a": torch.ones(2, 3), "t": torch.ones(2, 3).t()})
    read = read_torch_zip(path)
    lazy = [read["a"], read["t"]]
    os.truncate(path, path.stat().st_size - 1)
    for tensor in lazy:
        with pytest.raises(CheckpointError) as caught:
            tensor.read()
        assert caught.value.message == (
            f"{path}: the file changed after its header was read, so its tensors cannot be trusted."
        )


def test_unknown_names_come_with_the_nearest_ones(tmp_path: Path) -> None:
    """As for every source."""
    read = read_torch_zip(write_zip(tmp_path / "x.pth", {"norm.weight": torch.ones(1)}))
    with pytest.raises(CheckpointError) as caught:
        read["norm.weigth"]
    assert caught.value.hint == "The nearest names are 'norm.weight'."


def large() -> dict[str, Tensor]:
    """6 GB of storages, past every 32-bit number in a zip archive; one of them alone is over 4 GB."""
    base = torch.empty(1_250_000_000)
    return {
        "whole": base,
        "matrix": torch.empty(4096, 4096),
        "columns": torch.empty(250_000, 1000)[100_000:104_096, ::250].t(),
        "row": base[-2_000_000:],
        "wide": base[:100_000_000].view(100, 1_000_000)[:, ::1000],
    }


_MEASURED = """
import sys
from pathlib import Path
import torch
from llamaconv.memory import peak_rss, reset_peak_rss
from llamaconv.sources.torch_zip import read_torch_zip
torch.ones(2).t().clone()
reset_peak_rss()
before = peak_rss()
file = read_torch_zip(Path(sys.argv[1]))
peaks = [peak_rss() - before]
for name in ("row", "matrix", "columns", "wide"):
    tensor = file[name]
    reset_peak_rss()
    before = peak_rss()
    tensor.read()
    peaks.append(peak_rss() - before - tensor.peak_bytes)
print(*peaks)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's resettable peak")
def test_peak_memory_is_one_tensor_and_a_slice(tmp_path: Path) -> None:
    """Of a file of 6 GB nothing but its pickle is read, then a tensor, at most some MB beside it at a time."""
    path = write_holes(tmp_path / "x.pth", large)
    assert path.stat().st_size > 6_000_000_000
    run = subprocess.run([sys.executable, "-c", _MEASURED, path], capture_output=True, text=True, check=True)
    opening, *beyond = map(int, run.stdout.split())
    assert opening < 4_000_000
    assert len(beyond) == 4
    assert max(beyond) < 6_000_000  # the allocator keeps a slice that was freed
