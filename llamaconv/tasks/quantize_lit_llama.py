"""Quantize for lit-llama: into GPTQ's own format first, then, with the same codes, into lit-llama's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from llamaconv.errors import OutputExistsError, UsageError
from llamaconv.layouts.lit_llama_facts import stock_obstacles
from llamaconv.progress import Report
from llamaconv.sinks.publish import Publication
from llamaconv.tasks.convert import convert
from llamaconv.tasks.convert_target import require_lit_llama
from llamaconv.tasks.loading import open_dense
from llamaconv.tasks.open_source import open_source
from llamaconv.tasks.quantize_result import QuantizeResult
from llamaconv.tasks.settings import ConvertSettings, QuantizeSettings

__all__ = ["between", "quantize_for_lit_llama", "require_loadable"]

Quantize = Callable[[Path, Path, QuantizeSettings, Report], QuantizeResult]


def between(out: Path) -> Path:
    """Where the checkpoint in GPTQ's own format lies until it is converted."""
    return out.with_name(f"{out.name}.gptq")


def require_loadable(source: Path, settings: QuantizeSettings) -> None:
    """Refuse, before hours of work, what lit-llama's loader does not take.

    Raises:
        UsageError: Settings; all of them are listed.
        UnsupportedError: The model.
    """
    wrong = {
        "--mode gptq.int4 or gptq.int8": settings.mode not in ("gptq.int4", "gptq.int8"),
        "--group-size -1": settings.group_size != -1,
        "--lm-head": not settings.lm_head,
        "no --skip": bool(settings.skip),
    }
    needed = [option for option, missing in wrong.items() if missing]
    if needed:
        raise UsageError(
            f"--layout lit-llama needs {', '.join(needed)}.",
            hint="lit-llama's loader takes one group for each row, and every linear layer quantized.",
        )
    require_lit_llama(open_dense(source).config, settings.size)


def quantize_for_lit_llama(
    source: Path, out: Path, settings: QuantizeSettings, report: Report, quantize: Quantize
) -> QuantizeResult:
    """Quantize the checkpoint at ``source`` into ``DST/<size>/llama-gptq.<bits>bit.pth``.

    Args:
        source, out, settings, report: As in ``quantize``.
        quantize: Into GPTQ's own format.

    Raises:
        LlamaconvError: As ``quantize`` and ``convert``.
    """
    require_loadable(source, settings)
    with Publication(out, settings.overwrite, 0):
        pass  # a destination that is taken is refused before the work, not after it
    middle = between(out)
    if middle.exists():
        raise OutputExistsError(
            f"{middle} is in the way: the checkpoint lies there in GPTQ's own format until it is converted.",
            hint="Move it away. If a run that was killed left it, `llamaconv convert --to lit-llama` goes on from it.",
            file=str(middle),
        )
    result = quantize(source, middle, replace(settings, layout="hf", size=None, overwrite=False), report)
    converted = convert(
        middle, out, ConvertSettings("lit-llama", size=settings.size, overwrite=settings.overwrite), report
    )
    shutil.rmtree(middle)
    obstacles = stock_obstacles(open_source(source).config)
    return replace(
        result,
        out=out,
        shards=len(converted.files),
        bytes=converted.bytes,
        notes=(*result.notes, *converted.notes),
        runtimes={"lit-llama": "; ".join(obstacles) or "yes"},
        seconds=result.seconds + converted.seconds,
    )
