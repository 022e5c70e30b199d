"""litgpt's own model class runs what we write."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from litgpt.config import Config
from litgpt.model import build_rope_cache
from litgpt.utils import save_config

from llamaconv.config import read_config
from llamaconv.layouts.litgpt import LEGACY
from llamaconv.tasks.convert import ConvertSettings, convert
from tests.interop.litgpt.conversions import CASES, Case, Workshop, difference, litgpt_logits, stored
from tests.models import load_weights

pytestmark = pytest.mark.interop

CLOSE = 1e-5
FAR = 1e-2
BY_NAME = {case.name: case for case in CASES}


def _changed(source: Path, out: Path, **changes: Any) -> Path:
    """The same weights with other fields in model_config.yaml."""
    shutil.copytree(source, out)
    path = out / "model_config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    return out


@pytest.mark.parametrize("case", CASES, ids=str)
def test_logits_are_those_of_transformers(workshop: Workshop, case: Case) -> None:
    """All 1,200 positions, in float32; each tensor in its place."""
    made = workshop.make(case)
    assert difference(litgpt_logits(made.litgpt, made.tokens), made.logits) <= CLOSE


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_description_is_what_litgpt_itself_would_save(workshop: Workshop, case: Case, tmp_path: Path) -> None:
    """Every field, nothing more, byte for byte."""
    ours = workshop.make(case).litgpt / "model_config.yaml"
    config = Config.from_file(ours)
    assert asdict(config) == yaml.safe_load(ours.read_text())
    save_config(config, tmp_path)
    assert (tmp_path / "model_config.yaml").read_bytes() == ours.read_bytes()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Llama 2", {"rope_base": 10100}),
        ("Llama 3.1", {"rope_adjustments": None}),
        ("Code Llama", {"norm_eps": 1e-5}),
        ("Mistral", {"sliding_window_size": None}),
        ("Mixtral", {"n_expert_per_token": 1}),
    ],
)
def test_a_wrong_fact_would_show(workshop: Workshop, name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """With another base, scaling, epsilon, window or number of experts the logits are others."""
    made = workshop.make(BY_NAME[name])
    wrong = _changed(made.litgpt, tmp_path / "wrong", **changes)
    assert difference(litgpt_logits(wrong, made.tokens), made.logits) > 10 * CLOSE


@pytest.mark.parametrize("name", ["Llama 3.1", "Qwen2", "Mixtral"])
def test_older_files_are_read_as_litgpt_reads_them(workshop: Workshop, name: str, tmp_path: Path) -> None:
    """Interleaved ``attn.attn``: litgpt's load hook gives the same logits, and our reading the same tensors."""
    made = workshop.make(BY_NAME[name])
    hub, older = load_weights(made.hub), tmp_path / "older"
    shutil.copytree(made.litgpt, older, ignore=shutil.ignore_patterns("lit_model.pth", "llamaconv.json"))
    tensors = {}
    for rule in LEGACY.rules(read_config(made.hub)):
        outputs = rule.operation.apply(tuple(hub[tensor] for tensor in rule.hub))
        tensors |= dict(zip(rule.local, outputs, strict=True))
    assert "transformer.h.0.attn.attn.weight" in tensors
    torch.save(tensors, older / "lit_model.pth")
    assert difference(litgpt_logits(older, made.tokens), made.logits) <= CLOSE
    convert(older, tmp_path / "hub", ConvertSettings(to="hf"))
    ours = load_weights(tmp_path / "hub")
    assert ours.keys() == hub.keys()
    assert all(torch.equal(ours[tensor], hub[tensor]) for tensor in hub)


def test_older_files_told_apart_wrongly_would_show(workshop: Workshop, tmp_path: Path) -> None:
    """The same tensor under the newer name is another model."""
    made = workshop.make(BY_NAME["Llama 3.1"])
    hub, tensors = load_weights(made.hub), stored(made.litgpt)
    for rule in LEGACY.rules(read_config(made.hub)):
        if rule.local[0].endswith(".attn.attn.weight"):
            name = rule.local[0].replace(".attn.attn.", ".attn.qkv.")
            (tensors[name],) = rule.operation.apply(tuple(hub[tensor] for tensor in rule.hub))
    shutil.copytree(made.litgpt, tmp_path / "wrong")
    torch.save(tensors, tmp_path / "wrong" / "lit_model.pth")
    assert difference(litgpt_logits(tmp_path / "wrong", made.tokens), made.logits) > FAR


def test_its_yarn_is_another() -> None:
    """Why rope scaling of type yarn is refused: litgpt's frequencies are not those of transformers."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    sizes = {"hidden_size": 64, "num_attention_heads": 1, "max_position_embeddings": 2048}
    config = LlamaConfig(**sizes, rope_theta=1e4, rope_scaling=scaling)
    theirs, scale = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    facts = {"factor": 4.0, "beta_fast": 32, "beta_slow": 1, "original_max_seq_len": 512, "mscale": 1.0}
    cosine, _ = build_rope_cache(seq_len=2, n_elem=64, extra_config=facts)
    assert not torch.allclose(torch.cos(theirs) * scale, cosine[1, :32], rtol=1e-3)
