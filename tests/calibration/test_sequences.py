from __future__ import annotations

import hashlib
import struct

import numpy as np
import torch

from llamaconv.calibration import CalibrationSet


def test_ragged_rows_become_int32_tensors() -> None:
    """Rows of any integer type and length are kept as int32, and their tokens counted."""
    made = CalibrationSet.of([[1, 5, 7], np.array([1, 9], dtype=">u8")], "a.txt", ["short"])
    assert [sequence.tolist() for sequence in made.sequences] == [[1, 5, 7], [1, 9]]
    assert {sequence.dtype for sequence in made.sequences} == {torch.int32}
    assert (made.tokens, made.name, made.notes) == (5, "a.txt", ("short",))


def test_the_digest_is_over_lengths_and_little_endian_ids() -> None:
    """The digest is that of the documented bytes, written out by hand."""
    data = struct.pack("<qiii", 3, 1, 5, 70000) + struct.pack("<qi", 1, 9)
    assert CalibrationSet.of([[1, 5, 70000], [9]], "a").sha256 == hashlib.sha256(data).hexdigest()


def test_the_digest_tells_where_sequences_end() -> None:
    """The same tokens cut in another place are another set; another name is not."""
    one, other = CalibrationSet.of([[1, 2], [3]], "a"), CalibrationSet.of([[1], [2, 3]], "a")
    assert one.sha256 != other.sha256
    assert one.sha256 == CalibrationSet.of([[1, 2], [3]], "b").sha256


def test_the_tensors_are_copies() -> None:
    """Changing the array afterwards does not change the set."""
    array = np.array([[1, 2, 3]], dtype=np.int32)
    made = CalibrationSet.of(array, "a")
    array[:] = 0
    assert made.sequences[0].tolist() == [1, 2, 3]
