from __future__ import annotations

import json
import shutil
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from llamaconv.errors import ConfigError, UnsupportedError
from llamaconv.memory import peak_rss, reset_peak_rss
from llamaconv.model.evaluation import Evaluated, final_states
from llamaconv.model.skeleton import Skeleton, clear, put
from llamaconv.model.stream import Stream
from llamaconv.model.workers import Workers
from llamaconv.sources.open import open_checkpoint
from llamaconv.tasks.loading import load_model
from tests.conftest import Checkpoint
from tests.models import FAMILIES, LENGTH, load_weights, patch_config, random_tokens, reference, reference_logits

ALL = [*FAMILIES, "gemma2", "gemma3_text", "bloom", "opt"]


def build(directory: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Skeleton:
    return Skeleton.build(AutoConfig.from_pretrained(directory).to_dict() | changes, dtype)


def evaluated(directory: Path, dtype: torch.dtype = torch.float32) -> Evaluated:
    return Evaluated(build(directory, dtype), open_checkpoint(directory).reader)


def logits_of(model: Evaluated, sequences: list[Tensor], workers: int = 1) -> list[Tensor]:
    """[L, V] for each sequence, block by block."""
    with Workers(workers) as crew:
        stream = Stream(crew)
        hidden = final_states(model, sequences, stream, "running")
        with model.head(stream.device) as logits:
            return crew.map(
                lambda pair: logits(pair[0], torch.arange(len(pair[1]))), zip(hidden, sequences, strict=True)
            )


def same(one: Any, other: Any) -> bool:
    """Equal values; tensors bit for bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_block_by_block_gives_the_logits_of_the_whole_model(
    checkpoint: Checkpoint, family: str, dtype: torch.dtype, tied: bool
) -> None:
    """At every position, far ones too, for sequences of several lengths, on one thread and on two."""
    directory = checkpoint(family, dtype=dtype, tie_word_embeddings=tied)
    model, sequences = evaluated(directory, dtype), random_tokens(3)
    sequences[1] = sequences[1][:33]
    whole = reference(directory, dtype)
    for workers in (1, 2):
        for tokens, logits in zip(sequences, logits_of(model, sequences, workers), strict=True):
            torch.testing.assert_close(logits, reference_logits(whole, tokens), atol=1e-6, rtol=0)


@pytest.mark.parametrize("rope", ["theta", "parameters"])
@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    ],
    ids=lambda scaling: scaling["rope_type"],
)
def test_rotary_scaling_is_that_of_the_whole_model(
    checkpoint: Checkpoint, tmp_path: Path, rope: str, scaling: dict[str, Any]
) -> None:
    """Base and scaling are found in either place of config.json, whichever transformers itself reads."""
    settings = {"rope_parameters": scaling | {"rope_theta": 25000.0}, "rope_theta": 25000.0}
    model, tokens = load_model(checkpoint(rope=rope, **settings), "float32"), random_tokens(1)
    (logits,) = logits_of(Evaluated(model.skeleton, model.tensors), tokens)
    expected = reference_logits(reference(checkpoint(rope="both", **settings)), tokens[0])
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=0)
    plain = patch_config(
        shutil.copytree(checkpoint(**settings), tmp_path / "plain"),
        rope_theta=10000.0,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rope_scaling=None,
    )
    assert (reference_logits(reference(plain), tokens[0]) - expected).abs().max() > 0.1


@pytest.mark.parametrize("family", ALL)
def test_every_block_receives_what_it_receives_in_the_whole_model(checkpoint: Checkpoint, family: str) -> None:
    """Masks, position embeddings and position ids, per block: models that mix kinds of attention differ in them."""
    directory = checkpoint(family)
    recorded = build(directory).record(LENGTH)
    whole, received = reference(directory), []

    def watch(_: nn.Module, arguments: tuple[Any, ...], keyword: dict[str, Any]) -> None:
        received.append((arguments[1:], keyword))

    stem = build(directory).block_names[0].removesuffix(".0")
    for block in whole.get_submodule(stem):
        block.register_forward_pre_hook(watch, with_kwargs=True)
    reference_logits(whole, random_tokens(1)[0])
    assert len(recorded) == len(received) == 3
    for inputs, (positional, keyword) in zip(recorded, received, strict=True):
        assert inputs.keyword.keys() == keyword.keys()
        assert same(inputs.positional, positional)
        assert [name for name in keyword if not same(inputs.keyword[name], keyword[name])] == []


def test_sliding_and_full_attention_are_told_apart(checkpoint: Checkpoint) -> None:
    """Blocks of the same kind receive the same inputs, blocks of different kinds do not."""
    first, second, third = (inputs.keyword for inputs in build(checkpoint("gemma3_text")).record(LENGTH))
    assert all(same(first[name], third[name]) for name in first)
    assert not same(first["attention_mask"], second["attention_mask"])
    mask = first["attention_mask"][0, 0]
    assert mask.sum(1).tolist() == [min(row + 1, 24) for row in range(LENGTH)]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gemma3_text"])
def test_buffers_that_no_checkpoint_holds_are_computed(checkpoint: Checkpoint, family: str) -> None:
    """Rotary frequencies and embedding scales are real, and those that transformers computes when it loads."""
    directory = checkpoint(family)
    ours = dict(build(directory).model.named_buffers())
    theirs = dict(reference(directory).named_buffers())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotary_frequencies_are_powers_of_the_base_in_full_precision(
    checkpoint: Checkpoint, dtype: torch.dtype
) -> None:
    """The base is config.json's; a model in bfloat16 has its frequencies in float32."""
    frequencies = build(checkpoint(dtype=dtype), dtype).model.get_buffer("model.rotary_emb.inv_freq")
    assert frequencies.dtype == torch.float32
    assert frequencies.tolist() == pytest.approx([25000.0 ** (-i / 16) for i in range(16)], rel=1e-6)


@pytest.mark.parametrize(
    ("family", "entry", "exit"),
    [
        ("llama", ["model.embed_tokens.weight"], ["model.norm.weight", "lm_head.weight"]),
        ("gemma2", ["model.embed_tokens.weight"], ["model.norm.weight", "lm_head.weight"]),
        (
            "bloom",
            [f"transformer.word_embeddings{leaf}" for leaf in (".weight", "_layernorm.weight", "_layernorm.bias")],
            ["transformer.ln_f.weight", "transformer.ln_f.bias", "lm_head.weight"],
        ),
        (
            "opt",
            ["model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight"],
            ["model.decoder.final_layer_norm.weight", "model.decoder.final_layer_norm.bias", "lm_head.weight"],
        ),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_told_apart_by_when_they_run(
    checkpoint: Checkpoint, family: str, entry: list[str], exit: list[str], tied: bool
) -> None:
    """Before the blocks, in them, after them: every parameter exactly once, in the model's order."""
    skeleton = build(checkpoint(family, tie_word_embeddings=tied))
    assert list(skeleton.entry_parameters()) == entry
    assert list(skeleton.exit_parameters()) == exit
    blocks = [name for index in range(3) for name in skeleton.block_parameters(index)]
    every = [name for name, _ in skeleton.model.named_parameters(remove_duplicate=False)]
    assert sorted(entry + blocks + exit) == sorted(every)
    assert skeleton.head == "lm_head"
    assert skeleton.tie == ({"lm_head.weight": entry[0]} if tied else {})


def test_recording_materializes_no_weights() -> None:
    """A model of 70 billion parameters is built and recorded in memory for its hidden states alone."""
    shape = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "vocab_size": 128256}
    config = {"model_type": "llama", "num_attention_heads": 64, "num_key_value_heads": 8, "rope_theta": 5e5} | shape
    reset_peak_rss()
    begun, before = time.perf_counter(), peak_rss()
    skeleton = Skeleton.build(config, torch.bfloat16)
    recorded = skeleton.record(1024)
    assert skeleton.entry_parameters() == ("model.embed_tokens.weight",)
    assert peak_rss() - before < 400_000_000
    assert time.perf_counter() - begun < 60
    assert len(recorded) == 80
    assert sum(parameter.numel() for parameter in skeleton.model.parameters()) == 70_553_706_496
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())


def test_the_head_s_input_is_that_of_the_whole_model(checkpoint: Checkpoint) -> None:
    """What comes after the last block and before the head is the final norm's output."""
    directory, tokens = checkpoint(), random_tokens(1)
    model, whole, seen = evaluated(directory), reference(directory), []
    whole.lm_head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    reference_logits(whole, tokens[0])
    with Workers(1) as crew:
        (hidden,) = final_states(model, tokens, Stream(crew), "running")
        model.fill(["model.norm.weight"], torch.device("cpu"))
        with model.skeleton.before_head() as head_input:
            (ours,) = crew.map(head_input, [hidden])
    assert torch.equal(ours, seen[0])


def test_parameters_are_put_in_and_given_back(checkpoint: Checkpoint) -> None:
    """Weights go in by name, and either the named ones or all of a module's return to the meta device."""
    directory = checkpoint("qwen2")
    skeleton, weights = build(directory), load_weights(directory)
    names = skeleton.block_parameters(1)
    for name in names:
        put(skeleton.model, name, weights[name])
    assert all(torch.equal(skeleton.model.get_parameter(name), weights[name]) for name in names)
    clear(skeleton.model, names[:2])
    assert [skeleton.model.get_parameter(name).is_meta for name in names] == [True, True] + [False] * (len(names) - 2)
    clear(skeleton.blocks[1])
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())


