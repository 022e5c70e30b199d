from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from llamaconv.calibration.tokens import check_ids, read_npy, read_safetensors
from llamaconv.errors import CalibrationError

IDS = np.arange(15).reshape(5, 3)


def save(path: Path, array: NDArray[Any]) -> Path:
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        save_file({"ids": array}, path)
    return path


def read(path: Path, rows: int | None = None) -> tuple[NDArray[Any], int]:
    return (read_npy if path.suffix == ".npy" else read_safetensors)(path, rows)


def npy_bytes(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["a.npy", "a.safetensors"])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_every_integer_type_is_read(tmp_path: Path, name: str, dtype: str) -> None:
    """The first rows come back as they are, with the number of rows that the file has."""
    path = save(tmp_path / name, IDS.astype(dtype))
    rows, available = read(path, 2)
    assert (rows.tolist(), available) == ([[0, 1, 2], [3, 4, 5]], 5)
    assert read(path)[0].tolist() == IDS.tolist()


def test_npy_files_of_other_byte_orders_and_layouts_are_read(tmp_path: Path) -> None:
    """Big-endian and Fortran-ordered arrays hold the same ids."""
    assert read_npy(save(tmp_path / "a.npy", np.asfortranarray(IDS.astype(">i4"))), 9)[0].tolist() == IDS.tolist()


@pytest.mark.parametrize("name", ["a.npy", "a.safetensors"])
@pytest.mark.parametrize(
    ("array", "faults"),
    [
        (np.zeros((2, 3), dtype=np.float32), ["its elements are {f32}, token ids are integers."]),
        (np.zeros((2, 3), dtype=bool), ["its elements are {bool}, token ids are integers."]),
        (np.zeros(4, dtype=np.int32), ["its shape is [4], expected [samples, length]."]),
        (np.zeros((1, 2, 3), dtype=np.int32), ["its shape is [1, 2, 3], expected [samples, length]."]),
        (np.zeros((0, 3), dtype=np.int32), ["it is empty (shape [0, 3])."]),
        (np.zeros((3, 0), dtype=np.int32), ["it is empty (shape [3, 0])."]),
        (
            np.zeros((0, 1, 1), dtype=np.float32),
            [
                "its elements are {f32}, token ids are integers.",
                "its shape is [0, 1, 1], expected [samples, length].",
                "it is empty (shape [0, 1, 1]).",
            ],
        ),
    ],
)
def test_an_array_that_is_no_table_of_ids_is_refused(
    tmp_path: Path, name: str, array: NDArray[Any], faults: list[str]
) -> None:
    """Type, number of axes and emptiness are all reported at once."""
    path = save(tmp_path / name, array)
    words = {"f32": "float32", "bool": "bool"} if name == "a.npy" else {"f32": "F32", "bool": "BOOL"}
    with pytest.raises(CalibrationError) as caught:
        read(path)
    assert str(caught.value) == "\n".join(f"{path}: {fault.format(**words)}" for fault in faults)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "EOF: reading magic string"),
        (b"hello, this is no array", "the magic string is not correct"),
        (pickle.dumps([[1, 2]]), "the magic string is not correct"),
        (npy_bytes(np.array([[{}]], dtype=object)), "Python objects in dtype"),
        (npy_bytes(IDS)[:60], "EOF: reading array header"),
        (npy_bytes(IDS)[:-1], "mmap length is greater than file size"),
        (npy_bytes(IDS).replace(b"(5, 3)", b"(5,-3)"), "negative"),
    ],
)
def test_a_damaged_npy_file_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    """Whatever is wrong with the file, the error names it and how such a file is made; pickles are never loaded."""
    path = tmp_path / "a.npy"
    path.write_bytes(data)
    with pytest.raises(CalibrationError) as caught:
        read_npy(path, None)
    assert str(caught.value).startswith(f"{path}: cannot be read as .npy (")
    assert reason in str(caught.value)
    assert (
        caught.value.hint == "Such a file is made by np.save(FILE, ids), with integer ids of shape [samples, length]."
    )


def test_a_pickle_in_an_array_is_not_run(tmp_path: Path) -> None:
    """An object array whose unpickling would create a file leaves no trace."""

    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "harm",))

    (tmp_path / "a.npy").write_bytes(npy_bytes(np.array([[Harm()]], dtype=object)))
    with pytest.raises(CalibrationError, match="Python objects in dtype"):
        read_npy(tmp_path / "a.npy", None)
    assert not (tmp_path / "harm").exists()


def test_a_safetensors_file_must_hold_one_tensor(tmp_path: Path) -> None:
    """With two arrays it would be a guess which one is meant."""
    path = tmp_path / "a.safetensors"
    save_file({"a": IDS, "b": IDS}, path)
    with pytest.raises(CalibrationError) as caught:
        read_safetensors(path, None)
    assert str(caught.value) == f"{path}: holds 2 tensors, where one array of token ids is expected."
    assert caught.value.hint == 'Save the ids alone: save_file({"tokens": ids}, FILE).'


@pytest.mark.parametrize("data", [b"", b"\xff" * 100, b"not a tensor file at all"])
def test_a_damaged_safetensors_file_is_refused(tmp_path: Path, data: bytes) -> None:
    """An unreadable header is the calibration file's fault, not the checkpoint's."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(CalibrationError) as caught:
        read_safetensors(path, None)
    assert str(caught.value).startswith(f"{path}: cannot be read as .safetensors (")


@pytest.mark.parametrize(
    ("dtype", "bad", "shown"),
    [("int32", 100, "100"), ("int64", -1, "-1"), ("uint64", 2**64 - 1, "18446744073709551615")],
)
def test_an_id_outside_the_vocabulary_is_named_with_its_place(dtype: str, bad: int, shown: str) -> None:
    """Negative, too large, and so large that narrowing would wrap around: all are refused, the first one is named."""
    ids = IDS.astype(dtype)
    ids[3, 1] = bad
    with pytest.raises(CalibrationError) as caught:
        check_ids(Path("a.npy"), ids, 100)
    assert str(caught.value) == (
        f"a.npy: row 3, column 1: {shown} is not a token of the model, whose vocabulary is 0 to 99."
    )
    assert caught.value.facts == {"file": "a.npy", "row": 3, "column": 1, "id": bad}
    assert caught.value.hint == "Were the ids made with this model's tokenizer?"


def test_more_ids_outside_the_vocabulary_are_counted() -> None:
    """One id is named, the others counted; the last of the vocabulary is in it."""
    with pytest.raises(CalibrationError) as caught:
        check_ids(Path("a.npy"), IDS, 12)
    assert str(caught.value) == (
        "a.npy: row 4, column 0: 12 is not a token of the model, whose vocabulary is 0 to 11 (2 more like it)."
    )
    check_ids(Path("a.npy"), IDS, 15)
    check_ids(Path("a.npy"), IDS.astype("int8"), 128_256)  # a vocabulary beyond what the type can hold
