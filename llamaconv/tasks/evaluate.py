"""Judge a checkpoint: perplexity, and how far it is from the one it was made from."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from llamaconv.calibration import CalibrationSet, load_evaluation
from llamaconv.errors import CalibrationError, ConfigError, GateError, NumericalError, UsageError
from llamaconv.memory import peak_rss
from llamaconv.model.evaluation import Evaluated, Scores, final_states, score
from llamaconv.model.stream import Stream
from llamaconv.progress import Report, silent
from llamaconv.tasks.loading import LoadedModel, choose_device, choose_workers, load_model
from llamaconv.tasks.settings import EvaluateSettings

__all__ = ["EvaluateSettings", "Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """The figures.

    Attributes:
        data: Name and sha256 of what was evaluated on; ``tokens`` of it.
        perplexity: Exponential of the mean negative log likelihood of each next token.
        reference_perplexity, ppl_ratio: The reference's, and the quotient.
        kl: Mean KL divergence from the reference's distribution to the model's, nats per position.
        top1: Share of positions where both find the same token most likely.
    """

    model: Path
    against: Path | None
    data: str
    data_sha256: str
    tokens: int
    perplexity: float
    reference_perplexity: float | None
    ppl_ratio: float | None
    kl: float | None
    top1: float | None
    seconds: float
    peak_rss: int

    def to_json(self) -> dict[str, Any]:
        """JSON-safe form."""
        return asdict(self) | {"model": str(self.model), "against": str(self.against) if self.against else None}


def evaluate(model: Path, settings: EvaluateSettings, report: Report = silent) -> Evaluation:
    """Evaluate the checkpoint ``model``; dense, GPTQ and bitsandbytes checkpoints alike.

    Raises:
        UsageError: A gate that needs a reference, without one.
        InputError: A checkpoint or text that cannot be used.
        GateError: A gate was not met; its ``facts`` hold the figures.
    """
    begun = perf_counter()
    if settings.against is None and (settings.max_kl is not None or settings.max_ppl_ratio is not None):
        raise UsageError("--max-kl and --max-ppl-ratio compare with a reference", hint="Give one with --against.")
    judged = load_model(model, settings.compute_dtype)
    reference = None if settings.against is None else load_model(settings.against, settings.compute_dtype)
    if reference is not None and reference.config.vocab_size != judged.config.vocab_size:
        raise ConfigError(
            f"{model} has a vocabulary of {judged.config.vocab_size}, {settings.against} of "
            f"{reference.config.vocab_size}: they cannot be compared"
        )
    data = _data(judged, settings)
    device = choose_device(settings.device)
    with ExitStack() as stack:
        stream = Stream(stack.enter_context(choose_workers(settings.threads)), device, report)
        candidate = _evaluated(judged)
        hidden = final_states(candidate, data.sequences, stream, "evaluating")
        other = None
        if reference is not None:
            dense = _evaluated(reference)
            other = dense, final_states(dense, data.sequences, stream, "evaluating the reference")
        scores = score(candidate, hidden, data.sequences, stream, other)
    if not math.isfinite(scores.nll):
        raise NumericalError(
            f"{model}: its logits on {data.name} are NaN or Inf",
            hint="Try --compute-dtype float32; if it stays, the checkpoint is broken.",
        )
    result = _evaluation(model, settings, data, scores, perf_counter() - begun)
    _require_gates(result, settings)
    return result


def _evaluated(model: LoadedModel) -> Evaluated:
    return Evaluated(model.skeleton, model.tensors)


def _data(model: LoadedModel, settings: EvaluateSettings) -> CalibrationSet:
    data = load_evaluation(
        settings.text,
        directory=model.source.home,
        vocab_size=model.config.vocab_size,
        max_positions=model.config.max_positions,
        samples=settings.samples,
        seq_len=settings.seq_len,
    )
    if all(len(sequence) < 2 for sequence in data.sequences):
        raise CalibrationError(f"{data.name}: no sequence has two tokens, so nothing can be predicted")
    return data


def _evaluation(
    model: Path, settings: EvaluateSettings, data: CalibrationSet, scores: Scores, seconds: float
) -> Evaluation:
    compared = settings.against is not None
    return Evaluation(
        model=model,
        against=settings.against,
        data=data.name,
        data_sha256=data.sha256,
        tokens=data.tokens,
        perplexity=scores.perplexity,
        reference_perplexity=scores.reference_perplexity if compared else None,
        ppl_ratio=scores.perplexity / scores.reference_perplexity if compared else None,
        kl=scores.kl / scores.positions if compared else None,
        top1=scores.agreed / scores.positions if compared else None,
        seconds=seconds,
        peak_rss=peak_rss(),
    )


def _require_gates(result: Evaluation, settings: EvaluateSettings) -> None:
    gates = (
        ("mean KL", result.kl, settings.max_kl),
        ("perplexity ratio", result.ppl_ratio, settings.max_ppl_ratio),
    )
    # Written so that NaN fails the gate.
    missed = [
        f"{name} {figure:.6g} is above the limit of {limit:g}"
        for name, figure, limit in gates
        if figure is not None and limit is not None and not figure <= limit
    ]
    if missed:
        finite = {key: value for key, value in result.to_json().items() if not _is_nan(value)}
        raise GateError("\n".join(missed), hint="Use more bits, smaller groups or better data.", evaluation=finite)


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
