from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llamaconv.errors import OutputExistsError
from llamaconv.progress import Progress
from tests.conftest import Checkpoint
from tests.dequantized import layers_of, write_dense
from tests.models import (
    FAMILIES,
    load_weights,
    random_tokens,
    reference,
    reference_logits,
    write_model,
    write_tokenizer,
)
from tests.tasks.runs import LAYERS, digests, run, write_tokens

ALL = sorted(f"model.layers.{block}.{layer}" for block in range(3) for layer in LAYERS)
# Mean KL from the source, in nats: about twice what random weights of this size come to.
NEAR = {"gptq.int8": 0.0005, "llm.int8": 0.001, "gptq.int4": 0.12, "gptq.int3": 0.4, "gptq.int2": 1.0}


def kl(source: Path, quantized: Path, dense: Path) -> float:
    """Mean KL from the source's logits to those of what the artifact stands for; both run by transformers."""
    tokens = random_tokens(1, seed=9)[0]
    twin = write_dense(quantized, dense)
    log_q, log_p = (reference_logits(reference(path), tokens).double().log_softmax(-1) for path in (source, twin))
    return (log_q.exp() * (log_q - log_p)).sum(1).mean().item()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", NEAR)
def test_an_artifact_stands_for_a_model_near_the_source(
    checkpoint: Checkpoint, tmp_path: Path, family: str, mode: str
) -> None:
    """For each family and mode: every linear layer of the blocks, nothing else, and the logits are close."""
    source = checkpoint(family)
    result = run(source, tmp_path / "out", mode)
    assert layers_of(result.out) == sorted(layer.name for layer in result.layers) == ALL
    assert (result.mode, result.share_quantized) == (mode, 1.0)
    assert kl(source, result.out, tmp_path / "dense") < NEAR[mode]
    before, after = load_weights(source), load_weights(result.out)
    kept = [name for name in before if name.rpartition(".")[0] not in ALL]
    assert all(torch.equal(after[name], before[name]) for name in kept)
    assert result.bytes == sum(tensor.nbytes for tensor in after.values())


@pytest.mark.parametrize(
    ("mode", "group_size", "bits"),
    [
        # 4 bits of code; a scale and a zero point for each 32, at 16 and 4 bits; 32 bits of g_idx per column.
        ("gptq.int4", 32, 4 + 20 / 32),
        ("gptq.int3", 32, 3 + 19 / 32),
        ("gptq.int8", 32, 8 + 24 / 32),
        ("llm.int8", 32, 8),
    ],
)
def test_bits_per_weight_count_all_that_is_stored(
    checkpoint: Checkpoint, tmp_path: Path, mode: str, group_size: int, bits: float
) -> None:
    """Codes, scales, zero points and indices, over the weights that they stand for."""
    result = run(checkpoint(), tmp_path / "out", mode, group_size=group_size)
    shapes = [(192, 96), (64, 96), (64, 96), (96, 192), (160, 96), (160, 96), (96, 160)]
    weights = sum(rows * columns for rows, columns in shapes)
    rest = sum(32 * (columns if mode != "llm.int8" else rows) for rows, columns in shapes)
    rest += 0 if mode != "llm.int8" else 8 * len(shapes)
    assert result.bits_per_weight == pytest.approx(bits + rest / weights)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["gptq.int4", "llm.int8"])
def test_sources_of_16_bits_keep_their_dtype(
    checkpoint: Checkpoint, tmp_path: Path, dtype: torch.dtype, mode: str
) -> None:
    """What stays dense stays as it was, but for the biases of GPTQ layers, which its kernels add in float16."""
    source = checkpoint("qwen2", dtype=dtype)
    result = run(source, tmp_path / "out", mode)
    after = load_weights(result.out)
    assert {after[name].dtype for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")} == {
        dtype
    }
    bias = after["model.layers.1.self_attn.q_proj.bias"]
    assert bias.dtype == (torch.float16 if mode == "gptq.int4" else dtype)
    assert torch.equal(bias, load_weights(source)["model.layers.1.self_attn.q_proj.bias"].to(bias.dtype))
    assert kl(source, result.out, tmp_path / "dense") < NEAR[mode] * 2


