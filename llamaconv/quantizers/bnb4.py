"""NF4 and FP4 (arXiv 2305.14314) as bitsandbytes stores them: two codes to the byte, one scale to a run of weights.

What the bytes stand for is computed by bitsandbytes itself. It would read past the end of tensors that are too short,
so every size is checked first.

Format source: bitsandbytes 0.50 ``functional.py`` (``QuantState.as_dict``), transformers ``integrations/bitsandbytes``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from llamaconv.errors import CheckpointError, ConfigError
from llamaconv.json_files import parse_object, validated
from llamaconv.tensors import LazyTensor, TensorSpec

__all__ = ["STATES", "Bnb4", "Bnb4Weight", "stored_shape"]

_PREFIX = "weight."  # of every part but the codes themselves
STATES = tuple(f"{_PREFIX}quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4"))
"""The suffixes of the tensor that says how a weight is stored; a layer has one of them."""

_NESTED = ("nested_absmax", "nested_quant_map")
_STATE_BYTES = 1 << 16  # real ones take 200
_CODES = 16
_NESTED_CODES = 256

_Size = Annotated[int, Field(ge=1)]
_BlockSize = Literal[32, 64, 128, 256, 512, 1024, 2048, 4096]


class _State(BaseModel):
    """The JSON of a quant_state. A key that is not known might change what the codes stand for."""

    model_config = ConfigDict(strict=True, extra="forbid")

    quant_type: Literal["nf4", "fp4"]
    blocksize: _BlockSize
    dtype: Literal["float16", "bfloat16", "float32"]
    shape: Annotated[list[_Size], Field(min_length=2, max_length=2)]
    nested_blocksize: _BlockSize | None = None
    nested_dtype: Literal["float32"] | None = None
    nested_offset: float | None = None

    @property
    def nested(self) -> bool:
        """Whether the scales are quantized as well."""
        return self.nested_blocksize is not None


@dataclass(frozen=True)
class Bnb4Weight:
    """A weight as its stored tensors: ``codes`` uint8 [n / 2, 1], all ``others`` by bitsandbytes' names for them."""

    codes: Tensor
    others: Mapping[str, Tensor]

    def dequantize(self) -> Tensor:
        """[N, K] float32, of values that the dtype of the original weight can hold."""
        from bitsandbytes.functional import QuantState, dequantize_4bit

        state = QuantState.from_dict(dict(self.others), torch.device("cpu"))  # takes the dictionary apart
        weight: Tensor = dequantize_4bit(self.codes, state)
        return weight.reshape(state.shape).float()  # two codes alone look like a transposed weight to it


@dataclass(frozen=True)
class Bnb4:
    """Reads NF4 and FP4; each layer says which of them it is."""

    mode = "bnb.4bit"
    bits = 4
    marker = "weight.absmax"
    suffixes = ("weight", *(_PREFIX + name for name in ("absmax", "quant_map", *_NESTED)), *STATES)

    def read(self, tensors: Mapping[str, Tensor]) -> Bnb4Weight:
        """The weight of a layer, its codes as uint8 or viewed as any other dtype (``bnb_4bit_quant_storage``).

        Raises:
            CheckpointError: The quant_state is not what bitsandbytes writes, or the tensors do not fit it.
        """
        suffix = _only_state(tensors)
        codes = tensors["weight"].contiguous().view(-1).view(torch.uint8).view(-1, 1)
        state = _parsed(suffix, tensors[suffix], codes.nbytes)
        others = {name.removeprefix(_PREFIX): part for name, part in tensors.items() if name != "weight"}
        faults = list(_faults(state, others))
        if faults:
            raise CheckpointError("\n".join(faults))
        return Bnb4Weight(codes, {name: part.contiguous() for name, part in others.items()})


def stored_shape(parts: Mapping[str, LazyTensor]) -> tuple[int, ...]:
    """[N, K] of a layer's weight, from the few bytes of its quant_state; the layer's tensors by suffix.

    Raises:
        CheckpointError: The quant_state is not what bitsandbytes writes, or the codes are not as many.
    """
    suffix = _only_state(parts)
    spec = parts[suffix].spec
    if spec.nbytes > _STATE_BYTES:
        raise CheckpointError(f"quant_state: {spec.nbytes} bytes are too many")
    return tuple(_parsed(suffix, parts[suffix].read(), parts["weight"].spec.nbytes).shape)


def _only_state(parts: Mapping[str, object]) -> str:
    found = [suffix for suffix in STATES if suffix in parts]
    if len(found) != 1:
        raise CheckpointError(f"quant_state: {len(found)} of them where 1 belongs")
    return found[0]


def _parsed(suffix: str, stored: Tensor, nbytes: int) -> _State:
    """The quant_state in a tensor, held against its own name and the number of bytes of codes."""
    try:
        raw = parse_object(stored.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    except ValueError as error:
        raise CheckpointError(f"quant_state: {error}") from error
    try:
        state = validated(_State, raw, Path("quant_state"))
    except ConfigError as error:
        raise CheckpointError(error.message) from error
    if not suffix.endswith(state.quant_type):
        raise CheckpointError(f"quant_state: {state.quant_type} by its data, not by its name")
    if -(-prod(state.shape) // 2) != nbytes:
        raise CheckpointError(f"quant_state: a weight of {state.shape}, but codes for {2 * nbytes} values")
    if len({value is None for value in (state.nested_blocksize, state.nested_dtype, state.nested_offset)}) > 1:
        raise CheckpointError("quant_state: of nested_blocksize, nested_dtype and nested_offset some are missing")
    return state


def _faults(state: _State, others: Mapping[str, Tensor]) -> Iterator[str]:
    """Which tensors are missing, or not of the shape and dtype that the quant_state asks for."""
    blocks = -(-prod(state.shape) // state.blocksize)
    expected = {
        "absmax": TensorSpec("absmax", (blocks,), torch.uint8 if state.nested else torch.float32),
        "quant_map": TensorSpec("quant_map", (_CODES,), torch.float32),
    }
    if state.nested_blocksize is not None:
        shapes = ((-(-blocks // state.nested_blocksize),), (_NESTED_CODES,))
        expected |= {name: TensorSpec(name, shape, torch.float32) for name, shape in zip(_NESTED, shapes, strict=True)}
    for name, spec in expected.items():
        if name not in others:
            yield f"{name} is missing"
        elif TensorSpec.of(name, others[name]) != spec:
            yield f"{TensorSpec.of(name, others[name])} where {spec} belongs"
    yield from (
        f"{name} has no place in a quant_state without it" for name in _NESTED if name in others.keys() - expected
    )
