"""Perplexity of a model and its distance from a reference, block by block in the memory of one block.

Quantized layers are evaluated as the dense weights they stand for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from llamaconv.layouts.view import Tensors
from llamaconv.model.dense import read_finite
from llamaconv.model.skeleton import Skeleton, clear, put
from llamaconv.model.staged import forward
from llamaconv.model.stream import Stream, record_lengths
from llamaconv.progress import Progress

__all__ = ["Evaluated", "Scores", "final_states", "score"]

_CHUNK_BYTES = 64_000_000  # of float32 logits, per worker and model


@dataclass(frozen=True)
class Evaluated:
    """A model to evaluate: its skeleton, and its tensors, all dense or seen as if they were."""

    skeleton: Skeleton
    tensors: Tensors

    def parameter(self, name: str) -> Tensor:
        """A parameter; the embedding where the head that is tied to it is not stored."""
        source = name if name in self.tensors.specs else self.skeleton.tie[name]
        return read_finite({source: self.tensors[source]})[source]

    def fill(self, names: Sequence[str], device: torch.device) -> None:
        """Put parameters in, by full name."""
        for name in names:
            put(self.skeleton.model, name, self.parameter(name).to(device, self.skeleton.dtype))

    @contextmanager
    def head(self, device: torch.device) -> Iterator[Callable[[Tensor, Tensor], Tensor]]:
        """The function from last hidden states and positions to logits, with its weights in place."""
        names = self.skeleton.exit_parameters()
        self.fill(names, device)
        try:
            with self.skeleton.after_blocks() as logits:
                yield logits
        finally:
            clear(self.skeleton.model, names)


@dataclass(frozen=True)
class Scores:
    """Sums over positions, so that samples of any length add up.

    ``nll`` and ``reference_nll`` in nats over ``predicted`` positions; ``kl`` (reference to model, nats) and ``agreed``
    (same most likely token) over ``positions``.
    """

    predicted: int = 0
    positions: int = 0
    nll: float = 0.0
    reference_nll: float = 0.0
    kl: float = 0.0
    agreed: int = 0

    def __add__(self, other: Scores) -> Scores:
        return Scores(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def perplexity(self) -> float:
        return _exp(self.nll / self.predicted)

    @property
    def reference_perplexity(self) -> float:
        return _exp(self.reference_nll / self.predicted)


def final_states(model: Evaluated, sequences: Sequence[Tensor], stream: Stream, task: str) -> list[Tensor]:
    """What the last block puts out for each sequence [L] of tokens: [1, L, D] each."""
    skeleton = model.skeleton
    received = record_lengths(skeleton, sequences)
    entry = skeleton.entry_parameters()
    model.fill(entry, stream.device)
    with skeleton.before_blocks() as embed:
        hidden = stream.workers.map(embed, [sequence.to(stream.device) for sequence in sequences])
    clear(skeleton.model, entry)
    for index, block in enumerate(skeleton.blocks):
        stream.report(Progress(task, index, len(skeleton.blocks), "blocks", skeleton.block_names[index]))
        names = skeleton.block_parameters(index)
        model.fill(names, stream.device)

        def run(sample: int) -> None:
            inputs = received[len(sequences[sample])][index]  # noqa: B023 - runs before the loop goes on
            hidden[sample] = forward(block, hidden[sample], inputs.to(stream.device))  # noqa: B023 - as above

        stream.workers.map(run, range(len(hidden)))
        clear(skeleton.model, names)
    stream.report(Progress(task, len(skeleton.blocks), len(skeleton.blocks), "blocks"))
    return hidden


def score(
    model: Evaluated,
    hidden: Sequence[Tensor],
    sequences: Sequence[Tensor],
    stream: Stream,
    reference: tuple[Evaluated, Sequence[Tensor]] | None,
) -> Scores:
    """Logits in chunks of positions, compared with the tokens that follow and with the reference's logits."""
    with model.head(stream.device) as logits:
        if reference is None:
            parts = stream.workers.map(
                lambda sample: _score_sample(logits, hidden[sample], None, None, sequences[sample]),
                range(len(sequences)),
            )
        else:
            other, states = reference
            with other.head(stream.device) as reference_logits:
                parts = stream.workers.map(
                    lambda sample: _score_sample(
                        logits, hidden[sample], reference_logits, states[sample], sequences[sample]
                    ),
                    range(len(sequences)),
                )
    return sum(parts, Scores())


Logits = Callable[[Tensor, Tensor], Tensor]


def _score_sample(
    logits: Logits, hidden: Tensor, reference: Logits | None, reference_hidden: Tensor | None, tokens: Tensor
) -> Scores:
    total, length, start, chunk = Scores(), len(tokens), 0, 16
    tokens = tokens.to(hidden.device).long()
    while start < length:
        positions = torch.arange(start, min(start + chunk, length), device=hidden.device)
        log_p = logits(hidden, positions).float().log_softmax(-1)
        chunk = max(16, _CHUNK_BYTES // (4 * log_p.shape[1]))
        start += len(positions)
        following = tokens[positions[0] + 1 : start + 1]
        nll = -float(log_p[: len(following)].gather(1, following[:, None]).double().sum())
        if reference is None or reference_hidden is None:
            total += Scores(len(following), len(positions), nll)
            continue
        log_q = reference(reference_hidden, positions).float().log_softmax(-1)
        total += Scores(
            len(following),
            len(positions),
            nll,
            -float(log_q[: len(following)].gather(1, following[:, None]).double().sum()),
            float((log_q.exp() * (log_q - log_p)).sum(dtype=torch.float64)),
            int((log_p.argmax(-1) == log_q.argmax(-1)).sum()),
        )
    return total


def _exp(mean: float) -> float:
    """A model that is broken enough has a perplexity beyond floating point."""
    return math.exp(mean) if mean < 700 else math.inf
