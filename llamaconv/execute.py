"""Carrying out a plan: read → transform → write → forget."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Condition, Event
from time import perf_counter

import torch

from llamaconv.layouts.view import Tensors
from llamaconv.model.stream import Stream
from llamaconv.plan.base import Plan, Step
from llamaconv.progress import Progress
from llamaconv.sinks.checkpoint import CheckpointWriter

__all__ = ["execute", "execute_concurrently"]

logger = logging.getLogger(__name__)


def execute(plan: Plan, reader: Tensors, writer: CheckpointWriter, stream: Stream, task: str) -> None:
    """Run every step in order, one at a time; what a step writes is on its way to disk before the next one begins.

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
        _run(step, reader, writer, stream)
        done += weight
        logger.info("%s: %.2f s", step.name, perf_counter() - begun)
    stream.tell(Progress(task, total, total, "work"))


def execute_concurrently(
    plan: Plan, reader: Tensors, writer: CheckpointWriter, stream: Stream, task: str, workers: int
) -> None:
    """Run steps that do not depend on each other, several at a time, in the memory that the plan states.

    Args:
        plan, reader, writer, stream, task: As in :func:`execute`.
        workers: How many at a time. What is written does not depend on it.

    Raises:
        Exception: What the first step to fail raises; no step begins after it.
    """
    total, done = plan.output_bytes, 0
    memory, stopped = _Memory(plan.peak_bytes), Event()

    def run(step: Step) -> int:
        with memory.taken(step.peak_bytes), torch.inference_mode():
            if not stopped.is_set():
                _run(step, reader, writer, stream)
        return sum(spec.nbytes for spec in step.writes)

    with ThreadPoolExecutor(workers, "llamaconv-step", initializer=torch.set_num_threads, initargs=(1,)) as pool:
        pending = {pool.submit(run, step) for step in plan.steps}
        try:
            while pending:
                stream.tell(Progress(task, done, total, "bytes"))
                finished, pending = wait(pending, timeout=0.5, return_when=FIRST_EXCEPTION)
                done += sum(future.result() for future in finished)
        except BaseException:
            stopped.set()
            writer.abort()  # ends copies that are under way
            for future in pending:
                future.cancel()
            raise
    stream.tell(Progress(task, total, total, "bytes"))


def _run(step: Step, reader: Tensors, writer: CheckpointWriter, stream: Stream) -> None:
    for name, made in step.transform({name: reader[name] for name in step.reads}, stream):
        if isinstance(made, torch.Tensor):
            writer.write(name, made)
        else:
            writer.copy(name, made)


class _Memory:
    """Bytes that steps share. One that needs more than there are waits until it is alone."""

    def __init__(self, total: int) -> None:
        self._free = total
        self._total = total
        self._changed = Condition()

    @contextmanager
    def taken(self, nbytes: int) -> Iterator[None]:
        nbytes = min(nbytes, self._total)
        with self._changed:
            self._changed.wait_for(lambda: nbytes <= self._free)
            self._free -= nbytes
        try:
            yield
        finally:
            with self._changed:
                self._free += nbytes
                self._changed.notify_all()
