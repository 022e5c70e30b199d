"""litgpt's own converters and ours, tensor by tensor, both ways."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from litgpt.config import Config
from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama, copy_weights_qwen_2_5, copy_weights_qwen_3
from litgpt.scripts.convert_lit_checkpoint import convert_lit_checkpoint
from torch import Tensor

from llamaconv.tasks.convert import ConvertSettings, convert
from tests.interop.litgpt.conversions import CASES, Case, Workshop, difference, stored
from tests.models import load_weights, reference, reference_logits

pytestmark = pytest.mark.interop

THEIRS = {"qwen2": copy_weights_qwen_2_5, "qwen3": copy_weights_qwen_3}
"""Which of litgpt's functions takes a family; all others go through that of Llama."""


def _require_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("case", [case for case in CASES if case.theirs], ids=str)
def test_there(workshop: Workshop, case: Case) -> None:
    """What ``convert_to_litgpt`` makes of the same files is what we make of them, a tied head included."""
    made = workshop.make(case)
    theirs: dict[str, Tensor] = {}
    copy = THEIRS.get(case.family, copy_weights_hf_llama)
    copy(Config.from_file(made.litgpt / "model_config.yaml"), {}, theirs, load_weights(made.hub))
    _require_equal(stored(made.litgpt), theirs)


@pytest.mark.parametrize("case", [case for case in CASES if case.theirs], ids=str)
def test_back(workshop: Workshop, case: Case, tmp_path: Path) -> None:
    """``convert_from_litgpt``, which goes by the name that we wrote, makes the hub's tensors of our file."""
    made = workshop.make(case)
    convert_lit_checkpoint(made.litgpt, tmp_path / "theirs")
    theirs = torch.load(tmp_path / "theirs" / "model.pth", weights_only=True)
    hub = load_weights(made.hub)
    if case.config.get("tie_word_embeddings"):
        assert torch.equal(theirs.pop("lm_head.weight"), hub["model.embed_tokens.weight"])  # stored twice by litgpt
    _require_equal(theirs, hub)


@pytest.mark.parametrize("case", [case for case in CASES if not case.theirs], ids=str)
def test_litgpt_has_no_way_back(workshop: Workshop, case: Case, tmp_path: Path) -> None:
    """It computes with biases everywhere, but its converter does not know them."""
    with pytest.raises(KeyError):
        convert_lit_checkpoint(workshop.make(case).litgpt, tmp_path / "theirs")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_our_way_back(workshop: Workshop, case: Case, tmp_path: Path) -> None:
    """From litgpt's own files alone: the hub's tensors, and a config.json with which transformers computes the same."""
    made = workshop.make(case)
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("lit_model.pth", "model_config.yaml"):
        shutil.copy(made.litgpt / name, alone)
    convert(alone, tmp_path / "ours", ConvertSettings(to="hf"))
    _require_equal(load_weights(tmp_path / "ours"), load_weights(made.hub))
    assert difference(reference_logits(reference(tmp_path / "ours"), made.tokens), made.logits) == 0


def test_files_that_litgpt_saves(workshop: Workshop, tmp_path: Path) -> None:
    """A training checkpoint keeps its tensors under "model"; they are read as well."""
    made = workshop.make(CASES[0])
    trained = tmp_path / "trained"
    shutil.copytree(made.litgpt, trained, ignore=shutil.ignore_patterns("lit_model.pth", "llamaconv.json"))
    torch.save({"model": dict(stored(made.litgpt))}, trained / "lit_model.pth")
    convert(trained, tmp_path / "hub", ConvertSettings(to="hf"))
    _require_equal(load_weights(tmp_path / "hub"), load_weights(made.hub))
