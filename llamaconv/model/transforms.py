"""What a step does with its tensors: copy, embed, quantize.

A transform is called with the step's lazy tensors and the stream; it yields what the step writes, one tensor at a
time, and forgets it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from llamaconv.errors import NumericalError
from llamaconv.model.dense import cast, read_finite
from llamaconv.model.skeleton import Skeleton, clear, put
from llamaconv.model.stage_quantizer import StageQuantizer
from llamaconv.model.staged import Stage, run_staged
from llamaconv.model.stand_ins import BlockInputs
from llamaconv.model.stream import LayerReport, Stream
from llamaconv.quantizers.base import Map, QuantizedWeight, Quantizer
from llamaconv.tensors import LazyTensor

__all__ = ["Copy", "Embed", "QuantizeBlock", "QuantizeHead", "QuantizeWeight"]

Lazy = Mapping[str, LazyTensor]

_ROWS = 256  # of a weight looked at in one go


@dataclass(frozen=True)
class Copy:
    """Write tensors as they are, or in another dtype (None keeps each one's own). NaN and Inf are not passed on."""

    dtype: torch.dtype | None

    def __call__(self, source: Lazy, stream: Stream) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in read_finite(source).items():
            yield name, cast(name, tensor, self.dtype)


@dataclass(frozen=True)
class QuantizeWeight:
    """Quantize one weight that needs no calibration."""

    layer: str
    quantizer: Quantizer

    def __call__(self, source: Lazy, stream: Stream) -> Iterator[tuple[str, Tensor]]:
        begun = perf_counter()
        weight = read_finite(source)[f"{self.layer}.weight"]
        try:
            quantized = self.quantizer.quantize(weight, None, stream.workers.map)
        except NumericalError as error:
            raise NumericalError(f"{self.layer}: {error}", hint=error.hint) from error
        stream.layers.append(
            LayerReport(
                self.layer,
                self.quantizer.mode,
                self.quantizer.bits,
                self.quantizer.group_size,
                _weight_error(weight, quantized, stream.workers.map),
                seconds=perf_counter() - begun,
            )
        )
        for suffix, tensor in quantized.tensors().items():
            yield f"{self.layer}.{suffix}", tensor


@dataclass(frozen=True)
class Embed:
    """Copy what runs before the blocks, and turn the calibration tokens into hidden states on the way."""

    skeleton: Skeleton
    sequences: tuple[Tensor, ...]
    dtype: torch.dtype | None

    def __call__(self, source: Lazy, stream: Stream) -> Iterator[tuple[str, Tensor]]:
        begun = perf_counter()
        names = self.skeleton.entry_parameters()
        tensors = read_finite(source)
        for name in names:
            tensor = tensors[name]
            put(self.skeleton.model, name, tensor.to(stream.device, self.skeleton.dtype))
        try:
            with self.skeleton.before_blocks() as embed:
                tokens = [sequence.to(stream.device) for sequence in self.sequences]
                stream.hidden = stream.workers.map(embed, tokens)
        finally:
            clear(self.skeleton.model, names)
        stream.spent("embedding", perf_counter() - begun)
        for name, tensor in tensors.items():
            yield name, cast(name, tensor, self.dtype)


@dataclass(frozen=True)
class QuantizeBlock:
    """Fill a decoder block, run the samples through it stage by stage, quantize each stage, empty the block.

    Attributes:
        skeleton, index: The block.
        stages: Its linear layers by shared input.
        inputs: What the block receives beside each sample's hidden states.
        stage_quantizer: What is done with a stage.
        dtype: Of what stays dense (None keeps each tensor's own).
        held: How many samples' forwards stay suspended at a time.
    """

    skeleton: Skeleton
    index: int
    stages: tuple[Stage, ...]
    inputs: Sequence[BlockInputs]
    stage_quantizer: StageQuantizer
    dtype: torch.dtype | None
    held: int

    def __call__(self, source: Lazy, stream: Stream) -> Iterator[tuple[str, Tensor]]:
        begun, counted = perf_counter(), sum(stream.seconds.values())
        prefix = self.skeleton.block_names[self.index]
        block = self.skeleton.blocks[self.index]
        for name, tensor in read_finite(source).items():
            put(block, name.removeprefix(f"{prefix}."), tensor.to(stream.device, self.skeleton.dtype))
        run = self.stage_quantizer.begin(block, prefix, self.stages, source, stream)
        moved = {id(own): own.to(stream.device) for own in self.inputs}  # most samples share theirs
        try:
            run_staged(
                block,
                self.stages,
                stream.hidden,
                [moved[id(own)] for own in self.inputs],
                stream.workers,
                run.collect,
                run.quantize,
                self.held,
            )
        finally:
            clear(block)
        rest = sum(stream.seconds.values()) - counted
        stream.spent("forward", perf_counter() - begun - rest)
        yield from run.outputs(self.dtype)


@dataclass(frozen=True)
class QuantizeHead:
    """Quantize the head on what comes out of the last block and the final norm, which is copied."""

    skeleton: Skeleton
    stage_quantizer: StageQuantizer
    dtype: torch.dtype | None

    def __call__(self, source: Lazy, stream: Stream) -> Iterator[tuple[str, Tensor]]:
        model, head = self.skeleton.model, self.skeleton.head
        assert head is not None
        tensors = read_finite(source)
        for name, tensor in tensors.items():
            if not name.startswith(f"{head}."):
                put(model, name, tensor.to(stream.device, self.skeleton.dtype))
        stage = Stage((head,), tensors[f"{head}.weight"].shape[1])
        run = self.stage_quantizer.begin(model, "", (stage,), source, stream)
        try:
            with self.skeleton.before_head() as head_input:
                run.collect(0, [states[0] for states in stream.workers.map(head_input, stream.hidden)])
            run.quantize(0)
        finally:
            clear(model, tensors)
        yield from run.outputs(self.dtype)


def _weight_error(weight: Tensor, quantized: QuantizedWeight, map: Map) -> float:
    """``|W - Q|^2 / |W|^2``, a few rows at a time."""

    def sums(first: int) -> tuple[float, float]:
        part = slice(first, first + _ROWS)
        exact = weight[part].double()
        difference = quantized.rows(part).dequantize() - exact
        return float(difference.square_().sum()), float(exact.square_().sum())

    parts = map(sums, range(0, weight.shape[0], _ROWS))
    lost, whole = (sum(column) for column in zip(*parts, strict=True))
    return lost / whole if whole else 0.0
