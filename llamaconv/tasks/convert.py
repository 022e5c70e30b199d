"""Convert a checkpoint to another layout, format or dtype, one tensor in memory at a time."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from llamaconv.casts import Loss
from llamaconv.digests import sha256_bytes
from llamaconv.disk import writing
from llamaconv.errors import NumericalError, OutOfMemoryError, UsageError
from llamaconv.execute import execute_concurrently
from llamaconv.layouts.description import Given
from llamaconv.layouts.known import LAYOUTS
from llamaconv.layouts.litgpt import LEGACY
from llamaconv.memory import available_memory, peak_rss
from llamaconv.model.stream import Stream
from llamaconv.model.workers import Workers
from llamaconv.plan.base import Plan
from llamaconv.plan.conversion import plan_conversion
from llamaconv.plan.costs import human
from llamaconv.progress import Report, silent
from llamaconv.sinks.checkpoint import CheckpointWriter, require_writable
from llamaconv.sinks.publish import Publication, require_apart
from llamaconv.tasks.companions import companions, copy_files, require_readable
from llamaconv.tasks.convert_manifest import manifest
from llamaconv.tasks.convert_table import ConversionPlan
from llamaconv.tasks.convert_target import Target, target_of
from llamaconv.tasks.open_source import open_source
from llamaconv.tasks.settings import FACTS, ConvertSettings
from llamaconv.tasks.source import Source

__all__ = ["ConvertResult", "ConvertSettings", "convert", "plan"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConvertResult:
    """What came of it.

    Attributes:
        out: The checkpoint.
        layout, source_layout: Of the output and of the source.
        tensors: In the output; ``bytes`` of data in ``files``.
        losses: What the dtype lost of each tensor, where that was allowed.
        verified: Whether the output was read back and compared.
        logits_difference: The largest, over the source's largest logit, where it was verified and can be run.
        notes: What the user should know.
        seconds: Of the whole run.
        peak_rss: Of the whole process, bytes.
    """

    out: Path
    layout: str
    source_layout: str
    tensors: int
    bytes: int
    files: tuple[str, ...]
    losses: tuple[str, ...]
    verified: bool
    logits_difference: float | None
    notes: tuple[str, ...]
    seconds: float
    peak_rss: int

    def to_json(self) -> dict[str, Any]:
        """JSON-safe form."""
        return asdict(self) | {"out": str(self.out)}


@dataclass(frozen=True)
class _Prepared:
    """All that is known before data is touched."""

    source: Source
    target: Target
    plan: Plan


def plan(source: Path, out: Path, settings: ConvertSettings) -> ConversionPlan:
    """What :func:`convert` would do, with every rule, its shapes and bytes and the memory; writes nothing."""
    _require_apart(source, out)
    prepared = _prepare(source, settings)
    return ConversionPlan.of(prepared.source, prepared.target, prepared.plan)


def convert(source: Path, out: Path, settings: ConvertSettings, report: Report = silent) -> ConvertResult:
    """Convert the checkpoint at ``source`` into the directory ``out``, which appears when it is whole.

    Raises:
        UsageError: Settings that contradict each other or the files.
        InputError: A source that cannot be used, or a model that the layout cannot hold.
        OutputError: A destination that cannot take the result.
        NumericalError: Values that the dtype cannot hold.
        IntegrityError: What was read back is not what was written.
    """
    begun = perf_counter()
    _require_apart(source, out)
    prepared = _prepare(source, settings)
    _require_memory(prepared.plan)
    for note in prepared.plan.notes:
        logger.warning(note)
    own = companions(prepared.source.home)
    require_readable(own)
    needed = prepared.plan.output_bytes + sum(path.stat().st_size for path in own) + 1_000_000
    with ExitStack() as stack:
        publication = stack.enter_context(Publication(out, settings.overwrite, needed))
        stream = Stream(stack.enter_context(Workers(1)), report=report)
        writer = CheckpointWriter(publication.directory, prepared.plan.shards)
        stack.callback(writer.abort)
        execute_concurrently(prepared.plan, prepared.target.reader, writer, stream, "converting", settings.workers or 2)
        _require_kept(stream.losses, settings)
        digests = writer.finish() | copy_files(own, prepared.source.home, publication.directory)
        digests |= _write_files(prepared.target.files, publication.directory)
        difference = None
        if settings.verify:
            difference = _verified(prepared, publication.directory, settings, stream.losses, report)
        publication.commit(manifest(settings, prepared.source, prepared.target, prepared.plan, stream.losses, digests))
    return _result(out, prepared, stream, settings, difference, perf_counter() - begun)


def _require_apart(source: Path, out: Path) -> None:
    """A single weight file stands for the directory it lies in."""
    require_apart(source.parent if source.is_file() else source, out)


def _prepare(path: Path, settings: ConvertSettings) -> _Prepared:
    _require_known(settings)
    given = Given(**{name: getattr(settings, name) for name in FACTS})
    source = open_source(path, settings.layout, given)
    target = target_of(source, settings)
    require_writable(target.shards)
    return _Prepared(source, target, plan_conversion(target.steps, target.shards, (*source.notes, *target.notes)))


def _require_known(settings: ConvertSettings) -> None:
    """Refuse words that mean nothing."""
    choices: dict[str, tuple[str | None, ...]] = {
        "to": tuple(LAYOUTS.keys() - {LEGACY.name}),
        "layout": (None, *LAYOUTS),
        "format": ("safetensors", "torch"),
        "embedding_split": (None, "rows", "columns"),
    }
    chosen = asdict(settings)
    wrong = [name for name, values in choices.items() if chosen[name] not in values]
    wrong += [name for name in ("tensor_parallel", "workers") if chosen[name] is not None and chosen[name] < 1]
    if wrong:
        raise UsageError(f"no such settings: {', '.join(f'{name}={chosen[name]!r}' for name in wrong)}")


def _require_memory(plan: Plan) -> None:
    largest, available = max(plan.steps, key=lambda step: step.peak_bytes), available_memory()
    if available is not None and plan.peak_bytes > available:
        raise OutOfMemoryError(
            f"{largest.name} needs {human(largest.peak_bytes)} of memory; {human(available)} are available.",
            hint="Run it on a machine with more memory, or give this one more swap.",
            needed=plan.peak_bytes,
            available=available,
        )


def _require_kept(losses: list[Loss], settings: ConvertSettings) -> None:
    if losses and not settings.allow_overflow:
        raise NumericalError(
            "\n".join(str(loss) for loss in sorted(losses, key=lambda loss: loss.name)),
            hint="--allow-overflow accepts that; --dtype keep, or float32, loses nothing.",
            losses=[loss.to_json() for loss in losses],
        )


def _write_files(files: Mapping[str, bytes], directory: Path) -> dict[str, str]:
    for name, content in files.items():
        with writing(directory / name):
            (directory / name).write_bytes(content)
    return {name: sha256_bytes(content) for name, content in files.items()}


def _verified(
    prepared: _Prepared, directory: Path, settings: ConvertSettings, losses: list[Loss], report: Report
) -> float | None:
    from llamaconv.tasks.convert_verify import verify  # transformers, and with it a second of start-up

    return verify(prepared.source, prepared.target, directory, settings, losses, report)


def _result(
    out: Path,
    prepared: _Prepared,
    stream: Stream,
    settings: ConvertSettings,
    difference: float | None,
    seconds: float,
) -> ConvertResult:
    plan = prepared.plan
    return ConvertResult(
        out=out,
        layout=prepared.target.layout.name,
        source_layout=prepared.source.layout.name,
        tensors=sum(len(step.writes) for step in plan.steps),
        bytes=plan.output_bytes,
        files=tuple(shard.filename for shard in plan.shards),
        losses=tuple(str(loss) for loss in sorted(stream.losses, key=lambda loss: loss.name)),
        verified=settings.verify,
        logits_difference=difference,
        notes=plan.notes,
        seconds=seconds,
        peak_rss=peak_rss(),
    )
