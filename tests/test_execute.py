from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llamaconv.execute import execute
from llamaconv.model.stream import Stream
from llamaconv.model.workers import Workers
from llamaconv.plan.base import Plan, Step
from llamaconv.progress import Progress
from llamaconv.sinks.safetensors import ShardedWriter
from llamaconv.sinks.sharding import shard
from llamaconv.sources.open import open_checkpoint
from llamaconv.tensors import LazyTensor, TensorSpec
from tests.conftest import Checkpoint

A, B = "model.norm.weight", "model.layers.0.input_layernorm.weight"


class Doubled:
    """Notes when it begins and ends, and writes twice what it reads."""

    def __init__(self, log: list[str], failing: bool = False) -> None:
        self.log, self.failing = log, failing

    def __call__(self, source: Mapping[str, LazyTensor], stream: Stream) -> Iterator[tuple[str, Tensor]]:
        for name, lazy in source.items():
            self.log.append(f"read {name}")
            if self.failing:
                raise ValueError(name)
            yield name, lazy.read() * 2
            self.log.append(f"wrote {name}")


def plan_of(*steps: tuple[str, Doubled, float]) -> Plan:
    specs = {name: TensorSpec(name, (96,), torch.float32) for name in (A, B)}
    return Plan(
        tuple(Step(f"step {name}", (name,), (specs[name],), double, 0, flops) for name, double, flops in steps),
        shard([specs[name] for name, _, _ in steps], 10**9),
    )


def test_steps_run_in_order_and_one_at_a_time(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """What a step yields is written before it goes on, and progress weighs steps by arithmetic, else by bytes."""
    reader, log, told = open_checkpoint(checkpoint()).reader, list[str](), list[Progress]()
    plan = plan_of((B, Doubled(log), 1616.0), (A, Doubled(log), 0.0))
    with Workers(1) as crew:
        writer = ShardedWriter(tmp_path, plan.shards)
        execute(plan, reader, writer, Stream(crew, report=told.append), "doubling")
        writer.finish()
    assert log == [f"read {B}", f"wrote {B}", f"read {A}", f"wrote {A}"]
    assert [(p.task, p.done, p.total, p.unit, p.detail) for p in told] == [
        ("doubling", 0, 2000, "work", f"step {B}"),
        ("doubling", 1616, 2000, "work", f"step {A}"),
        ("doubling", 2000, 2000, "work", ""),
    ]
    written = load_file(tmp_path / "model.safetensors")
    assert torch.equal(written[A], reader[A].read() * 2)


def test_an_error_ends_the_run_where_it_happens(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """No later step begins; the writer is the caller's to abort."""
    reader, log = open_checkpoint(checkpoint()).reader, list[str]()
    plan = plan_of((B, Doubled(log, failing=True), 0.0), (A, Doubled(log), 0.0))
    with Workers(1) as crew:
        writer = ShardedWriter(tmp_path, plan.shards)
        with pytest.raises(ValueError, match=B):
            execute(plan, reader, writer, Stream(crew), "doubling")
        writer.abort()
    assert log == [f"read {B}"]
