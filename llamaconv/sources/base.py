"""What every source of tensors offers, and how sources word their errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from llamaconv.errors import CheckpointError, UnsupportedError
from llamaconv.tensors import LazyTensor, TensorSpec

__all__ = ["CheckpointReader", "one_per_line", "torch_file", "unknown_tensor"]

_MOST_LINES = 100


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

    def __getitem__(self, name: str) -> LazyTensor:
        """The tensor called ``name``, not read yet.

        Raises:
            CheckpointError: There is none of that name; the message has the nearest ones.
        """
        ...


def unknown_tensor(name: str, known: Iterable[str]) -> CheckpointError:
    """The error for a tensor that a checkpoint lacks, with up to three names that resemble it."""
    nearest = difflib.get_close_matches(name, list(known), n=3)
    return CheckpointError(
        f"The checkpoint has no tensor {name!r}.",
        hint=f"The nearest names are {', '.join(map(repr, nearest))}." if nearest else None,
        tensor=name,
        nearest=nearest,
    )


def torch_file(path: Path) -> UnsupportedError:
    """The error for a pickle where weights should be."""
    return UnsupportedError(
        f"{path}: torch files (pickles) are not read.",
        hint="Use a safetensors checkpoint of the model.",
        file=str(path),
    )


def one_per_line(faults: Sequence[str]) -> str:
    """``faults`` one to a line; past a hundred lines the rest are counted, not shown."""
    shown = list(faults[:_MOST_LINES])
    if len(faults) > _MOST_LINES:
        shown.append(f"… and {len(faults) - _MOST_LINES} more.")
    return "\n".join(shown)
