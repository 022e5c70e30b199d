from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llamaconv.calibration import load_evaluation
from llamaconv.errors import (
    CalibrationError,
    ConfigError,
    GateError,
    NumericalError,
    UsageError,
)
from llamaconv.progress import Progress
from llamaconv.tasks.evaluate import EvaluateSettings, Evaluation, evaluate
from tests.conftest import Checkpoint
from tests.dequantized import write_dense
from tests.models import reference, reference_logits, save_weights
from tests.tasks.runs import run, write_tokens

Quantized = Callable[[str], Path]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is judged on: 6 rows of 48 ids."""
    return write_tokens(tmp_path_factory.mktemp("text") / "tokens.npy", 6, 48, seed=11)


@pytest.fixture(scope="module")
def quantized(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """One artifact per mode, made of the plain Llama."""
    made: dict[str, Path] = {}

    def find(mode: str) -> Path:
        if mode not in made:
            made[mode] = run(checkpoint(), tmp_path_factory.mktemp(mode) / "out", mode).out
        return made[mode]

    return find


def judge(model: Path, text: Path | None, **settings: Any) -> Evaluation:
    return evaluate(model, EvaluateSettings(text=None if text is None else str(text), **{"threads": 1, **settings}))


def direct(model: Path, against: Path, rows: Tensor) -> dict[str, float]:
    """Perplexity, KL and agreement from all logits at once, of two dense models run by transformers."""
    judged, dense = reference(model), reference(against)
    log_p = torch.stack([reference_logits(judged, row) for row in rows]).double().log_softmax(-1)
    log_q = torch.stack([reference_logits(dense, row) for row in rows]).double().log_softmax(-1)
    following = rows[:, 1:, None].long()
    nll, reference_nll = (-each[:, :-1].gather(2, following).mean().item() for each in (log_p, log_q))
    return {
        "perplexity": math.exp(nll),
        "reference_perplexity": math.exp(reference_nll),
        "ppl_ratio": math.exp(nll - reference_nll),
        "kl": (log_q.exp() * (log_q - log_p)).sum(-1).mean().item(),
        "top1": (log_p.argmax(-1) == log_q.argmax(-1)).double().mean().item(),
    }


@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        ("gptq.int8", {}),
        ("gptq.int4", {"act_order": True, "symmetric": False, "lm_head": True}),
        ("gptq.int3", {"group_size": -1, "skip": ("*.down_proj",)}),
        ("gptq.int2", {"max_shard_size": 100_000}),
        ("llm.int8", {}),
        ("llm.int8", {"lm_head": True, "skip": ("*.1.*",)}),
    ],
)
@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("qwen2", True)])
def test_a_quantized_model_is_judged_as_the_dense_one_it_stands_for(
    checkpoint: Checkpoint, tmp_path: Path, tokens: Path, mode: str, settings: dict[str, Any], family: str, tied: bool
) -> None:
    """The figures are those of transformers, run on weights read by the letter of the format."""
    source = checkpoint(family, tie_word_embeddings=tied)
    if tied:
        settings = {name: value for name, value in settings.items() if name != "lm_head"}
    out = run(source, tmp_path / "out", mode, **settings).out
    found = judge(out, tokens, against=source)
    expected = direct(write_dense(out, tmp_path / "dense"), source, torch.from_numpy(np.load(tokens)))
    assert {name: getattr(found, name) for name in expected} == pytest.approx(expected, rel=2e-5, abs=1e-7)
    assert (found.model, found.against, found.tokens) == (out, source, 6 * 48)
    assert found.data == "tokens.npy"


def test_a_dense_model_is_judged_alone(checkpoint: Checkpoint, tokens: Path) -> None:
    """Without a reference there is perplexity and nothing else, the same on one thread and on two."""
    found = judge(checkpoint(), tokens)
    expected = direct(checkpoint(), checkpoint(), torch.from_numpy(np.load(tokens)))
    assert found.perplexity == pytest.approx(expected["perplexity"], rel=1e-6)
    assert (found.reference_perplexity, found.ppl_ratio, found.kl, found.top1) == (None, None, None, None)
    assert judge(checkpoint(), tokens, threads=2).perplexity == found.perplexity


def test_a_model_is_at_no_distance_from_itself(checkpoint: Checkpoint, tokens: Path) -> None:
    """KL 0, agreement 1, ratio 1, and no gate is missed."""
    found = judge(checkpoint(), tokens, against=checkpoint(), max_kl=0.0, max_ppl_ratio=1.0)
    assert (found.kl, found.top1, found.ppl_ratio) == (0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("gates", "lines"),
    [
        ({"max_kl": 1e-3}, ["mean KL {kl:.6g} is above the limit of 0.001"]),
        ({"max_ppl_ratio": 0.5, "max_kl": 9}, ["perplexity ratio {ppl_ratio:.6g} is above the limit of 0.5"]),
        (
            {"max_kl": 0.0, "max_ppl_ratio": 0.5},
            ["mean KL {kl:.6g} is above the limit of 0", "perplexity ratio {ppl_ratio:.6g} is above the limit of 0.5"],
        ),
    ],
)
def test_a_gate_that_is_missed_is_an_error(
    checkpoint: Checkpoint, quantized: Quantized, tokens: Path, gates: dict[str, float], lines: list[str]
) -> None:
    """Every gate that is missed is named, and the figures come with the error."""
    figures = judge(quantized("gptq.int4"), tokens, against=checkpoint())
    with pytest.raises(GateError) as caught:
        judge(quantized("gptq.int4"), tokens, against=checkpoint(), **gates)
    assert str(caught.value).splitlines() == [line.format(**figures.to_json()) for line in lines]
    assert caught.value.exit_code == 8
    told = caught.value.facts["evaluation"]
    assert isinstance(told, dict)
    assert (told["kl"], told["top1"], told["perplexity"]) == (figures.kl, figures.top1, figures.perplexity)
    judge(quantized("gptq.int4"), tokens, against=checkpoint(), **dict.fromkeys(gates, 10.0))


def test_figures_that_are_no_numbers_are_no_result(checkpoint: Checkpoint, tmp_path: Path, tokens: Path) -> None:
    """A model whose activations overflow is an error with gates and without."""
    broken = shutil.copytree(checkpoint(), tmp_path / "model")
    save_weights(broken, **{"model.layers.1.input_layernorm.weight": torch.full((96,), 3e38)})
    for settings in ({}, {"against": checkpoint(), "max_kl": 1e9}):
        with pytest.raises(NumericalError) as caught:
            judge(broken, tokens, **settings)
        assert str(caught.value) == f"{broken}: its logits on {tokens.name} are NaN or Inf"
        assert caught.value.exit_code == 8


def test_gates_need_a_reference(checkpoint: Checkpoint, tokens: Path) -> None:
    """It is said before anything is read."""
    for gate in ("max_kl", "max_ppl_ratio"):
        with pytest.raises(UsageError) as caught:
            judge(checkpoint() / "nonesuch", tokens, **{gate: 1.0})
        assert str(caught.value) == "--max-kl and --max-ppl-ratio compare with a reference"
        assert caught.value.hint == "Give one with --against."


def test_models_of_different_vocabularies_cannot_be_compared(checkpoint: Checkpoint, tokens: Path) -> None:
    """KL needs the same tokens on both sides."""
    model, against = checkpoint(), checkpoint(vocab_size=320)
    with pytest.raises(ConfigError) as caught:
        judge(model, tokens, against=against)
    assert str(caught.value) == (f"{model} has a vocabulary of 288, {against} of 320: they cannot be compared")
    assert caught.value.exit_code == 3


def test_the_built_in_text_is_not_that_of_calibration(checkpoint: Checkpoint) -> None:
    """Held-out documents, in their order; as many sequences as asked for."""
    found = judge(checkpoint(), None, samples=2, seq_len=40)
    data = load_evaluation(None, directory=checkpoint(), vocab_size=288, max_positions=512, samples=2, seq_len=40)
    assert (found.data, found.data_sha256, found.tokens) == ("builtin:evaluation", data.sha256, 80)
    rows = torch.stack(list(data.sequences))
    expected = direct(checkpoint(), checkpoint(), rows)["perplexity"]
    assert found.perplexity == pytest.approx(expected, rel=1e-6)


def test_text_is_tokenized_and_sequences_may_be_ragged(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The last sequence is as long as the text lasts."""
    text = tmp_path / "text.txt"
    text.write_text("Of all things the measure is man.")
    found = judge(checkpoint(), text, seq_len=16)
    assert found.tokens == 33 + 3
    assert (found.data, 50 < found.perplexity < 5000) == ("text.txt", True)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.full((2, 8), 288), "row 0, column 0: 288 is not a token of the model, whose vocabulary is 0 to 287"),
        (np.zeros((2, 1), dtype=np.int32), "its rows have 1 token, and none to predict from it"),
        (np.zeros((1, 513), dtype=np.int32), "its rows have 513 tokens, the model takes 512 at most"),
    ],
)
def test_tokens_that_the_model_cannot_take_are_refused(
    checkpoint: Checkpoint, tmp_path: Path, rows: Any, message: str
) -> None:
    """Ids beyond the vocabulary, rows too short or too long."""
    np.save(tmp_path / "bad.npy", rows)
    with pytest.raises(CalibrationError) as caught:
        judge(checkpoint(), tmp_path / "bad.npy")
    assert message in str(caught.value)
    assert caught.value.exit_code == 3


def test_progress_counts_blocks(checkpoint: Checkpoint, quantized: Quantized, tokens: Path) -> None:
    """Of the model first, then of the reference."""
    told: list[Progress] = []
    settings = EvaluateSettings(text=str(tokens), against=checkpoint(), threads=1)
    evaluate(quantized("llm.int8"), settings, told.append)
    assert [(progress.task, progress.done, progress.total, progress.unit) for progress in told] == [
        (task, done, 3, "blocks") for task in ("evaluating", "evaluating the reference") for done in range(4)
    ]


def test_an_evaluation_has_a_json_form(checkpoint: Checkpoint, tokens: Path) -> None:
    """Paths as text."""
    found = json.loads(json.dumps(judge(checkpoint(), tokens, against=checkpoint()).to_json(), allow_nan=False))
    assert (found["model"], found["against"]) == (str(checkpoint()), str(checkpoint()))
    assert judge(checkpoint(), tokens).to_json()["against"] is None
