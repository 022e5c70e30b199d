"""A weight file of any format, told by its first bytes, whatever its name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from llamaconv.errors import CheckpointError, InputError, UnsupportedError
from llamaconv.extents import open_regular
from llamaconv.sources.base import WeightFile, damaged, one_per_line
from llamaconv.sources.safetensors import read_safetensors
from llamaconv.sources.torch_legacy import read_torch_legacy
from llamaconv.sources.torch_zip import read_torch_zip

__all__ = ["open_weights", "open_weights_together"]

_TAR = slice(257, 262)  # of a tar archive's first block: "ustar"


def open_weights(path: Path) -> WeightFile:
    """Open a safetensors or torch file; nothing is read but what describes the tensors.

    Raises:
        CheckpointError: It is unreadable, damaged, or none of these.
        UnsupportedError: It is well-formed, but of another kind, or holds more than tensors.
    """
    with open_regular(path) as (descriptor, (size, _)):
        start = os.pread(descriptor, 512, 0)
    if error := _other_kind(path, start):
        raise error
    # The length of a safetensors header may look like anything; no other format has a brace at byte 8.
    if start[8:9] == b"{":
        return read_safetensors(path)
    if start.startswith(b"PK\3\4"):
        return read_torch_zip(path)
    if start[:1] == b"\x80" and start[1:2] <= b"\5":
        return read_torch_legacy(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)  # says what is wrong with its header
    raise damaged(path, [f"{size} bytes that are neither a safetensors file nor one of torch.save."])


def open_weights_together(paths: Sequence[Path]) -> tuple[WeightFile, ...]:
    """Several weight files, with the faults of all of them in one error.

    Raises:
        CheckpointError, UnsupportedError: As ``open_weights``.
    """
    files: list[WeightFile] = []
    errors: list[InputError] = []
    for path in paths:
        try:
            files.append(open_weights(path))
        except InputError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        kind = UnsupportedError if all(isinstance(error, UnsupportedError) for error in errors) else CheckpointError
        message = one_per_line([error.message for error in errors])
        raise kind(message, hint=errors[0].hint, files=[error.facts.get("file") for error in errors])
    return tuple(files)


def _other_kind(path: Path, start: bytes) -> InputError | None:
    """The error for a well-known kind of file that holds no weights, or not in a way that is read."""
    if start.startswith(b"version https://git-lfs"):
        return CheckpointError(
            f"{path}: a Git LFS pointer, not the weights.", hint="Run `git lfs pull` there.", file=str(path)
        )
    what = ""
    if start.startswith(b"GGUF"):
        what = "GGUF files"
    elif start[_TAR] == b"ustar":
        what = "tar archives, the oldest of torch's formats,"
    if not what:
        return None
    return UnsupportedError(
        f"{path}: {what} are not read.", hint="Use a safetensors checkpoint of the model.", file=str(path)
    )
