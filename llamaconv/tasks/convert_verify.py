"""Proof of a conversion: the output is read back and held against the source, tensor by tensor and by its logits."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from llamaconv.casts import Loss, cast, output_dtype
from llamaconv.config import ModelConfig
from llamaconv.errors import InputError, IntegrityError, UnsupportedError
from llamaconv.layouts.description import Given
from llamaconv.layouts.hugging_face import HEAD, is_derived
from llamaconv.layouts.known import HUGGING_FACE
from llamaconv.layouts.rules import EMBEDDING
from llamaconv.model.evaluation import Evaluated, final_states
from llamaconv.model.stream import Stream
from llamaconv.progress import Progress, Report
from llamaconv.sources.base import one_per_line
from llamaconv.tasks.comparison import same_bits
from llamaconv.tasks.convert_target import Target
from llamaconv.tasks.loading import LoadedModel, choose_workers, load_source
from llamaconv.tasks.open_source import open_source
from llamaconv.tasks.settings import ConvertSettings
from llamaconv.tasks.source import Source, contradictions
from llamaconv.tensors import LazyTensor

__all__ = ["verify"]

logger = logging.getLogger(__name__)

_LENGTH = 1200  # a wrong rotary base or order of rows shows at long positions only
_SEQUENCES = 2
_SAMPLED = 32  # positions of a sequence whose logits are compared, the last of them at the end


def verify(
    source: Source,
    target: Target,
    directory: Path,
    settings: ConvertSettings,
    losses: Sequence[Loss],
    report: Report,
) -> float | None:
    """Read back what was written in ``directory`` and compare.

    Every tensor must have the source's bits (cast, where the conversion cast), the description must say of the model
    what the source's says, and the logits must be the source's.

    Returns:
        The largest difference of logits, over the largest logit of the source: 0 unless a dtype was changed. None for
        a model that nothing here runs, such as a mixture of experts, and where values overflowed; a warning says so.

    Raises:
        IntegrityError: What was read back is something else; all differences are listed.
    """
    native = target.layout is not HUGGING_FACE
    try:
        written = open_source(directory, target.layout.name, _given(source.config) if native else None)
    except InputError as error:
        raise _different(error.message.splitlines()) from error
    # A layout that has one family reads it back whatever the family was, and takes equal tensors for tied ones.
    faults = contradictions(written.config, source.config, unsaid=("model_type", "tied") if native else ())
    faults += _differences(target, written, settings, report)
    if faults:
        raise _different(faults)
    try:
        models = load_source(source, "float32"), load_source(written, "float32")
    except UnsupportedError as error:
        logger.warning("logits are not compared: %s", error)
        return None
    if any(loss.overflowed for loss in losses):
        logger.warning("logits are not compared: values overflowed, as --allow-overflow accepts")
        return None
    difference = _logits_difference(*models, settings.workers, report)
    if difference and settings.dtype == "keep" and not settings.dequantize:
        raise _different([f"logits differ by {difference:.3g} of their size, of which nothing should"])
    return difference


def _different(faults: Sequence[str]) -> IntegrityError:
    return IntegrityError(
        "What was written is not what was to be written:\n" + one_per_line(faults),
        hint="The disk or its driver is at fault, or llamaconv is: please report it.",
    )


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


def _differences(target: Target, written: Source, settings: ConvertSettings, report: Report) -> list[str]:
    mine, theirs = target.proof, written.stored if target.copied else written.tensors()
    places = {name: name for name in mine.specs}
    if target.layout is not HUGGING_FACE:
        places = {name: name for name in places if not is_derived(name)}
        if HEAD in places and HEAD not in theirs.specs:
            places[HEAD] = EMBEDDING
    dtype = output_dtype(settings.dtype)
    faults = [f"{name} is one too many" for name in theirs.specs if name not in places]
    for index, (name, place) in enumerate(places.items()):
        report(Progress("verifying", index, len(places), "tensors", name))
        if place not in theirs.specs:
            faults.append(f"{name} is missing")
        elif not same_bits(_cast(mine[name], dtype), theirs[place]):
            faults.append(f"{name} differs")
    report(Progress("verifying", len(places), len(places), "tensors"))
    return faults


def _cast(lazy: LazyTensor, dtype: torch.dtype | None) -> LazyTensor:
    spec = lazy.spec
    if dtype is None or not spec.dtype.is_floating_point or spec.dtype == dtype:
        return lazy

    def read() -> Tensor:
        return cast(spec.name, lazy.read(), dtype)[0]

    return LazyTensor(replace(spec, dtype=dtype), read)


def _logits_difference(source: LoadedModel, written: LoadedModel, threads: int | None, report: Report) -> float:
    generator = torch.Generator().manual_seed(0)
    config = source.config
    # Whatever does not turn its positions may have no more of them than it says.
    length = _LENGTH if config.rope_theta else min(_LENGTH, config.max_positions or _LENGTH)
    tokens = list(torch.randint(config.vocab_size, (_SEQUENCES, length), generator=generator, dtype=torch.int32))
    with choose_workers(threads) as workers:
        stream = Stream(workers, report=report)
        theirs = _logits(written, tokens, stream, "running the output")
        mine = _logits(source, tokens, stream, "running the source")
    largest = max(float(logits.abs().max()) for logits in mine)
    return max(float((one - other).abs().max()) for one, other in zip(mine, theirs, strict=True)) / largest


def _logits(model: LoadedModel, tokens: list[Tensor], stream: Stream, task: str) -> list[Tensor]:
    """float32 [P, V] of each sequence, at positions from the first to the last."""
    evaluated = Evaluated(model.skeleton, model.tensors)
    hidden = final_states(evaluated, tokens, stream, task)
    positions = torch.linspace(0, len(tokens[0]) - 1, _SAMPLED).long()
    with evaluated.head(stream.device) as logits:
        return stream.workers.map(lambda states: logits(states, positions).float(), hidden)
