"""Safetensors files: the header first, then each tensor to its offset.

The bytes are those of ``safetensors.torch.save_file``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from llamaconv.sinks.in_place import InPlaceWriter, tensor_bytes
from llamaconv.sinks.skeleton import Skeleton
from llamaconv.sources.safetensors_header import DTYPES, MAX_HEADER_BYTES, METADATA_KEY
from llamaconv.tensors import TensorSpec

__all__ = ["PT_METADATA", "SafetensorsWriter", "encode_header", "tensor_bytes"]

PT_METADATA: Mapping[str, str] = MappingProxyType({"format": "pt"})
"""What transformers writes, and older versions of it insist on, in the header of a weight file."""

_CODES = {dtype: code for code, dtype in DTYPES.items()}
_RANKS = {dtype: rank for rank, dtype in enumerate(DTYPES.values())}


def encode_header(
    specs: Iterable[TensorSpec], metadata: Mapping[str, str] | None = PT_METADATA
) -> tuple[bytes, dict[str, int], int]:
    """The start of a safetensors file, as the library would write it (``prepare`` in its tensor.rs).

    Tensors are ordered by dtype, the widest first, then by name; the JSON has no spaces but those that pad it
    to eight bytes.

    Returns:
        The length and header; each tensor's offset in bytes from the start of the file; the file's size in
        bytes.

    Raises:
        ValueError: A name twice or reserved, or a dtype, shape or name that the format cannot hold.
    """
    ordered = sorted(specs, key=lambda spec: (-_rank(spec), spec.name))
    table: dict[str, object] = {} if metadata is None else {METADATA_KEY: dict(metadata)}
    begins: dict[str, int] = {}
    position = 0
    for spec in ordered:
        if spec.name in begins or spec.name == METADATA_KEY:
            raise ValueError(f"the tensor name {spec.name!r} is taken")
        begins[spec.name] = position
        offsets = [position, position + spec.nbytes]
        table[spec.name] = {"dtype": _CODES[spec.dtype], "shape": _shape(spec), "data_offsets": offsets}
        position += spec.nbytes
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {len(text)} bytes is over the {MAX_HEADER_BYTES} of the format")
    start = 8 + len(text)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: start + begin for name, begin in begins.items()}, start + position


def _rank(spec: TensorSpec) -> int:
    if spec.dtype not in _RANKS:
        raise ValueError(f"safetensors cannot hold {spec}")
    return _RANKS[spec.dtype]


def _shape(spec: TensorSpec) -> list[int]:
    if _CODES[spec.dtype] != "F4":
        return list(spec.shape)
    if not spec.shape:
        raise ValueError(f"safetensors cannot hold the scalar {spec}")
    return [*spec.shape[:-1], spec.shape[-1] * 2]  # torch counts pairs, the header elements


class SafetensorsWriter(InPlaceWriter):
    """One safetensors file, written tensor by tensor.

    Args:
        path: The file, created or overwritten; its whole size is reserved at once.
        specs: All tensors that it will hold.
        metadata: Strings for the header, in this order; None leaves them out.

    Raises:
        DiskFullError, OutputError: The file system refuses; a file that could not be reserved is removed.
        ValueError: The format cannot hold ``specs``.
    """

    def __init__(
        self, path: Path, specs: Iterable[TensorSpec], metadata: Mapping[str, str] | None = PT_METADATA
    ) -> None:
        announced = tuple(specs)
        header, offsets, nbytes = encode_header(announced, metadata)
        super().__init__(path, announced, Skeleton(((0, header),), offsets, nbytes))
