"""Quantizing the linear layers of a stage: one Hessian, one factor, every layer that shares the input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from time import perf_counter

import torch
from torch import Tensor, nn

from llamaconv.errors import NumericalError
from llamaconv.model.dense import cast
from llamaconv.model.skeleton import put
from llamaconv.model.staged import Stage
from llamaconv.model.stream import LayerReport, Stream
from llamaconv.quantizers.base import Quantizer
from llamaconv.quantizers.hessian import Factor, accumulate, factorize, mirror, relative_error, round_to_nearest
from llamaconv.tensors import LazyTensor

__all__ = ["StageQuantizer"]


@dataclass(frozen=True)
class StageQuantizer:
    """How stages are quantized.

    Attributes:
        quantizer: A calibrated quantizer.
        damping: Fraction of the Hessian's mean diagonal added to its diagonal.
        act_order: Quantize columns in the order of falling diagonal.
        fallback: Round a layer to nearest where its Hessian cannot be factored, instead of failing.
    """

    quantizer: Quantizer
    damping: float
    act_order: bool
    fallback: bool

    def begin(
        self,
        module: nn.Module,
        prefix: str,
        stages: Sequence[Stage],
        source: Mapping[str, LazyTensor],
        stream: Stream,
    ) -> StageRun:
        """Ready to quantize the stages of a module whose parameters are called ``prefix.name`` in ``source``."""
        return StageRun(self, module, f"{prefix}." if prefix else "", stages, source, stream)


@dataclass
class StageRun:
    """The stages of one module on their way."""

    settings: StageQuantizer
    module: nn.Module
    prefix: str
    stages: Sequence[Stage]
    source: Mapping[str, LazyTensor]
    stream: Stream
    _hessian: Tensor | None = field(default=None, repr=False)
    _stored: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _done: set[str] = field(default_factory=set, repr=False)

    def collect(self, stage: int, inputs: list[Tensor]) -> None:
        """Add inputs [L, K] of a stage to its Hessian."""
        begun = perf_counter()
        self.stream.now_at(f"{self.prefix}{self.stages[stage].layers[0]}")
        if self._hessian is None:
            width = self.stages[stage].width
            self._hessian = torch.zeros((width, width), device=self.stream.device)
        accumulate(self._hessian, inputs, self.stream.workers.map)
        self.stream.spent("Hessian", perf_counter() - begun)

    def quantize(self, stage: int) -> None:
        """Quantize the layers of a stage and put the weights that their codes stand for into the module."""
        assert self._hessian is not None
        hessian, self._hessian = self._hessian.cpu(), None
        mirror(hessian)
        layers = self.stages[stage].layers
        names = [f"{self.prefix}{layer}" for layer in layers]
        factor, fallback = self._factor(hessian, names)
        for layer, name in zip(layers, names, strict=True):
            self._quantize_layer(layer, name, hessian, factor, fallback)

    def outputs(self, dtype: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
        """What the checkpoint stores for the module: the quantized layers, and the rest dense in ``dtype``."""
        for name, lazy in self.source.items():
            layer, _, leaf = name.rpartition(".")
            if layer in self._done and leaf == "weight":
                continue
            # The GPTQ kernels add a float16 bias.
            yield name, cast(name, lazy.read(), torch.float16 if layer in self._done else dtype)
        while self._stored:
            name = next(iter(self._stored))
            yield name, self._stored.pop(name)

    def _factor(self, hessian: Tensor, names: list[str]) -> tuple[Factor, str | None]:
        begun = perf_counter()
        if not bool(torch.isfinite(hessian.diagonal()).all()):
            raise NumericalError(
                f"NaN or Inf in the inputs of {', '.join(names)}",
                hint="Try --compute-dtype float32; if it stays, the checkpoint or the layer before is broken.",
            )
        try:
            return factorize(hessian, self.settings.damping, self.settings.act_order), None
        except NumericalError as error:
            if not self.settings.fallback:
                raise NumericalError(f"{', '.join(names)}: {error}", hint=error.hint) from error
            return round_to_nearest(hessian), "rtn"
        finally:
            self.stream.spent("factorization", perf_counter() - begun)

    def _quantize_layer(self, layer: str, name: str, hessian: Tensor, factor: Factor, fallback: str | None) -> None:
        begun = perf_counter()
        self.stream.now_at(name)
        quantizer, map = self.settings.quantizer, self.stream.workers.map
        weight = self.source[f"{name}.weight"].read().float()
        try:
            quantized = quantizer.quantize(weight, factor, map)
        except NumericalError as error:
            raise NumericalError(f"{name}: {error}", hint=error.hint) from error
        dequantized = quantized.dequantize()
        lost = relative_error(weight, dequantized, hessian, map)
        if not isfinite(lost):
            raise NumericalError(
                f"{name}: its outputs on the calibration data overflow float32",
                hint="Leave the layer out with --skip; its inputs are too large to weigh.",
            )
        current = self.module.get_parameter(f"{layer}.weight")
        put(self.module, f"{layer}.weight", dequantized.to(self.stream.device, current.dtype))
        for suffix, tensor in quantized.tensors().items():
            self._stored[f"{name}.{suffix}"] = tensor
        self._done.add(name)
        seconds = perf_counter() - begun
        self.stream.spent("quantization", seconds)
        self.stream.layers.append(
            LayerReport(
                name,
                quantizer.mode,
                quantizer.bits,
                quantizer.group_size,
                lost,
                factor.damping,
                factor.raises,
                fallback,
                seconds,
            )
        )
