"""What every source of tensors offers, and how sources word their errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from llamaconv.errors import CheckpointError
from llamaconv.extents import Extent, Stamp, read_extents
from llamaconv.tensors import LazyTensor, TensorSpec

__all__ = [
    "CheckpointReader",
    "WeightFile",
    "damaged",
    "one_per_line",
    "read_tensor",
    "shortened",
    "too_large",
    "unknown_tensor",
]

_MOST_LINES = 100


class WeightFile(Protocol):
    """One file whose tensors' names, shapes and dtypes are known before any data is read."""

    @property
    def path(self) -> Path: ...

    @property
    def stamp(self) -> Stamp:
        """What the file was when its header was read: size in bytes, modification time in ns."""
        ...

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every tensor by name, in the order in which the file lists them."""
        ...

    def __getitem__(self, name: str) -> LazyTensor:
        """The tensor called ``name``, not read yet.

        Raises:
            CheckpointError: There is none of that name; or, from ``read()``, the file is gone, unreadable or
                not the one whose header was read.
        """
        ...


class CheckpointReader(Protocol):
    """A checkpoint whose names, shapes and dtypes are known before any data is read."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every tensor by name, in the order in which the files hold them."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """The weight files, then the index file if there is one."""
        ...

    @property
    def holdings(self) -> Mapping[Path, tuple[str, ...]]:
        """Which tensors each weight file holds."""
        ...

    def __getitem__(self, name: str) -> LazyTensor:
        """The tensor called ``name``, not read yet.

        Raises:
            CheckpointError: There is none of that name; the message has the nearest ones.
        """
        ...


def read_tensor(spec: TensorSpec, extents: Sequence[Extent]) -> Tensor:
    """The tensor whose bytes ``extents`` hold in row-major order, in memory of its own.

    Raises:
        CheckpointError: As ``read_extents``.
    """
    return read_extents(extents).view(spec.dtype).reshape(spec.shape)


def too_large(shape: Sequence[int]) -> bool:
    """Whether torch could not even name the size (zeros do not save it: strides multiply the rest)."""
    elements = 1
    for size in shape:
        elements *= max(size, 1)
        if elements >= 2**59:  # times 8 bytes and some slack, inside an int64
            return True
    return False


def unknown_tensor(name: str, known: Iterable[str]) -> CheckpointError:
    """The error for a tensor that a checkpoint lacks, with up to three names that resemble it."""
    nearest = difflib.get_close_matches(name, list(known), n=3)
    return CheckpointError(
        f"The checkpoint has no tensor {name!r}.",
        hint=f"The nearest names are {', '.join(map(repr, nearest))}." if nearest else None,
        tensor=name,
        nearest=nearest,
    )


def damaged(path: Path, faults: Sequence[str]) -> CheckpointError:
    """The error for a file that contradicts itself or its format, one line for each of ``faults``."""
    message = one_per_line([f"{path}: {fault}" for fault in faults])
    return CheckpointError(message, hint="The file is damaged: download or copy it again.", file=str(path))


def one_per_line(faults: Sequence[str]) -> str:
    """``faults`` one to a line; past a hundred lines the rest are counted, not shown."""
    shown = list(faults[:_MOST_LINES])
    if len(faults) > _MOST_LINES:
        shown.append(f"… and {len(faults) - _MOST_LINES} more.")
    return "\n".join(shown)


def shortened(value: object) -> str:
    """``value`` as Python writes it, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
