"""litgpt's table for mixtures of experts; ``test_rules.py`` holds all layouts to their laws with dense models."""

from __future__ import annotations

import pytest
import torch
import yaml

from llamaconv.config import ModelConfig
from llamaconv.layouts.hugging_face import expected_tensors
from llamaconv.layouts.litgpt import LAYOUT, LEGACY
from llamaconv.layouts.operations import Identity
from llamaconv.layouts.rules import Layout, local_specs
from llamaconv.tensors import TensorSpec
from tests.configs import config

MIXTRAL: ModelConfig = config(
    model_type="mixtral", num_hidden_layers=2, num_local_experts=3, num_experts_per_tok=2, tie_word_embeddings=False
)


def test_each_part_of_an_expert_has_its_place() -> None:
    """w1 is the gate, w3 goes up and w2 down; the router has a name of its own; bytes stay as they are."""
    moved = {rule.hub: rule for rule in LAYOUT.rules(MIXTRAL)}
    for layer in range(2):
        hub, local = f"model.layers.{layer}.block_sparse_moe.", f"transformer.h.{layer}.mlp."
        places = {"gate.weight": "gate.weight"}
        for expert in range(3):
            places |= {
                f"experts.{expert}.{theirs}.weight": f"experts.{expert}.{ours}.weight"
                for theirs, ours in (("w1", "fc_1"), ("w2", "proj"), ("w3", "fc_2"))
            }
        for theirs, ours in places.items():
            assert moved[(hub + theirs,)].local == (local + ours,)
            assert moved[(hub + theirs,)].operation == Identity()


@pytest.mark.parametrize("layout", [LAYOUT, LEGACY], ids=lambda layout: layout.name)
def test_every_tensor_of_a_mixture_is_placed_once(layout: Layout) -> None:
    """Nothing is left, nothing stands twice, and only queries, keys and values change their shape."""
    shapes = expected_tensors(MIXTRAL) or {}
    rules = layout.rules(MIXTRAL)
    assert sorted(name for rule in rules for name in rule.hub) == sorted(shapes)
    specs = local_specs(rules, {name: TensorSpec(name, shape, torch.float32) for name, shape in shapes.items()})
    assert len(specs) == len(shapes) - 2 * MIXTRAL.layers
    assert sum(spec.numel for spec in specs.values()) == sum(torch.Size(shape).numel() for shape in shapes.values())
    assert specs["transformer.h.1.mlp.gate.weight"].shape == (3, 48)
    assert specs["transformer.h.1.mlp.experts.2.proj.weight"].shape == (48, 80)


@pytest.mark.parametrize(
    ("said", "name"),
    [("meta-llama/Llama-3.1-8B-Instruct", "Llama-3.1-8B-Instruct"), (..., "Llama"), ("", "Llama"), (7, "Llama")],
)
def test_the_description_has_the_models_own_name(said: object, name: str) -> None:
    """litgpt chooses a prompt's style by it; config.json tells it in the repository, if at all."""
    fields = yaml.safe_load(LAYOUT.description(config(_name_or_path=said)))
    assert fields["name"] == name