def test_an_unknown_architecture_is_refused() -> None:
    """What transformers does not hold would need remote code, which is never run."""
    with pytest.raises(UnsupportedError) as caught:
        Skeleton.build({"model_type": "nonesuch", "auto_map": {"AutoModelForCausalLM": "code.Model"}}, torch.float32)
    assert str(caught.value) == "config.json: transformers knows no model_type 'nonesuch'"
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("kind", ["t5", "vit"])
def test_what_is_no_causal_language_model_is_refused(kind: str) -> None:
    """Encoders with decoders, and models of other things than language."""
    with pytest.raises(UnsupportedError) as caught:
        Skeleton.build({"model_type": kind}, torch.float32)
    assert str(caught.value) == f"config.json: {kind!r} is no causal language model that transformers can build"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hidden_act": "nonesuch"}, "KeyError: 'nonesuch'"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "Missing required keys"),
        ({"pad_token_id": 1000}, "Padding_idx must be within num_embeddings"),
        ({"hidden_size": 6 * 10**6, "vocab_size": 10**9}, "can't allocate memory"),
    ],
)
def test_what_transformers_refuses_is_the_configuration_s_fault(
    checkpoint: Checkpoint, changes: dict[str, Any], reason: str
) -> None:
    """Whatever it raises, with its reason."""
    with pytest.raises(ConfigError) as caught:
        build(checkpoint(), **changes)
    assert str(caught.value).startswith("config.json: transformers refuses it: ")
    assert reason in str(caught.value)


