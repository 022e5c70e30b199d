"""Quantize a checkpoint: one decoder block in memory at a time, straight into final shards."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from llamaconv.calibration import CalibrationSet, load_calibration
from llamaconv.casts import output_dtype
from llamaconv.digests import sha256_file
from llamaconv.execute import execute
from llamaconv.memory import available_memory, peak_rss
from llamaconv.model.stage_quantizer import StageQuantizer
from llamaconv.model.stream import Stream
from llamaconv.plan.base import Plan
from llamaconv.plan.costs import human
from llamaconv.plan.quantization import plan_quantization
from llamaconv.plan.selection import Selection, select_layers
from llamaconv.progress import Report, silent
from llamaconv.quantizers.base import Quantizer
from llamaconv.quantizers.modes import quantizer_for_mode
from llamaconv.sinks.checkpoint import CheckpointWriter
from llamaconv.sinks.publish import Publication, require_apart
from llamaconv.tasks.companions import companions, require_readable
from llamaconv.tasks.loading import LoadedModel, choose_device, choose_workers, load_dense_model
from llamaconv.tasks.model_directory import patched_config, quantization_config, write_companions
from llamaconv.tasks.provenance import version
from llamaconv.tasks.quantize_lit_llama import quantize_for_lit_llama, require_loadable
from llamaconv.tasks.quantize_manifest import manifest
from llamaconv.tasks.quantize_result import QuantizeResult
from llamaconv.tasks.runtimes import runtimes
from llamaconv.tasks.settings import QuantizeSettings

__all__ = ["QuantizeResult", "QuantizeSettings", "plan", "quantize"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Prepared:
    """All that is known before data is touched."""

    model: LoadedModel
    quantizer: Quantizer
    selection: Selection
    calibration: CalibrationSet | None
    plan: Plan
    workers: int
    device: torch.device
    notes: tuple[str, ...] = field(default=())


def plan(source: Path, out: Path, settings: QuantizeSettings) -> Plan:
    """What :func:`quantize` would do, with its size, memory and arithmetic; writes nothing."""
    _require_apart(source, out)
    if settings.layout == "lit-llama":
        require_loadable(source, settings)
    plan, available = _prepare(source, settings, memory=None).plan, available_memory()
    if available is None or plan.peak_bytes <= available:
        return plan
    shortage = f"needs {human(plan.peak_bytes)} of memory to hold all samples; {human(available)} are available"
    return replace(plan, notes=(*plan.notes, shortage))


def quantize(source: Path, out: Path, settings: QuantizeSettings, report: Report = silent) -> QuantizeResult:
    """Quantize the checkpoint at ``source`` into the directory ``out``, which appears when it is whole.

    Raises:
        UsageError: Settings that contradict each other or the files.
        InputError: A source or calibration data that cannot be used.
        OutputError: A destination that cannot take the result.
        NumericalError: A layer that cannot be quantized.
    """
    _require_apart(source, out)
    if settings.layout == "lit-llama":
        return quantize_for_lit_llama(source, out, settings, report, quantize)
    begun = perf_counter()
    prepared = _prepare(source, settings, available_memory())
    plan, model = prepared.plan, prepared.model
    directory = model.source.home
    extra = sum(path.stat().st_size for path in companions(directory)) + 1_000_000
    with ExitStack() as stack:
        publication = stack.enter_context(Publication(out, settings.overwrite, plan.output_bytes + extra))
        hashing = ThreadPoolExecutor(1, "llamaconv-hash")
        stack.callback(hashing.shutdown, cancel_futures=True)  # an error does not wait for the other files
        source_digests = {
            _relative(path, directory): hashing.submit(sha256_file, path) for path in _source_files(model)
        }
        stream = Stream(stack.enter_context(choose_workers(prepared.workers)), prepared.device, report)
        writer = CheckpointWriter(publication.directory, plan.shards)
        stack.callback(writer.abort)
        execute(plan, model.tensors, writer, stream, "quantizing")
        digests = writer.finish()
        made_with = {"damping": settings.damping, "version": version()}
        quantization = quantization_config(prepared.quantizer, prepared.selection, model.skeleton, made_with)
        config = patched_config(model.config, quantization, output_dtype(settings.dtype))
        digests |= write_companions(directory, publication.directory, config)
        publication.commit(
            manifest(
                asdict(settings),
                model.skeleton.dtype,
                prepared.calibration,
                prepared.selection.share,
                stream.layers,
                [note for note in prepared.notes if note not in plan.notes],
                {name: digest.result() for name, digest in source_digests.items()},
                directory,
                digests,
            )
        )
    return _result(out, prepared, stream, perf_counter() - begun)


def _require_apart(source: Path, out: Path) -> None:
    """A single weight file stands for the directory it lies in."""
    require_apart(source.parent if source.is_file() else source, out)


def _prepare(source: Path, settings: QuantizeSettings, memory: int | None) -> _Prepared:
    quantizer = quantizer_for_mode(
        settings.mode,
        group_size=settings.group_size,
        symmetric=settings.symmetric,
        act_order=settings.act_order,
        scales=settings.scales,
        sweeps=settings.sweeps,
    )
    model = load_dense_model(source, settings.compute_dtype)
    specs = model.specs
    selection = select_layers(model.skeleton, specs, quantizer, settings.skip, settings.lm_head)
    device = choose_device(settings.device)
    workers = choose_workers(settings.threads).count
    require_readable(companions(model.source.home))
    calibration = _calibration(model, settings) if quantizer.calibrated else None
    stage_quantizer = StageQuantizer(quantizer, settings.damping, settings.act_order, settings.fallback is not None)
    plan = plan_quantization(
        model.skeleton,
        specs,
        selection,
        stage_quantizer if calibration else None,
        quantizer,
        calibration.sequences if calibration else (),
        dtype=output_dtype(settings.dtype),
        max_shard_size=settings.max_shard_size,
        workers=workers,
        memory=memory,
    )
    told = (*plan.notes, *_few_tokens(calibration, selection, specs, model))
    for note in told:
        logger.warning(note)
    notes = (*model.source.notes, *(calibration.notes if calibration else ()), *told)
    return _Prepared(model, quantizer, selection, calibration, plan, workers, device, notes)


def _calibration(model: LoadedModel, settings: QuantizeSettings) -> CalibrationSet:
    return load_calibration(
        settings.calibration,
        directory=model.source.home,
        vocab_size=model.config.vocab_size,
        max_positions=model.config.max_positions,
        samples=settings.samples,
        seq_len=settings.seq_len,
        seed=settings.seed,
    )


def _few_tokens(
    calibration: CalibrationSet | None, selection: Selection, specs: Mapping[str, Any], model: LoadedModel
) -> list[str]:
    """A Hessian of K columns from fewer than 4 K tokens is mostly damping."""
    if calibration is None:
        return []
    widest = max(specs[f"{name}.weight"].shape[1] for name in selection.layers(model.skeleton.block_names))
    if calibration.tokens >= 4 * widest:
        return []
    return [
        f"{calibration.tokens:,} calibration tokens are fewer than four times the widest input ({widest:,} columns): "
        "expect a worse result than with more"
    ]


def _relative(path: Path, directory: Path) -> str:
    return str(path.relative_to(directory)) if path.is_relative_to(directory) else path.name


def _source_files(model: LoadedModel) -> list[Path]:
    source = model.source
    return [*source.stored.files, *source.descriptions, *companions(source.home)]


def _result(out: Path, prepared: _Prepared, stream: Stream, seconds: float) -> QuantizeResult:
    plan, specs = prepared.plan, prepared.model.specs
    quantized = {layer.name for layer in stream.layers}
    stored = [spec for step in plan.steps for spec in step.writes]
    bits = 8 * sum(
        spec.nbytes
        for spec in stored
        if spec.name.rpartition(".")[0] in quantized and spec.name.rpartition(".")[2] in prepared.quantizer.suffixes
    )
    return QuantizeResult(
        out=out,
        mode=prepared.quantizer.mode,
        share_quantized=prepared.selection.share,
        layers=tuple(stream.layers),
        shards=len(plan.shards),
        bytes=plan.output_bytes,
        bits_per_weight=bits / sum(specs[f"{name}.weight"].numel for name in quantized),
        notes=prepared.notes,
        runtimes=runtimes(prepared.quantizer, prepared.selection, prepared.model),
        seconds=seconds,
        stage_seconds=dict(stream.seconds),
        peak_rss=peak_rss(),
    )
