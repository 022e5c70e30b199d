from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llamaconv.errors import NotFiniteError
from llamaconv.model.evaluation import Evaluated, Scores, final_states, score
from llamaconv.model.stream import Stream
from llamaconv.model.workers import Workers
from llamaconv.progress import Progress
from llamaconv.tasks.loading import load_model
from tests.conftest import Checkpoint
from tests.models import random_tokens, reference, reference_logits, save_weights, write_model


def evaluated(directory: Path, dtype: str = "float32") -> Evaluated:
    model = load_model(directory, dtype)
    return Evaluated(model.skeleton, model.tensors)


def scores(model: Path, against: Path | None, sequences: list[Tensor], workers: int = 1) -> Scores:
    with Workers(workers) as crew:
        stream = Stream(crew)
        judged = evaluated(model)
        hidden = final_states(judged, sequences, stream, "judging")
        if against is None:
            return score(judged, hidden, sequences, stream, None)
        other = evaluated(against)
        return score(judged, hidden, sequences, stream, (other, final_states(other, sequences, stream, "judging")))


def direct(model: Path, against: Path, sequences: list[Tensor]) -> Scores:
    """From all logits at once, in float64."""
    judged, dense, total = reference(model), reference(against), Scores()
    for tokens in sequences:
        log_p, log_q = (reference_logits(each, tokens).double().log_softmax(-1) for each in (judged, dense))
        following = tokens[1:, None].long()
        total += Scores(
            len(tokens) - 1,
            len(tokens),
            -log_p[:-1].gather(1, following).sum().item(),
            -log_q[:-1].gather(1, following).sum().item(),
            (log_q.exp() * (log_q - log_p)).sum().item(),
            int((log_p.argmax(-1) == log_q.argmax(-1)).sum()),
        )
    return total


def ragged() -> list[Tensor]:
    return [tokens[:length] for tokens, length in zip(random_tokens(5), (160, 16, 17, 1, 33), strict=True)]


def assert_close(ours: Scores, theirs: Scores) -> None:
    assert (ours.predicted, ours.positions, ours.agreed) == (theirs.predicted, theirs.positions, theirs.agreed)
    assert ours.nll == pytest.approx(theirs.nll, rel=1e-6)
    assert ours.reference_nll == pytest.approx(theirs.reference_nll, rel=1e-6)
    assert ours.kl == pytest.approx(theirs.kl, rel=1e-5)


@pytest.mark.parametrize(
    ("family", "settings"),
    [("llama", {}), ("qwen3", {"tie_word_embeddings": True}), ("gemma2", {"tie_word_embeddings": True})],
)
def test_scores_are_those_of_all_logits_at_once(checkpoint: Checkpoint, family: str, settings: dict[str, bool]) -> None:
    """Perplexity, KL and agreement of two models, over sequences of every length down to one token."""
    model, against = checkpoint(family, **settings), checkpoint(family, seed=1, **settings)
    ours, theirs = scores(model, against, ragged()), direct(model, against, ragged())
    assert_close(ours, theirs)
    assert (ours.predicted, ours.positions) == (222, 227)
    assert ours.perplexity == pytest.approx(math.exp(theirs.nll / 222), rel=1e-6)
    assert ours.reference_perplexity == pytest.approx(math.exp(theirs.reference_nll / 222), rel=1e-6)
    assert ours.kl / ours.positions > 0.5


def test_logits_in_chunks_give_the_same_scores(tmp_path: Path) -> None:
    """With so large a vocabulary that no sequence's logits are computed at once."""
    shape = {"vocab_size": 1 << 16, "hidden_size": 36, "tie_word_embeddings": True, "num_hidden_layers": 1}
    model, against = (write_model(tmp_path / str(seed), seed=seed, **shape) for seed in (0, 1))
    sequences = random_tokens(1, 300, vocab=1 << 16)
    assert_close(scores(model, against, sequences), direct(model, against, sequences))


def test_the_number_of_workers_changes_no_bit(checkpoint: Checkpoint) -> None:
    """Sums are formed in the samples' order, whoever computed them."""
    pair = checkpoint(), checkpoint(seed=1)
    assert scores(*pair, ragged(), workers=1) == scores(*pair, ragged(), workers=2)


def test_a_model_agrees_with_itself(checkpoint: Checkpoint) -> None:
    """No KL, all positions alike, the same perplexity on both sides, which is that without a reference."""
    itself = scores(checkpoint(), checkpoint(), ragged())
    assert (itself.kl, itself.agreed, itself.nll) == (0.0, itself.positions, itself.reference_nll)
    alone = scores(checkpoint(), None, ragged())
    assert alone == Scores(itself.predicted, itself.positions, itself.nll)


def test_weights_are_in_memory_one_block_at_a_time(checkpoint: Checkpoint) -> None:
    """When a block begins, no parameter of any other is filled; in the end none is."""
    model, filled = evaluated(checkpoint()), []

    def look(progress: Progress) -> None:
        assert (progress.task, progress.total, progress.unit) == ("judging", 3, "blocks")
        filled.append((progress.done, [name for name, p in model.skeleton.model.named_parameters() if not p.is_meta]))

    with Workers(2) as crew:
        final_states(model, ragged(), Stream(crew, report=look), "judging")
    assert filled == [(0, []), (1, []), (2, []), (3, [])]


def test_a_tied_head_is_the_embedding(checkpoint: Checkpoint) -> None:
    """Where the checkpoint holds no head, the embedding is read for it; where it holds one, that is read."""
    directory = checkpoint(tie_word_embeddings=True)
    model = evaluated(directory)
    assert "lm_head.weight" not in model.tensors.specs
    assert torch.equal(model.parameter("lm_head.weight"), model.parameter("model.embed_tokens.weight"))


def test_nan_in_a_weight_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A damaged checkpoint is not judged."""
    directory = shutil.copytree(checkpoint(), tmp_path / "model")
    weight = torch.zeros(96, 160)
    weight[1, 2], weight[3, 4] = math.nan, math.inf
    save_weights(directory, **{"model.layers.1.mlp.down_proj.weight": weight})
    with pytest.raises(NotFiniteError) as caught:
        scores(directory, None, ragged())
    assert str(caught.value) == "model.layers.1.mlp.down_proj.weight: 2 of 15360 values are NaN or Inf"


def test_a_model_that_is_broken_enough_has_infinite_perplexity() -> None:
    """Beyond what floating point holds, no error."""
    assert Scores(predicted=1, nll=701.0).perplexity == math.inf
    assert Scores(predicted=2, nll=2 * math.log(7)).perplexity == pytest.approx(7)
