from __future__ import annotations

import argparse
import copyreg
import functools
import io
import os
import pathlib
import pickle
import subprocess
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llamaconv.errors import CheckpointError, InputError, UnsupportedError
from llamaconv.sources.pickle_names import StridedView
from llamaconv.sources.pickles import unpickle
from llamaconv.sources.weights import open_weights
from tests.sources.torch_files import Call, Storage, pickled, tensor_of, write_archive, write_legacy, write_zip

PATH = Path("model.pth")
HUGE = 2**20_000 - 1  # more than the 4300 digits that Python prints


class Custom(dict[str, Any]):
    """A dictionary of a class that only its author knows."""


class Grown(torch.Tensor):
    """A kind of tensor that only its author knows."""


def value_of(data: bytes) -> object:
    return unpickle(io.BytesIO(data), PATH)[0]


def refused(data: bytes, kind: type[InputError] = CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        value_of(data)
    assert caught.value.exit_code == 3
    return caught.value.message.removeprefix("model.pth: ")


def as_zip(path: Path, value: object, protocol: int) -> None:
    write_archive(path, {"data.pkl": pickled(value, protocol), "version": b"3"})


def as_legacy(path: Path, value: object, protocol: int) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False, pickle_protocol=protocol)


def as_a_bare_pickle(path: Path, value: object, protocol: int) -> None:
    path.write_bytes(pickle.dumps(value, protocol))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("write", [as_zip, as_legacy, as_a_bare_pickle])
def test_nothing_in_a_pickle_runs(tmp_path: Path, write: Callable[[Path, object, int], None], protocol: int) -> None:
    """Calls of the shell, of the interpreter and of a new process leave no trace; all are named, and no way around."""
    trace, path = tmp_path / "ran", tmp_path / "model.bin"
    value = {
        "a": Call(os.system, f"touch {trace}"),
        "b": Call(eval, f"open({str(trace)!r}, 'w').close()"),
        "c": Call(subprocess.Popen, ["touch", str(trace)]),
        "d": Call(pathlib.Path.touch, Call(pathlib.Path, str(trace))),
    }
    write(path, value, protocol)
    with pytest.raises(UnsupportedError) as caught:
        open_weights(path)
    path_type = f"{pathlib.Path.__module__}.Path"
    assert caught.value.facts["wants"][:3] == ["posix.system", "builtins.eval", "subprocess.Popen"]
    assert path_type in caught.value.facts["wants"]
    assert caught.value.message.startswith(f"{path}: the pickle in it wants posix.system, builtins.eval, ")
    assert caught.value.message.endswith("; only tensors are taken from a pickle, and nothing in it was run.")
    assert not trace.exists()
    pickle.loads(pickled(value["b"]))  # the trap is a real one
    assert trace.exists()


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize(
    ("value", "wants"),
    [
        (argparse.Namespace(lr=1), ["argparse.Namespace"]),
        (np.float64(1), [f"{np.float64(1).__reduce__()[0].__module__}.scalar", "numpy.dtype"]),
        (pathlib.PurePosixPath("a"), ["pathlib.PurePosixPath"]),
        (Custom(a=1), [f"{__name__}.Custom"]),
        (Grown(2), [f"{__name__}.Grown"]),
        (functools.partial(int, base=2), ["functools.partial", "builtins.int"]),
        (torch.nn.Linear(2, 3), ["torch.nn.modules.linear.Linear"]),
    ],
)
def test_whatever_is_no_tensor_is_named(
    tmp_path: Path, write: Callable[[Path, object], Path], value: object, wants: list[str]
) -> None:
    """Settings, NumPy's numbers, paths, classes, tensors of other kinds and whole modules are refused by name."""
    path = write(tmp_path / "model.pth", {"w": torch.ones(1), "extra": value})
    with pytest.raises(UnsupportedError) as caught:
        open_weights(path)
    assert [name for name in caught.value.facts["wants"] if name not in ("builtins.dict",)] == wants
    assert (
        caught.value.hint
        == "Use a safetensors checkpoint of the model, or a file that holds nothing but tensors by name."
    )


