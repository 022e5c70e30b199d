"""Token ids that the user brings: integers [samples, length] in a ``.npy`` or ``.safetensors`` file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from llamaconv.errors import CalibrationError

__all__ = ["check_ids", "read_npy", "read_safetensors"]

# Some versions of numpy ship it without types. Unlike np.load it takes nothing but .npy.
_open_memmap = cast("Callable[..., NDArray[Any]]", np.lib.format.open_memmap)

# As a safetensors header names them; ids are compared with the vocabulary before they are narrowed.
_INTEGERS = frozenset({"I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64"})


def read_npy(path: Path, rows: int | None) -> tuple[NDArray[Any], int]:
    """The first ``rows`` rows (all: None) of the array, as they are, and how many the file has.

    The file is mapped, so that a large one costs what is taken of it; pickled objects are refused unread.

    Raises:
        CalibrationError: Not a whole .npy file; or its array is not of integers, not 2-D, or empty.
    """
    try:
        array = _open_memmap(path, mode="r")
    except (ValueError, EOFError, OverflowError, OSError) as error:
        raise _unreadable(path, error, "np.save(FILE, ids)") from error
    _check(path, array.shape, np.issubdtype(array.dtype, np.integer), str(array.dtype))
    return np.array(array[:rows]), array.shape[0]


def read_safetensors(path: Path, rows: int | None) -> tuple[NDArray[Any], int]:
    """The first ``rows`` rows (all: None) of the file's only tensor, as they are, and how many it has.

    Raises:
        CalibrationError: Not a whole safetensors file; not exactly one tensor; or it is not of integers, not
            2-D, or empty.
    """
    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
            if len(names) != 1:
                raise CalibrationError(
                    f"{path}: holds {len(names)} tensors, where one array of token ids is expected.",
                    hint='Save the ids alone: save_file({"tokens": ids}, FILE).',
                    file=str(path),
                )
            view = file.get_slice(names[0])
            shape, dtype = tuple(view.get_shape()), view.get_dtype()
            _check(path, shape, dtype in _INTEGERS, dtype)
            return np.asarray(view[:rows]), shape[0]
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error, 'save_file({"tokens": ids}, FILE)') from error


def check_ids(path: Path, ids: NDArray[Any], vocab_size: int) -> None:
    """Refuse ids [samples, length] that the model has no embedding for; the first one is named.

    Raises:
        CalibrationError: An id is negative or not below ``vocab_size``.
    """
    bad = (ids < 0) | (ids >= vocab_size)
    if not bad.any():
        return
    row, column = (int(at) for at in np.argwhere(bad)[0])
    facts: Mapping[str, object] = {"row": row, "column": column, "id": int(ids[row, column])}
    others = int(bad.sum()) - 1
    raise CalibrationError(
        f"{path}: row {row:,}, column {column:,}: {facts['id']} is not a token of the model, "
        f"whose vocabulary is 0 to {vocab_size - 1:,}" + (f" ({others:,} more like it)." if others else "."),
        hint="Were the ids made with this model's tokenizer?",
        file=str(path),
        **facts,
    )


def _check(path: Path, shape: tuple[int, ...], integers: bool, dtype: str) -> None:
    faults = []
    if not integers:
        faults.append(f"{path}: its elements are {dtype}, token ids are integers.")
    if len(shape) != 2:
        faults.append(f"{path}: its shape is {list(shape)}, expected [samples, length].")
    if 0 in shape:
        faults.append(f"{path}: it is empty (shape {list(shape)}).")
    if faults:
        raise CalibrationError("\n".join(faults), file=str(path), shape=list(shape), dtype=dtype)


def _unreadable(path: Path, error: Exception, made_by: str) -> CalibrationError:
    reason = (getattr(error, "strerror", None) or str(error)).rstrip(".")
    return CalibrationError(
        f"{path}: cannot be read as {path.suffix.lower()} ({reason}).",
        hint=f"Such a file is made by {made_by}, with integer ids of shape [samples, length].",
        file=str(path),
    )
