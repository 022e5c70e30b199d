from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Condition

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llamaconv.execute import execute, execute_concurrently
from llamaconv.model.stream import Stream
from llamaconv.model.workers import Workers
from llamaconv.plan.base import Plan, Step, Transform
from llamaconv.progress import Progress
from llamaconv.sinks.checkpoint import CheckpointWriter
from llamaconv.sinks.sharding import shard
from llamaconv.sources.base import CheckpointReader
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
        writer = CheckpointWriter(tmp_path, plan.shards)
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
        writer = CheckpointWriter(tmp_path, plan.shards)
        with pytest.raises(ValueError, match=B):
            execute(plan, reader, writer, Stream(crew), "doubling")
        writer.abort()
    assert log == [f"read {B}"]


class Watched:
    """Waits until as many steps as it expects are under way, or until it is sure that they will not be."""

    def __init__(self, expected: int, patience: float = 10.0) -> None:
        self.expected, self.patience = expected, patience
        self.under_way = self.most = 0
        self._changed = Condition()

    def __call__(self, source: Mapping[str, LazyTensor], stream: Stream) -> Iterator[tuple[str, Tensor]]:
        with self._changed:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.most >= self.expected, self.patience)
        for name, lazy in source.items():
            yield name, lazy.read()
        with self._changed:
            self.under_way -= 1


def norms(reader: CheckpointReader) -> list[TensorSpec]:
    return [spec for name, spec in reader.specs.items() if name.endswith("norm.weight")]


def independent(specs: list[TensorSpec], transform: Transform, peak_bytes: int, resident: int) -> Plan:
    steps = tuple(Step(spec.name, (spec.name,), (spec,), transform, peak_bytes) for spec in specs)
    return Plan(steps, shard(specs, 10**9), resident)


def run_concurrently(plan: Plan, reader: CheckpointReader, out: Path, workers: int, told: list[Progress]) -> None:
    with Workers(1) as crew:
        writer = CheckpointWriter(out, plan.shards)
        try:
            execute_concurrently(plan, reader, writer, Stream(crew, report=told.append), "copying", workers)
            writer.finish()
        finally:
            writer.abort()


def test_independent_steps_run_side_by_side(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """As many as there are workers, where memory allows; progress counts bytes."""
    reader, transform, told = open_checkpoint(checkpoint()).reader, Watched(3), list[Progress]()
    specs = norms(reader)
    run_concurrently(independent(specs, transform, 10, 20), reader, tmp_path, 3, told)
    assert transform.most == 3
    written = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(written[spec.name], reader[spec.name].read()) for spec in specs)
    total = sum(spec.nbytes for spec in specs)
    assert (told[0].done, told[-1].done, told[-1].total, told[-1].unit) == (0, total, total, "bytes")


def test_independent_steps_share_the_memory_that_the_plan_states(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Two of ten bytes fit into twenty; a third waits, however many workers there are."""
    reader, transform = open_checkpoint(checkpoint()).reader, Watched(3, patience=0.2)
    run_concurrently(independent(norms(reader), transform, 10, 10), reader, tmp_path, 4, [])
    assert transform.most == 2


def test_no_independent_step_begins_after_an_error(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """What was under way ends, what waited never begins, and the error is the step's own."""
    reader, log = open_checkpoint(checkpoint()).reader, list[str]()
    plan = independent(norms(reader), Doubled(log, failing=True), 10, 0)
    with pytest.raises(ValueError, match=r"norm\.weight"):
        run_concurrently(plan, reader, tmp_path, 1, [])
    assert len(log) == 1