def test_nothing_is_imported(tmp_path: Path) -> None:
    """A module is not even looked for, and a name in it may be anything."""
    assert "this" not in sys.modules  # it would print a poem
    message = refused(b"\x80\x04\x8c\x04this\x8c\x05\x1b[31m\x93.", UnsupportedError)
    assert "this" not in sys.modules
    assert message.startswith("the pickle in it wants this.\x1b[31m; only")


def test_many_names_are_counted() -> None:
    """Past ten names the message counts."""
    message = refused(b"".join(b"cmodule%d\nname\n" % i for i in range(13)) + b".", UnsupportedError)
    assert message.startswith("the pickle in it wants module0.name, module1.name, ")
    assert " module9.name and 3 more; only tensors are taken" in message


def test_objects_that_a_process_registered_are_out_of_reach() -> None:
    """The registry of short codes for classes gives what another library put there, by its number alone."""
    copyreg.add_extension("os", "system", 240)
    try:
        assert pickle.loads(b"\x80\x02\x82\xf0.") is os.system
        assert refused(b"\x80\x02\x82\xf0.") == (
            "the pickle in it cannot be read (ValueError: an instruction that no file of tensors needs)."
        )
    finally:
        copyreg.remove_extension("os", "system", 240)


def test_attributes_are_dropped_not_set() -> None:
    """Whatever an instruction sets on what stands for a call, the next pickle finds the call as it was."""
    value_of(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__K\x05\x85s\x86b.")
    storage = Storage("0", 2)
    found, storages = unpickle(io.BytesIO(pickled(tensor_of(storage, 0, (2,), (1,)))), PATH)
    assert found == StridedView(storages["0"], torch.float32, offset=0, shape=(2,), stride=(1,))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "EOFError: )"),
        (b"\x80\x02}", "EOFError: )"),
        (b"\x80\x09.", "ValueError: unsupported pickle protocol: 9"),
        (b"\x80\x02\x7f.", "KeyError: 127"),
        (b"\x80\x02U\x05abc.", "EOFError: )"),
        (b"\x80\x05\x96" + (2**40).to_bytes(8, "little"), "EOFError: )"),
        (b"\x80\x05\x97.", "ValueError: an instruction that no file of tensors needs"),
        (b"\x80\x02Np2305843009213693951\n.", "ValueError: an instruction that no file of tensors needs"),
        (b"\x80\x02)" + b"\x85" * 10**5 + b"}h\x00s.", "UnpicklingError: Memo value not found at index 0"),
        (b"\x80\x02]NNs.", "ValueError: an item is set in what is no dictionary"),
        (b"\x80\x02ccollections\nCounter\nK\x01\x85R.", "ValueError: a dictionary is made of a int"),
        (b"\x80\x02X\x01\x00\x00\x00aQ.", "ValueError: not enough values to unpack"),
        (b"\x80\x02ctorch.storage\nUntypedStorage\n)R.", "TypeError: 'StorageType' object is not callable"),
    ],
)
def test_a_broken_pickle_says_why(data: bytes, reason: str) -> None:
    """Cut off, of a protocol to come, not a pickle, or more than a file of tensors needs: never another error."""
    message = refused(data)
    assert message.startswith(f"the pickle in it cannot be read ({reason}")
    assert message.endswith(").")


@pytest.mark.parametrize(
    ("storage", "fault"),
    [
        (Storage("0", -1), "a storage '0' of -1 elements"),
        (Storage("0", 1.5), "a storage '0' of 1.5 elements"),
        (Storage(0.5, 1), "a storage 0.5 of 1 elements"),
        (Storage("0", 2**63), "a storage '0' of <int of 64 bits> elements"),
        (Storage("0", HUGE), "a storage '0' of <int of 20000 bits> elements"),
        (Storage(HUGE, 1), "a storage <int of 20000 bits> of 1 elements"),
        (Storage("0", 1, torch.FloatStorage, HUGE), "a reference to 'storage' [<int of 20000 bits>]"),
        (Storage("0", 1, "torch.FloatStorage"), "a reference to 'storage' []"),
        (Storage("0", 1, torch.float32), "a reference to 'storage' []"),
    ],
)
def test_an_impossible_storage_is_refused(storage: Storage, fault: str) -> None:
    """Its type, key and length are what torch writes, or the pickle is broken."""
    assert refused(pickled(storage)) == f"the pickle in it cannot be read (ValueError: {fault})."


