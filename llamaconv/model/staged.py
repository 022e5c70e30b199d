"""One forward per decoder block, paused where a linear layer first sees its input.

The usual tools run a block once per group of linear layers and once more for its output. Here every sample's forward
is a greenlet: it runs until it reaches the first layer of the next stage and hands the layer's input over. When all
samples have arrived, the stage's layers are quantized from the statistic of those inputs, and every forward goes on
from where it stood, with the quantized weights. Each linear layer is computed once per token.

Suspended forwards hold their intermediate activations. Where those of all samples do not fit in memory, only as many
samples as fit stay suspended at a time; the others are abandoned at each pause and start again from the block's input,
which costs time and changes no bit of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from llamaconv.errors import UnsupportedError
from llamaconv.model.stand_ins import BlockInputs
from llamaconv.model.workers import Workers

__all__ = ["Stage", "find_stages", "forward", "run_staged"]


@dataclass(frozen=True)
class Stage:
    """Linear layers that share one input.

    Attributes:
        layers: Their names inside the block, in the order in which they run.
        width: K, the columns of that input.
    """

    layers: tuple[str, ...]
    width: int


def find_stages(block: nn.Module, hidden: Tensor, inputs: BlockInputs, layers: Sequence[str]) -> tuple[Stage, ...]:
    """The stages of a block, found by one forward on the meta device.

    Args:
        block: All its parameters on meta.
        hidden: [1, L, D] on meta.
        inputs: What the block receives beside it.
        layers: The names of the linear layers to look for.

    Raises:
        UnsupportedError: A layer does not run exactly once.
    """
    seen: list[tuple[Tensor, list[str]]] = []

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            x = arguments[0]
            shared = next((names for other, names in seen if other is x), None)
            if shared is None:
                seen.append((x, [name]))
            else:
                shared.append(name)

        return hook

    hooks = [block.get_submodule(name).register_forward_pre_hook(watch(name)) for name in layers]
    try:
        meta = inputs.to("meta")
        block(hidden, *meta.positional, **meta.keyword)
    finally:
        for hook in hooks:
            hook.remove()
    runs = [name for _, names in seen for name in names]
    if sorted(runs) != sorted(layers):
        odd = sorted({name for name in layers if runs.count(name) != 1})
        raise UnsupportedError(
            f"these layers do not run exactly once per forward: {', '.join(odd)}",
            hint="Leave them out with --skip.",
        )
    return tuple(Stage(tuple(names), x.shape[-1]) for x, names in seen)


def forward(block: nn.Module, hidden: Tensor, inputs: BlockInputs) -> Tensor:
    """The block's output [1, L, D] for hidden states [1, L, D]."""
    output = block(hidden, *inputs.positional, **inputs.keyword)
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def run_staged(
    block: nn.Module,
    stages: Sequence[Stage],
    hidden: list[Tensor],
    inputs: Sequence[BlockInputs],
    workers: Workers,
    collect: Callable[[int, list[Tensor]], None],
    quantize: Callable[[int], None],
    held: int,
) -> None:
    """Run all samples through a block, quantizing each stage when all its inputs are there.

    Args:
        block: Filled with its weights.
        stages: From :func:`find_stages`.
        hidden: Each sample's hidden states [1, L, D]; replaced by the block's output.
        inputs: What the block receives beside each sample.
        workers: Run the samples.
        collect: Called with a stage and some samples' inputs [L, K] to it, in the samples' order.
        quantize: Called once per stage when all inputs are collected; must put the new weights into the block.
        held: How many samples may stay suspended while the others are abandoned and started again.
    """
    samples = [_Sample(block, states, own) for states, own in zip(hidden, inputs, strict=True)]
    if held < len(samples):
        held -= held % workers.count  # so that each sample has the same worker in its wave as among all samples
    rest = range(held, len(samples), workers.count)
    waves = [samples[:held]] if held else []
    waves += [samples[first : first + workers.count] for first in rest]
    hooks = [
        block.get_submodule(stage.layers[0]).register_forward_pre_hook(_pause_before(index))
        for index, stage in enumerate(stages)
    ]
    try:
        for index in range(len(stages)):
            for wave in waves:
                collect(index, workers.map(lambda sample: sample.advance_to(index), wave))  # noqa: B023 - runs at once
                if wave is not waves[0] or not held:
                    workers.map(_Sample.abandon, wave)
            quantize(index)

        def finish(index: int) -> None:
            hidden[index] = samples[index].finish()

        workers.map(finish, range(len(samples)))
    except BaseException:
        workers.map(_Sample.abandon, samples)  # what is suspended would outlive its thread, activations and all
        raise
    finally:
        for hook in hooks:
            hook.remove()


def _pause_before(stage: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        caller = getcurrent().parent
        if caller is not None:
            caller.switch((stage, arguments[0]))

    return hook


class _Sample:
    """One sample's way through the block. All calls must come from the same thread."""

    def __init__(self, block: nn.Module, hidden: Tensor, inputs: BlockInputs) -> None:
        self._start = lambda: forward(block, hidden, inputs)
        self._way: greenlet | None = None

    def advance_to(self, stage: int) -> Tensor:
        """Run on until the layers of ``stage`` are next, through stages that have been quantized already.

        Returns:
            Their input, [L, K].
        """
        if self._way is None:
            self._way = greenlet(self._start)
        reached, x = -1, torch.empty(0)
        while reached < stage:
            reached, x = self._way.switch()
        return x.reshape(-1, x.shape[-1])

    def finish(self) -> Tensor:
        """Run to the end; the block's output."""
        way = self._way or greenlet(self._start)
        result: Any = None
        while not way.dead:
            result = way.switch()
        self._way = None
        # Nothing may hold on to the block's input any longer.
        self._start = lambda: result
        output: Tensor = result
        return output

    def abandon(self) -> None:
        """Give up what is suspended; the next call starts again from the block's input."""
        if self._way is not None and not self._way.dead:
            self._way.throw()
        self._way = None