def test_a_model_without_a_list_of_blocks_is_refused(checkpoint: Checkpoint) -> None:
    """The list must be as long as config.json says."""
    model = build(checkpoint()).model
    model.config.num_hidden_layers = 7
    with pytest.raises(UnsupportedError, match=r"^LlamaForCausalLM has no list of 7 decoder blocks$"):
        Skeleton(model, torch.float32)


def test_how_a_config_was_stored_says_nothing_of_the_architecture(checkpoint: Checkpoint) -> None:
    """The attention kernel somebody used, and quantization, are not built into the skeleton."""
    skeleton = build(
        checkpoint(),
        attn_implementation="flash_attention_2",
        _attn_implementation="flash_attention_2",
        quantization_config={"quant_method": "gptq", "bits": 4},
    )
    assert skeleton.model.config._attn_implementation == "sdpa"
    assert not hasattr(skeleton.model.config, "quantization_config")


def test_the_config_it_is_built_from_is_not_written_to(checkpoint: Checkpoint) -> None:
    """transformers adds to the dictionaries it is given, nested ones too; the caller's stay as they are."""
    raw = json.loads((checkpoint(rope="theta") / "config.json").read_text())
    raw["rope_scaling"] = {"type": "linear", "factor": 2.0}
    before = deepcopy(raw)
    Skeleton.build(raw, torch.float32)
    assert raw == before