def test_a_storage_is_of_one_kind() -> None:
    """Two tensors cannot see the same storage as floats and as halves."""
    both = [Storage("0", 4), Storage("0", 4, torch.HalfStorage)]
    assert refused(pickled(both)) == (
        "the pickle in it cannot be read (ValueError: the storage '0' is said to be of two types or sizes)."
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("storage", 0, (1,), (1,), False, None),
        (Storage("0", 1), "0", (1,), (1,), False, None),
        (Storage("0", 1), 0, [1], (1,), False, None),
        (Storage("0", 1), 0, (1,), (1.0,), False, None),
        (Storage("0", 1), 0, (True,), (1,), False, None),
        (Storage("0", 1), HUGE, (1,), (1,), False, None),
        (Storage("0", 1), 0, (HUGE,), (1,), False, None),
        (Storage("0", 1), 0, (1,), (-HUGE,), False, None),
        (Storage("0", 1), 0, (1,), (2**63,), False, None),
    ],
)
def test_a_tensor_is_made_of_numbers(arguments: tuple[object, ...]) -> None:
    """Other things in their places, and numbers that torch cannot count with, are no tensor."""
    data = pickled({"w": Call(torch._utils._rebuild_tensor_v2, *arguments)})
    assert "a tensor is not made of a storage, an offset, a shape and strides" in refused(data)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_of_any_kind_are_read(protocol: int) -> None:
    """Counters are dictionaries; sets and old byte arrays are nothing; a number may be of any length."""
    value = {
        "counter": Counter([30, 60, 30]),
        "ordered": OrderedDict(a=1),
        "sets": [{1, (2, 3)}, set(), frozenset({4})],
        "number": HUGE,
    }
    assert value_of(pickle.dumps(value, protocol)) == {
        "counter": {30: 2, 60: 1},
        "ordered": {"a": 1},
        "sets": [None, None, None],
        "number": HUGE,
    }
    assert value_of(pickle.dumps(bytearray(b"abc"), protocol)) == (b"abc" if protocol == 5 else None)


@pytest.mark.parametrize("key", [(0, 1), ((),), 0.5, 2**60, -HUGE, b"x"], ids=lambda key: type(key).__name__)
def test_a_key_that_no_tensor_has_is_not_hashed(key: object) -> None:
    """It is known by nothing but its kind; numbers below 2**60, names and None stay what they are."""
    found = value_of(pickle.dumps({key: 1, "a": 2, None: 3, -(2**60) + 1: 4}, 4))
    assert isinstance(found, dict)
    [odd] = set(found) - {"a", None, -(2**60) + 1}
    assert (repr(odd), list(found.values())) == (f"<{type(key).__name__}>", [1, 2, 3, 4])


def test_keys_cannot_be_made_up_to_collide() -> None:
    """Numbers of one hash, which cost a dictionary the square of their count, and tuples too deep to hash."""
    keys = [k * (2**61 - 1) for k in range(1, 20_000)]
    assert len({hash(key) for key in keys}) == 1
    found = value_of(b"\x80\x02}(" + b"".join(pickle.dumps(key, 2)[2:-1] + b"N" for key in keys) + b"u.")
    assert isinstance(found, dict)
    assert len({hash(key) for key in found}) == len(found) == len(keys)
    deep = value_of(b"\x80\x02}q\x00)" + b"\x85" * 10**5 + b"Ns.")
    assert isinstance(deep, dict)
    assert list(map(repr, deep)) == ["<tuple>"]


def test_a_far_away_note_costs_nothing() -> None:
    """An instruction to remember an object under the number 4,294,967,295 reserves no table of that length."""
    assert value_of(b"\x80\x02Nr\xff\xff\xff\xffj\xff\xff\xff\xff.") is None


WHOLE = pickled({"w": tensor_of(Storage("0", 6), 1, (2, 2), (2, 1)), "n": [1, (2.5, "x")]})


@given(
    st.binary(max_size=60)
    | st.builds(lambda at, by: WHOLE[:at] + by + WHOLE[at + 1 :], st.integers(2, len(WHOLE)), st.binary(max_size=2))
)
def test_no_pickle_escapes_our_errors(data: bytes) -> None:
    """Whatever stands in it, the answer is a value or an input error."""
    try:
        value_of(data)
    except (CheckpointError, UnsupportedError):
        return