@pytest.mark.parametrize("mode", ["gptq.int4", "llm.int8"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_stays_dense_is_cast_on_request(checkpoint: Checkpoint, tmp_path: Path, dtype: str, mode: str) -> None:
    """All of it, and config.json says so under both names."""
    result = run(checkpoint(dtype=torch.bfloat16), tmp_path / "out", mode, dtype=dtype, skip=("*.o_proj",))
    after = load_weights(result.out)
    dense = {name: tensor for name, tensor in after.items() if name.rpartition(".")[0] not in layers_of(result.out)}
    assert len(dense) == 3 + 3 * 3
    assert {tensor.dtype for tensor in dense.values()} == {getattr(torch, dtype)}
    raw = json.loads((result.out / "config.json").read_text())
    assert (raw["dtype"], raw["torch_dtype"]) == (dtype, dtype)


@pytest.mark.parametrize(
    "settings",
    [
        {"act_order": True},
        {"symmetric": False},
        {"group_size": -1},
        {"group_size": -1, "act_order": True, "symmetric": False},
        {"scales": "minmax", "sweeps": 0},
        {"damping": 0.1, "compute_dtype": "bfloat16"},
    ],
    ids=str,
)
def test_every_setting_gives_a_model_near_the_source(
    checkpoint: Checkpoint, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """And shows in what is stored."""
    source = checkpoint()
    result = run(source, tmp_path / "out", **settings)
    assert kl(source, result.out, tmp_path / "dense") < NEAR["gptq.int4"] * 2
    after = load_weights(result.out)
    layer = "model.layers.1.mlp.down_proj"
    group = after[f"{layer}.g_idx"].tolist()
    groups = 1 if "group_size" in settings else 5
    assert after[f"{layer}.scales"].shape == (groups, 96)
    assert sorted(group) == [column * groups // 160 for column in range(160)]
    assert (group != sorted(group)) == ("act_order" in settings and groups > 1)
    symmetric = bool((after[f"{layer}.qzeros"] == 0x77777777).all())
    assert symmetric == settings.get("symmetric", True)


@pytest.mark.parametrize("mode", ["gptq.int4", "llm.int8"])
def test_skipped_layers_stay_dense(checkpoint: Checkpoint, tmp_path: Path, mode: str) -> None:
    """In every block or in some; the share counts the parameters that are quantized."""
    source = checkpoint()
    result = run(source, tmp_path / "out", mode, skip=("*.down_proj", "model.layers.1.self_attn.[qk]_proj"))
    left = [f"model.layers.{block}.mlp.down_proj" for block in range(3)]
    left += ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.k_proj"]
    assert layers_of(result.out) == sorted(set(ALL) - set(left))
    before, after = load_weights(source), load_weights(result.out)
    assert all(torch.equal(after[f"{name}.weight"], before[f"{name}.weight"]) for name in left)
    skipped = 3 * 96 * 160 + 256 * 96
    assert result.share_quantized == pytest.approx(1 - skipped / (3 * (512 * 96 + 3 * 96 * 160)))
    assert kl(source, result.out, tmp_path / "dense") < NEAR[mode]


def test_a_whole_block_can_stay_dense(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The hidden states still pass through it."""
    source = checkpoint()
    result = run(source, tmp_path / "out", skip=("model.layers.1.*",))
    assert layers_of(result.out) == [name for name in ALL if ".1." not in name]
    assert kl(source, result.out, tmp_path / "dense") < NEAR["gptq.int4"]


@pytest.mark.parametrize("mode", ["gptq.int4", "llm.int8"])
def test_the_head_is_quantized_on_request(checkpoint: Checkpoint, tmp_path: Path, mode: str) -> None:
    """Beside the layers of the blocks, calibrated on what the final norm puts out."""
    source = checkpoint()
    result = run(source, tmp_path / "out", mode, lm_head=True)
    assert layers_of(result.out) == sorted(["lm_head", *ALL])
    assert result.share_quantized == 1.0
    assert result.layers[-1].name == "lm_head"
    assert 0 < result.layers[-1].error < 0.05
    assert "lm_head.weight" not in load_weights(result.out) or mode == "llm.int8"
    assert kl(source, result.out, tmp_path / "dense") < NEAR[mode] * 2


@pytest.mark.parametrize("mode", ["gptq.int4", "llm.int8"])
def test_a_tied_model_stays_tied(checkpoint: Checkpoint, tmp_path: Path, mode: str) -> None:
    """The embedding is stored once, dense, and the head is not stored."""
    source = checkpoint("qwen3", tie_word_embeddings=True)
    result = run(source, tmp_path / "out", mode)
    assert "lm_head.weight" not in load_weights(result.out)
    assert kl(source, result.out, tmp_path / "dense") < NEAR[mode]


@pytest.mark.parametrize("mode", ["gptq.int4", "llm.int8"])
def test_large_output_is_cut_into_shards(checkpoint: Checkpoint, tmp_path: Path, mode: str) -> None:
    """Of at most that many bytes, but for a tensor that is larger; the index says where each tensor is."""
    source = checkpoint()
    whole, cut = run(source, tmp_path / "whole", mode), run(source, tmp_path / "cut", mode, max_shard_size=60_000)
    names = sorted(path.name for path in cut.out.glob("*.safetensors"))
    assert names == [f"model-{n:05}-of-{len(names):05}.safetensors" for n in range(1, len(names) + 1)]
    assert cut.shards == len(names) > 4
    index = json.loads((cut.out / "model.safetensors.index.json").read_text())
    files = {name: load_file(cut.out / name) for name in names}
    assert index["weight_map"] == {tensor: name for name, tensors in files.items() for tensor in tensors}
    assert index["metadata"]["total_size"] == cut.bytes == whole.bytes
    for tensors in files.values():
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= 60_000
    one, many = load_weights(whole.out), load_weights(cut.out)
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)


@pytest.mark.parametrize("kind", ["index", "file"])
def test_a_source_may_be_named_by_its_files(checkpoint: Checkpoint, tmp_path: Path, kind: str) -> None:
    """An index, or a single file: config.json and the tokenizer beside it belong to it."""
    size = "200kB" if kind == "index" else "5GB"
    source = write_tokenizer(write_model(tmp_path / "model", max_shard_size=size))
    named = source / ("model.safetensors.index.json" if kind == "index" else "model.safetensors")
    by_folder, by_file = run(source, tmp_path / "a"), run(named, tmp_path / "b")
    assert digests(by_folder.out) == digests(by_file.out)


def test_progress_goes_from_nothing_to_everything(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """It only grows, names what is in hand, and ends at its total."""
    told: list[Progress] = []
    result = run(checkpoint(), tmp_path / "out", report=told.append)
    assert {(progress.task, progress.unit, progress.total) for progress in told} == {
        ("quantizing", "work", told[0].total)
    }
    steps = {progress.done: progress.detail for progress in reversed(told)}
    assert [steps[done] for done in sorted(steps)] == [
        *["embedding", "model.layers.0", "model.layers.1", "model.layers.2", "model.norm.weight", "lm_head.weight", ""]
    ]
    layers = {progress.detail for progress in told} - set(steps.values())
    assert layers == {layer.name for layer in result.layers}
    done = [progress.done for progress in told]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, told[0].total)


def test_time_is_accounted_for_once(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The kinds of work add up to no more than the whole, each layer's own time to the time of quantization."""
    result = run(checkpoint(), tmp_path / "out")
    assert set(result.stage_seconds) == {"embedding", "forward", "Hessian", "factorization", "quantization"}
    assert 0 < sum(result.stage_seconds.values()) <= result.seconds
    assert sum(layer.seconds for layer in result.layers) == pytest.approx(result.stage_seconds["quantization"])


def test_an_output_that_is_there_is_replaced_only_on_request(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Without --overwrite nothing is touched; with it, nothing of the old one stays."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(OutputExistsError):
        run(checkpoint(), out)
    assert digests(tmp_path / "out").keys() == {"mine.txt"}
    run(checkpoint(), out, overwrite=True)
    assert "mine.txt" not in digests(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tokens.npy"]


def test_result_has_a_json_form(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """With a line per layer."""
    result = run(checkpoint(), tmp_path / "out", calibration=write_tokens(tmp_path / "t.npy", 2, 8))
    found = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert found["out"] == str(tmp_path / "out")
    assert [layer["name"] for layer in found["layers"]] == [layer.name for layer in result.layers]
    assert found["notes"] == [
        "asked for 1,024 tokens (128 x 8), the calibration text has 16; quantization goes on with these",
        "16 calibration tokens are fewer than four times the widest input (192 columns): expect a worse result than "
        "with more",
    ]
