"""The plan of ``quantize``: which weights are quantized, in which steps, into which files, at what cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llamaconv.errors import OutOfMemoryError
from llamaconv.model.skeleton import Skeleton
from llamaconv.model.stage_quantizer import StageQuantizer
from llamaconv.model.staged import Stage, find_stages
from llamaconv.model.stand_ins import BlockInputs
from llamaconv.model.stream import record_lengths
from llamaconv.model.transforms import Copy, Embed, QuantizeBlock, QuantizeHead, QuantizeWeight
from llamaconv.plan.base import Plan, Step
from llamaconv.plan.costs import BlockCost, block_cost, held_samples, human
from llamaconv.plan.selection import Selection
from llamaconv.quantizers.base import Quantizer
from llamaconv.sinks.sharding import shard
from llamaconv.tensors import TensorSpec

__all__ = ["plan_quantization"]


def plan_quantization(
    skeleton: Skeleton,
    specs: Mapping[str, TensorSpec],
    selection: Selection,
    stage_quantizer: StageQuantizer | None,
    quantizer: Quantizer,
    sequences: Sequence[Tensor],
    *,
    dtype: torch.dtype | None,
    max_shard_size: int,
    workers: int,
    memory: int | None,
) -> Plan:
    """Decide every step.

    Args:
        skeleton: The model.
        specs: What the checkpoint holds.
        selection: What is quantized.
        stage_quantizer: For calibrated quantizers, else None.
        quantizer: The quantizer.
        sequences: Calibration tokens, [length] each.
        dtype: Of what stays dense, None for each tensor's own.
        max_shard_size: Bytes.
        workers: How many samples run at a time.
        memory: Bytes available, None if unknown.

    Raises:
        OutOfMemoryError: Not even one sample at a time fits in ``memory``.
    """
    if stage_quantizer is None:
        resident, notes = 0, tuple[str, ...]()
        steps = list(_uncalibrated_steps(skeleton, specs, selection, quantizer, dtype))
    else:
        calibrated = _Calibrated(skeleton, specs, selection, stage_quantizer, tuple(sequences), dtype)
        steps, notes = calibrated.steps(workers, memory)
        resident = calibrated.resident
    written = [spec for step in steps for spec in step.writes]
    return Plan(tuple(steps), shard(written, max_shard_size), resident, notes)


def _uncalibrated_steps(
    skeleton: Skeleton,
    specs: Mapping[str, TensorSpec],
    selection: Selection,
    quantizer: Quantizer,
    dtype: torch.dtype | None,
) -> Iterator[Step]:
    quantized = {
        f"{prefix}.{layer}"
        for prefix, layers in zip(skeleton.block_names, selection.blocks, strict=True)
        for layer in layers
    } | ({selection.head} if selection.head else set())
    for name in _in_order(skeleton, specs):
        spec, layer = specs[name], name.rpartition(".")[0]
        if name == f"{layer}.weight" and layer in quantized:
            writes = quantizer.specs(layer, spec)
            # The weight, the absolute values that tell whether it is finite, and what is stored.
            peak = 2 * spec.nbytes + spec.numel + sum(item.nbytes for item in writes)
            yield Step(layer, (name,), writes, QuantizeWeight(layer, quantizer), peak)
        else:
            yield _copy(name, (spec,), dtype)


def _in_order(skeleton: Skeleton, specs: Mapping[str, TensorSpec]) -> list[str]:
    """The checkpoint's tensors in the model's order: embedding, blocks, norm, head."""
    model = [name for name, _ in skeleton.model.named_parameters(remove_duplicate=False) if name in specs]
    known = set(model)
    return model + [name for name in specs if name not in known]


def _copy(name: str, specs: Sequence[TensorSpec], dtype: torch.dtype | None) -> Step:
    return Step(
        name,
        tuple(spec.name for spec in specs),
        tuple(_dense(spec, dtype) for spec in specs),
        Copy(dtype),
        2 * max(spec.nbytes for spec in specs),
    )


def _dense(spec: TensorSpec, dtype: torch.dtype | None) -> TensorSpec:
    return spec if dtype is None or not spec.dtype.is_floating_point else replace(spec, dtype=dtype)


@dataclass(frozen=True)
class _Calibrated:
    """The steps of a quantizer that needs the model to run."""

    skeleton: Skeleton
    specs: Mapping[str, TensorSpec]
    selection: Selection
    stage_quantizer: StageQuantizer
    sequences: tuple[Tensor, ...]
    dtype: torch.dtype | None

    @property
    def tokens(self) -> int:
        return sum(len(sequence) for sequence in self.sequences)

    @property
    def hidden_size(self) -> int:
        size: int = self.skeleton.model.config.get_text_config().hidden_size
        return size

    @property
    def resident(self) -> int:
        return self.tokens * self.hidden_size * self.skeleton.dtype.itemsize

    def steps(self, workers: int, memory: int | None) -> tuple[list[Step], tuple[str, ...]]:
        received = record_lengths(self.skeleton, self.sequences)
        longest = max(received)
        stages = [
            find_stages(
                block,
                torch.empty((1, longest, self.hidden_size), dtype=self.skeleton.dtype, device="meta"),
                received[longest][index],
                self.selection.blocks[index],
            )
            for index, block in enumerate(self.skeleton.blocks)
        ]
        costs = [
            block_cost(self.skeleton, index, self.specs, stages[index], self.tokens, longest, self.hidden_size)
            for index in range(len(stages))
        ]
        held, notes = self._held(costs, workers, memory)
        steps = [self._embed()]
        steps += [
            self._block(
                index,
                stages[index],
                [received[len(sequence)][index] for sequence in self.sequences],
                costs[index],
                held,
                workers,
            )
            for index in range(len(stages))
        ]
        steps += self._exit()
        return steps, notes

    def _held(self, costs: Sequence[BlockCost], workers: int, memory: int | None) -> tuple[int, tuple[str, ...]]:
        """How many samples' forwards stay suspended, and what to say about it."""
        samples = len(self.sequences)
        worst = max(costs, key=lambda cost: cost.fixed + cost.per_sample)
        held = held_samples(worst, samples, workers, self.resident, memory)
        if held is None:
            raise OutOfMemoryError(
                f"needs {human(self.resident + worst.fixed + 2 * workers * worst.per_sample)} of memory "
                f"for {samples} calibration samples; {human(memory or 0)} are available",
                hint="Use fewer --samples or a shorter --seq-len, or --compute-dtype bfloat16.",
            )
        if held == samples:
            return held, ()
        return held, (
            f"memory holds the suspended forwards of {held} of {samples} samples; the others run again for each "
            "stage: slower, with the same result",
        )

    def _embed(self) -> Step:
        entry = self.skeleton.entry_parameters()
        specs = [self.specs[name] for name in entry]
        return Step(
            "embedding",
            tuple(spec.name for spec in specs),
            tuple(_dense(spec, self.dtype) for spec in specs),
            Embed(self.skeleton, self.sequences, self.dtype),
            3 * sum(spec.nbytes for spec in specs),
        )

    def _block(
        self,
        index: int,
        stages: tuple[Stage, ...],
        inputs: Sequence[BlockInputs],
        cost: BlockCost,
        held: int,
        workers: int,
    ) -> Step:
        reads = [self.specs[name] for name in self.skeleton.block_parameters(index)]
        quantized = {f"{self.skeleton.block_names[index]}.{layer}" for layer in self.selection.blocks[index]}
        transform = QuantizeBlock(self.skeleton, index, stages, inputs, self.stage_quantizer, self.dtype, held)
        suspended = held + (workers if held < len(self.sequences) else 0)
        return Step(
            self.skeleton.block_names[index],
            tuple(spec.name for spec in reads),
            tuple(self._written(reads, quantized)),
            transform,
            cost.fixed + (suspended + workers) * cost.per_sample,
            cost.flops,
        )

    def _written(self, reads: Sequence[TensorSpec], quantized: set[str]) -> Iterator[TensorSpec]:
        for spec in reads:
            layer, _, leaf = spec.name.rpartition(".")
            if layer not in quantized:
                yield _dense(spec, self.dtype)
            elif leaf == "weight":
                yield from self.stage_quantizer.quantizer.specs(layer, spec)
            else:
                yield replace(spec, dtype=torch.float16)

    def _exit(self) -> list[Step]:
        """Final norm and head; quantized together, or copied one by one. Then what no module owns."""
        exits = [name for name in self.skeleton.exit_parameters() if name in self.specs]
        modelled = {name for name, _ in self.skeleton.model.named_parameters(remove_duplicate=False)}
        extra = [_copy(name, [spec], self.dtype) for name, spec in self.specs.items() if name not in modelled]
        if self.selection.head is None:
            return [_copy(name, [self.specs[name]], self.dtype) for name in exits] + extra
        reads = [self.specs[name] for name in exits]
        weight = self.specs[f"{self.selection.head}.weight"]
        return [
            Step(
                self.selection.head,
                tuple(exits),
                tuple(self._written(reads, {self.selection.head})),
                QuantizeHead(self.skeleton, self.stage_quantizer, self.dtype),
                weight.nbytes * 2 + weight.numel * 13 + 3 * 4 * weight.shape[1] ** 2 + self.resident,
                float(weight.numel) * weight.shape[1] + float(self.tokens) * weight.shape[1] ** 2,
            ),
            *extra,
        ]
