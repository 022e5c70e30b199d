"""Proof of a conversion: the output is read back and held against the source, tensor by tensor and by its logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from llamaconv.casts import cast, output_dtype
from llamaconv.config import ModelConfig
from llamaconv.errors import IntegrityError
from llamaconv.layouts.description import Given
from llamaconv.layouts.hugging_face import HEAD
from llamaconv.layouts.known import HUGGING_FACE
from llamaconv.layouts.view import Tensors
from llamaconv.model.evaluation import Evaluated, final_states
from llamaconv.model.stream import Stream
from llamaconv.progress import Progress, Report
from llamaconv.sources.base import one_per_line
from llamaconv.tasks.comparison import same_bits
from llamaconv.tasks.convert_target import Target
from llamaconv.tasks.loading import choose_workers, load_source
from llamaconv.tasks.open_source import open_source
from llamaconv.tasks.settings import ConvertSettings
from llamaconv.tasks.source import Source, contradictions
from llamaconv.tensors import LazyTensor

__all__ = ["verify"]

_LENGTH = 1200  # a wrong rotary base or order of rows shows at long positions only
_SEQUENCES = 2
_SAMPLED = 32  # positions of a sequence whose logits are compared, the last of them at the end


def verify(source: Source, target: Target, directory: Path, settings: ConvertSettings, report: Report) -> float | None:
    """Read back what was written in ``directory`` and compare.

    Every tensor must have the source's bits (cast, where the conversion cast), the description must say of the model
    what the source's says, and the logits must be the source's.

    Returns:
        The largest difference of logits, over the largest logit of the source: 0 unless a dtype was changed. None for
        a mixture of experts, which is not run.

    Raises:
        IntegrityError: What was read back is something else; all differences are listed.
    """
    native = target.layout is not HUGGING_FACE
    written = open_source(directory, target.layout.name, _given(source.config) if native else None)
    faults = contradictions(written.config, source.config)
    faults += _differences(target.proof, written.stored if target.copied else written.tensors(), settings, report)
    if faults:
        raise IntegrityError(
            "What was written is not what was to be written:\n" + one_per_line(faults),
            hint="The disk or its driver is at fault, or llamaconv is: please report it.",
        )
    if source.config.experts is not None:
        return None  # nothing of ours runs them
    return _logits_difference(source, written, settings.workers, report)


def _given(config: ModelConfig) -> Given:
    """What a layout's files do not carry."""
    scaling = config.rope_scaling or {}
    return Given(
        rope_factor=scaling.get("factor"),
        max_positions=config.max_positions,
        norm_eps=config.norm_eps,
        vocab_size=config.vocab_size,
        heads=config.heads,
    )


def _differences(mine: Tensors, theirs: Tensors, settings: ConvertSettings, report: Report) -> list[str]:
    dtype = output_dtype(settings.dtype)
    faults = [f"{name} is one too many" for name in theirs.specs if name not in mine.specs]
    for index, name in enumerate(mine.specs):
        report(Progress("verifying", index, len(mine.specs), "tensors", name))
        if name not in theirs.specs:
            faults += [f"{name} is missing"] if name != HEAD else []
        elif not same_bits(_cast(mine[name], dtype), theirs[name]):
            faults.append(f"{name} differs")
    report(Progress("verifying", len(mine.specs), len(mine.specs), "tensors"))
    return faults


def _cast(lazy: LazyTensor, dtype: torch.dtype | None) -> LazyTensor:
    spec = lazy.spec
    if dtype is None or not spec.dtype.is_floating_point or spec.dtype == dtype:
        return lazy

    def read() -> Tensor:
        return cast(spec.name, lazy.read(), dtype)[0]

    return LazyTensor(replace(spec, dtype=dtype), read)


def _logits_difference(source: Source, written: Source, threads: int | None, report: Report) -> float:
    generator = torch.Generator().manual_seed(0)
    vocabulary = source.config.vocab_size
    tokens = list(torch.randint(vocabulary, (_SEQUENCES, _LENGTH), generator=generator, dtype=torch.int32))
    with choose_workers(threads) as workers:
        stream = Stream(workers, report=report)
        theirs = _logits(written, tokens, stream, "running the output")
        mine = _logits(source, tokens, stream, "running the source")
    largest = max(float(logits.abs().max()) for logits in mine)
    return max(float((one - other).abs().max()) for one, other in zip(mine, theirs, strict=True)) / largest


def _logits(source: Source, tokens: list[Tensor], stream: Stream, task: str) -> list[Tensor]:
    """float32 [P, V] of each sequence, at positions from the first to the last."""
    model = load_source(source, "float32")
    evaluated = Evaluated(model.skeleton, model.tensors)
    hidden = final_states(evaluated, tokens, stream, task)
    positions = torch.linspace(0, _LENGTH - 1, _SAMPLED).long()
    with evaluated.head(stream.device) as logits:
        return stream.workers.map(lambda states: logits(states, positions).float(), hidden)
