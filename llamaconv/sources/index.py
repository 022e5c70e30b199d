"""``model.safetensors.index.json`` or ``pytorch_model.bin.index.json``: which shard holds which tensor."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from llamaconv.errors import CheckpointError
from llamaconv.extents import open_regular
from llamaconv.json_files import parse_object
from llamaconv.sources.base import WeightFile, one_per_line
from llamaconv.sources.files import FilesReader
from llamaconv.sources.safetensors_header import MAX_HEADER_BYTES
from llamaconv.sources.weights import open_weights_together

__all__ = ["open_index"]


class _Index(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    weight_map: dict[str, str]
    metadata: dict[str, Any] | None = None


def open_index(path: Path) -> FilesReader:
    """The checkpoint that an index file describes; its shards are in sorted order of their names.

    Raises:
        CheckpointError: The index is malformed, names files that are missing or outside its folder, or
            disagrees with the shards; or a shard is damaged. All faults of one kind are in one
            error.
        UnsupportedError: A shard is of a kind that is not read.
    """
    weight_map = _weight_map(path)
    names = sorted(set(weight_map.values()))
    faults = [f"{path}: {fault}" for name in names if (fault := _outside(name))]
    faults += [
        f"{path}: the shard {name!r} is missing."
        for name in names
        if not _outside(name) and not os.path.isfile(path.parent / name)
    ]
    if faults:
        raise _index_error(path, faults)
    files = open_weights_together([path.parent / name for name in names])
    faults = _disagreements(weight_map, dict(zip(names, files, strict=True)))
    if faults:
        raise _index_error(path, [f"{path}: {fault}" for fault in faults])
    return FilesReader(files, index=path)


def _index_error(path: Path, faults: Sequence[str]) -> CheckpointError:
    return CheckpointError(
        one_per_line(faults), hint="The checkpoint is incomplete: download it again.", file=str(path)
    )


def _weight_map(path: Path) -> Mapping[str, str]:
    """Parse an index file into tensor name → file name."""
    with open_regular(path) as (descriptor, (size, _)):
        if size > MAX_HEADER_BYTES:
            raise _index_error(path, [f"{path}: {size} bytes are too many for an index."])
        raw = os.pread(descriptor, size, 0)
    try:
        weight_map = _Index.model_validate(parse_object(raw)).weight_map
    except ValidationError as error:
        faults = [f"{path}: {'.'.join(map(str, item['loc']))}: {item['msg']}." for item in error.errors()]
        raise _index_error(path, faults) from error
    except ValueError as error:
        raise _index_error(path, [f"{path}: the index is {error}."]) from error
    if not weight_map:
        raise _index_error(path, [f"{path}: the weight_map is empty."])
    return weight_map


def _outside(name: str) -> str | None:
    """Why ``name`` cannot be a file below the index's folder, or None.

    Windows' reading of a path covers both separators, drives and roots. Where a symbolic link leads is not
    asked: in the Hub's cache every file is one, to a blob outside the folder.
    """
    path = PureWindowsPath(name)
    if "\0" in name or path.anchor or ".." in path.parts or not path.parts:
        return f"the shard {name!r} is not inside the folder."
    return None


def _disagreements(weight_map: Mapping[str, str], shards: Mapping[str, WeightFile]) -> list[str]:
    faults = [
        f"tensor {name!r} should be in {shard!r}, which lacks it."
        for name, shard in weight_map.items()
        if name not in shards[shard].specs
    ]
    for shard, file in shards.items():
        for name in file.specs:
            if name not in weight_map:
                faults.append(f"tensor {name!r} in {shard!r} is not named by the index.")
            elif weight_map[name] != shard and name in shards[weight_map[name]].specs:
                faults.append(f"tensor {name!r} is in {weight_map[name]!r} as the index says, but also in {shard!r}.")
            elif weight_map[name] != shard:
                faults.append(f"tensor {name!r} is in {shard!r} instead.")
    return faults
