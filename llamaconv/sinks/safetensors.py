"""Safetensors files: the header first, then each tensor to its offset.

The bytes are those of ``safetensors.torch.save_file``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from llamaconv.sinks.skeleton import Skeleton
from llamaconv.sources.safetensors_header import DTYPES, MAX_HEADER_BYTES, METADATA_KEY
from llamaconv.tensors import TensorSpec

__all__ = ["PT_METADATA", "encode_header", "safetensors_refusals", "safetensors_skeleton"]

PT_METADATA: Mapping[str, str] = MappingProxyType({"format": "pt"})
"""What transformers writes, and older versions of it insist on, in the header of a weight file."""

_CODES = {dtype: code for code, dtype in DTYPES.items()}
_RANKS = {dtype: rank for rank, dtype in enumerate(DTYPES.values())}


def safetensors_refusals(specs: Iterable[TensorSpec]) -> list[str]:
    """Why the format cannot hold the tensors, one by one."""
    return [reason for spec in specs if (reason := _refusal(spec))]


def _refusal(spec: TensorSpec) -> str | None:
    if spec.name == METADATA_KEY:
        return f"safetensors keeps the name {spec.name!r} for itself"
    if not _is_text(spec.name):
        return f"safetensors cannot hold the name {spec.name!r}, which is no text"
    if spec.dtype not in _CODES:
        return f"safetensors cannot hold {spec}"
    if _CODES[spec.dtype] == "F4" and not spec.shape:
        return f"safetensors cannot hold the scalar {spec}"
    return None


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON and pickles can spell
        return False
    return True


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
    announced = tuple(specs)
    refusals = safetensors_refusals(announced)
    if refusals:
        raise ValueError("\n".join(refusals))
    ordered = sorted(announced, key=lambda spec: (-_RANKS[spec.dtype], spec.name))
    table: dict[str, object] = {} if metadata is None else {METADATA_KEY: dict(metadata)}
    begins: dict[str, int] = {}
    position = 0
    for spec in ordered:
        if spec.name in begins:
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


def _shape(spec: TensorSpec) -> list[int]:
    if _CODES[spec.dtype] != "F4":
        return list(spec.shape)
    return [*spec.shape[:-1], spec.shape[-1] * 2]  # torch counts pairs, the header elements


def safetensors_skeleton(specs: Iterable[TensorSpec], metadata: Mapping[str, str] | None = PT_METADATA) -> Skeleton:
    """The file without the data.

    Raises:
        ValueError: As :func:`encode_header`.
    """
    header, offsets, nbytes = encode_header(specs, metadata)
    return Skeleton(((0, header),), offsets, nbytes)
