"""The whole road on a bundled model: download it, quantize, judge. No network but loopback, no GPU."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

from llamaconv.demo.hub import DroppingHub
from llamaconv.demo.repository import Repository
from llamaconv.memory import peak_rss, reset_peak_rss
from llamaconv.progress import Report, silent
from llamaconv.tasks.download import DownloadResult, DownloadSettings, download
from llamaconv.tasks.evaluate import EvaluateSettings, Evaluation, evaluate
from llamaconv.tasks.inspect import Inspection, inspect
from llamaconv.tasks.quantize import QuantizeSettings, quantize

__all__ = ["DemoResult", "Row", "run"]

Result = TypeVar("Result")

# A Llama of 2.9 million parameters needs little to calibrate on.
_SAMPLES, _LENGTH = 48, 512
_MODES = ("gptq.int4", "llm.int8")

_REPOSITORY = "llamaconv/demo-3m"
_BYTES_BEFORE_THE_DROP = 2_000_000


@dataclass(frozen=True)
class Row:
    """One checkpoint's figures.

    Attributes:
        name: ``"dense"`` or the mode.
        bytes: Of all weight files.
        bits_per_weight: Those bytes over the model's parameters.
        perplexity: On the held-out documents of the built-in corpus.
        kl, top1: Mean KL from the dense model in nats, share of equal most likely tokens; None for itself.
        seconds, peak_rss: Of making it (downloading, for the dense one); the process's peak in bytes.
    """

    name: str
    bytes: int
    bits_per_weight: float
    perplexity: float
    kl: float | None
    top1: float | None
    seconds: float
    peak_rss: int


@dataclass(frozen=True)
class DemoResult:
    """What the demo found and where it put its artifacts."""

    out: Path
    download: DownloadResult
    model: Inspection
    rows: tuple[Row, ...]
    tokens: int

    def to_json(self) -> dict[str, Any]:
        """JSON-safe form."""
        return {
            "out": str(self.out),
            "artifacts": [str(self.out / row.name) for row in self.rows],
            "download": self.download.to_json(),
            "model": self.model.to_json(),
            "rows": [asdict(row) for row in self.rows],
            "tokens": self.tokens,
        }


def run(out: Path | None = None, report: Report = silent) -> DemoResult:
    """Download the bundled trained Llama, quantize it in two modes with the built-in corpus, and judge each against it.

    Args:
        out: Where everything goes, the model to ``dense`` and an artifact for each mode; None: a new temporary
            directory.
        report: Told about progress.

    Raises:
        OutputError: ``out`` cannot take them.
    """
    out = Path(tempfile.mkdtemp(prefix="llamaconv-demo-")) if out is None else out
    source = out / "dense"
    fetched, seconds, peak = _measured(lambda: _download(source, report))
    model = inspect(source)
    parameters = model.parameters
    assert parameters is not None
    rows, dense = [], None
    for mode in _MODES:
        settings = QuantizeSettings(mode, samples=_SAMPLES, seq_len=_LENGTH)
        _, spent, used = _measured(lambda: quantize(source, out / mode, settings, report))  # noqa: B023 - at once
        verdict = evaluate(out / mode, EvaluateSettings(against=source, seq_len=_LENGTH), report)
        rows.append(_row(mode, out / mode, parameters, verdict, spent, used))
        dense = verdict
    assert dense is not None
    assert dense.reference_perplexity is not None
    bits = 8 * model.bytes / parameters
    first = Row("dense", model.bytes, bits, dense.reference_perplexity, None, None, seconds, peak)
    return DemoResult(out, fetched, model, (first, *rows), dense.tokens)


def _download(directory: Path, report: Report) -> DownloadResult:
    """From a Hub on loopback that drops a connection, so that the download has something to show."""
    with (
        as_file(files("llamaconv.demo") / "model") as model,
        DroppingHub([Repository.of_directory(_REPOSITORY, model)], after=_BYTES_BEFORE_THE_DROP) as hub,
    ):
        settings = DownloadSettings(endpoints=(hub.endpoint,), token="", proxy="", offline=False)
        return download(_REPOSITORY, directory, settings, report)


def _row(mode: str, path: Path, parameters: int, verdict: Evaluation, seconds: float, peak: int) -> Row:
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    return Row(mode, size, 8 * size / parameters, verdict.perplexity, verdict.kl, verdict.top1, seconds, peak)


def _measured(work: Callable[[], Result]) -> tuple[Result, float, int]:
    """The result, the seconds it took, and the largest resident set meanwhile."""
    reset_peak_rss()
    begun = perf_counter()
    result = work()
    return result, perf_counter() - begun, peak_rss()
