"""Carrying out a plan: read → transform → write → forget, one step at a time."""

from __future__ import annotations

import logging
from time import perf_counter

from llamaconv.model.stream import Stream
from llamaconv.plan.base import Plan
from llamaconv.progress import Progress
from llamaconv.sinks.safetensors import ShardedWriter
from llamaconv.sources.base import CheckpointReader

__all__ = ["execute"]

logger = logging.getLogger(__name__)


def execute(plan: Plan, reader: CheckpointReader, writer: ShardedWriter, stream: Stream, task: str) -> None:
    """Run every step in order; what a step writes is on its way to disk before the next one begins.

    Args:
        plan: What to do.
        reader: Where tensors come from.
        writer: Where they go; the caller finishes or aborts it.
        stream: Hidden states and workers, handed from step to step.
        task: What to call this in progress reports.
    """
    # A step that computes takes its arithmetic's time, one that copies the time of its bytes.
    weights = [max(step.flops, float(sum(spec.nbytes for spec in step.writes))) for step in plan.steps]
    total, done = sum(weights), 0.0
    for step, weight in zip(plan.steps, weights, strict=True):
        stream.tell(Progress(task, done, total, "work", step.name))
        begun = perf_counter()
        for name, tensor in step.transform({name: reader[name] for name in step.reads}, stream):
            writer.write(name, tensor)
        done += weight
        logger.info("%s: %.2f s", step.name, perf_counter() - begun)
    stream.tell(Progress(task, total, total, "work"))
