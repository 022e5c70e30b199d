"""The safetensors header: what a file holds, without reading it.

A file is a little-endian u64 length, that many bytes of JSON, and the data without holes
(https://github.com/huggingface/safetensors, section "Format" of its README). The checks are at least those of
``Metadata::validate`` there, and say which tensor is at fault.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from llamaconv.extents import Stamp, open_regular
from llamaconv.json_files import parse_object
from llamaconv.sources.base import damaged, shortened, too_large
from llamaconv.tensors import TensorSpec

__all__ = ["DTYPES", "MAX_HEADER_BYTES", "METADATA_KEY", "Header", "read_header"]

MAX_HEADER_BYTES = 100_000_000
"""The format's bound, and ours for other descriptions of tensors."""

METADATA_KEY = "__metadata__"

# Ascending in the order of the library's `enum Dtype`, by which its writer sorts.
_TORCH_NAMES = {
    "BOOL": "bool",
    "F4": "float4_e2m1fn_x2",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {code: getattr(torch, name) for code, name in _TORCH_NAMES.items() if hasattr(torch, name)}
)
"""The format's codes and torch's dtypes, ascending in the order in which the library's writer ranks them."""


@dataclass(frozen=True)
class Header:
    """The checked header of one file.

    ``specs`` and ``offsets`` (of the first byte, from the start of the file) are in the order of the data.
    ``stamp`` is the file's size in bytes and modification time in ns: what was checked is what is read later.
    """

    path: Path
    metadata: Mapping[str, str]
    specs: Mapping[str, TensorSpec]
    offsets: Mapping[str, int]
    stamp: Stamp


@dataclass(frozen=True)
class _Entry:
    spec: TensorSpec
    begin: int
    end: int


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file; its data is not touched.

    Raises:
        CheckpointError: The file is unreadable, truncated or has trailing bytes, or the header is over 100
            MB, not JSON, or contradicts itself; all faults of the file's tensors stand in the message.
    """
    with open_regular(path) as (descriptor, stamp):
        size = stamp[0]
        length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
        if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise damaged(path, [_not_a_header(length, size)])
        raw = os.pread(descriptor, length, 8)
    try:
        if not raw.startswith(b"{"):
            raise ValueError("not JSON (it does not begin with '{')")
        table = parse_object(raw)
    except ValueError as error:
        raise damaged(path, [f"the header is {error}."]) from error
    metadata = table.pop(METADATA_KEY, {})
    entries, faults = _entries(table)
    if not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
        faults.insert(0, f"{METADATA_KEY} is not an object of strings.")
    faults = faults or _layout_faults(entries, size - 8 - length)
    if faults:
        raise damaged(path, faults)
    return Header(
        path,
        metadata,
        specs={entry.spec.name: entry.spec for entry in entries},
        offsets={entry.spec.name: 8 + length + entry.begin for entry in entries},
        stamp=stamp,
    )


def _not_a_header(length: int, size: int) -> str:
    """Why the first eight bytes of a file of ``size`` bytes cannot be the length of its header."""
    if size < 8:
        return f"{size} bytes are too few for a safetensors file."
    if length > MAX_HEADER_BYTES:
        return f"a header of {length} bytes, where safetensors allows {MAX_HEADER_BYTES}."
    return f"truncated: the header ends at byte {8 + length}, the file at byte {size}."


def _entries(table: Mapping[str, Any]) -> tuple[list[_Entry], list[str]]:
    """The table's tensors in the order of their data, and what is wrong with those that are none."""
    entries: list[_Entry] = []
    faults: list[str] = []
    for name, value in table.items():
        try:
            entries.append(_entry(name, value))
        except ValueError as error:
            faults.append(f"tensor {name!r} {error}.")
    return sorted(entries, key=lambda entry: (entry.begin, entry.end)), faults


def _entry(name: str, value: object) -> _Entry:
    """Parse one tensor's entry; the ValueError's text continues "tensor NAME …"."""
    if not isinstance(value, dict) or not {"dtype", "shape", "data_offsets"} <= value.keys():
        raise ValueError("lacks dtype, shape or data_offsets")
    code, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise ValueError(f"has dtype {code!r}, which is none of {', '.join(DTYPES)}")
    if not _is_counts(shape) or too_large(shape):
        raise ValueError(f"has the impossible shape {shortened(shape)}")
    if not _is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"has the impossible data_offsets {shortened(offsets)}")
    if code == "F4":  # the header counts elements, torch pairs of them
        if not shape or shape[-1] % 2:
            raise ValueError(f"has shape {shape}, but F4 comes in pairs along the last axis")
        shape = [*shape[:-1], shape[-1] // 2]
    spec = TensorSpec(name, tuple(shape), DTYPES[code])
    begin, end = offsets
    if end - begin != spec.nbytes:
        raise ValueError(f"has {end - begin} bytes of data, but {code} {value['shape']} takes {spec.nbytes}")
    return _Entry(spec, begin, end)


def _is_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _layout_faults(entries: Sequence[_Entry], available: int) -> list[str]:
    """Overlaps and holes, or else a difference between the data's size and what the file has, in bytes."""
    faults = []
    position, before = 0, ""
    for entry in entries:
        name = entry.spec.name
        if entry.begin > position:
            after = f"after {before!r}" if before else "at the start"
            faults.append(f"bytes {position} to {entry.begin} of the data, {after}, belong to no tensor.")
        elif entry.begin < position:
            faults.append(
                f"tensor {name!r} begins at byte {entry.begin} of the data and overlaps {before!r}, "
                f"which ends at byte {position}."
            )
        position, before = max(position, entry.end), name
    if not faults and position != available:
        state = "truncated" if position > available else "trailing bytes"
        faults.append(f"{state}: the header describes {position} bytes of data, the file has {available}.")
    return faults
