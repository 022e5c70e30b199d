"""llamaconv.json of a conversion, and what is said of it before and after."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import llamaconv
from llamaconv.tasks.convert import ConvertSettings, plan
from tests.conftest import Checkpoint
from tests.tasks.conftest import Quantized
from tests.tasks.conversions import LLAMA_1, NO_TOKENIZER, PACKED_STATED, WARNING, WHOLE, to
from tests.tasks.runs import digests


def manifest(directory: Path) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads((directory / "llamaconv.json").read_text())
    return raw


def test_the_manifest_says_from_what_into_what(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Layouts, settings that have a say in the bytes, losses, notes, and every hash; no path and no time."""
    source = checkpoint(**LLAMA_1)
    result = to("lit-llama", source, tmp_path / "out", dtype="bfloat16", workers=3, verify=True)
    found = manifest(result.out)
    outputs = digests(result.out)
    del outputs["llamaconv.json"]
    assert found.pop("outputs") == outputs
    sizes = {path.name: path.stat().st_size for path in source.iterdir()}
    assert found.pop("source") == {
        name: {"bytes": sizes[name], "sha256": digest} for name, digest in digests(source).items()
    }
    assert found.pop("version") == llamaconv.__version__
    assert found.pop("libraries")["torch"] == torch.__version__
    assert found == {
        "tool": "llamaconv",
        "task": "convert",
        "settings": {"dtype": "bfloat16", "size": "tiny"},
        "verified": True,
        "source_layout": "hf",
        "source_manifest": None,
        "downloaded_from": None,
        "layout": "lit-llama",
        "losses": [],
        "notes": [WARNING, NO_TOKENIZER],
    }


def test_an_unverified_source_is_known_by_its_sizes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Hashing it would take longer than copying it."""
    source = checkpoint()
    found = manifest(to("hf", source, tmp_path / "out").out)
    assert found["verified"] is False
    assert found["source"] == {path.name: {"bytes": path.stat().st_size} for path in sorted(source.iterdir())}


def test_it_keeps_what_the_source_says_of_itself(quantized_llama: Quantized, tmp_path: Path) -> None:
    """How it was quantized is told on, from conversion to conversion; what was stated stands among the settings."""
    source = quantized_llama(**WHOLE)
    there = to("lit-llama", source, tmp_path / "there").out
    back = to("hf", there, tmp_path / "back", **PACKED_STATED).out
    assert manifest(there)["source_manifest"] == manifest(source)
    assert manifest(back)["source_manifest"] == manifest(there)
    assert manifest(back)["source_manifest"]["source_manifest"]["settings"]["mode"] == "gptq.int4"
    assert {key: manifest(back)["settings"][key] for key in PACKED_STATED} == PACKED_STATED
    assert manifest(there)["source"].keys() == digests(source).keys() - {"llamaconv.json"}


def test_a_source_manifest_that_cannot_be_read_is_left_out(
    checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a warning: it has no say in the bytes."""
    source = shutil.copytree(checkpoint(), tmp_path / "source")
    (source / "llamaconv.json").write_text("{")
    assert manifest(to("litgpt", source, tmp_path / "out").out)["source_manifest"] is None
    (told,) = [record.message for record in caplog.records]
    assert told.startswith(f"{source / 'llamaconv.json'} is left out of the output's own: ")


def test_the_file_beside_that_has_a_say_is_among_the_hashes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """litgpt's config.json, where it is heeded; not where it is passed over."""
    litgpt = to("litgpt", checkpoint(), tmp_path / "litgpt").out
    sources = manifest(to("hf", litgpt, tmp_path / "one").out)["source"]
    assert {"lit_model.pth", "model_config.yaml", "config.json"} <= sources.keys()
    raw = json.loads((litgpt / "config.json").read_text())
    (litgpt / "config.json").write_text(json.dumps(raw | {"rope_theta": 7.0, "rope_parameters": None}))
    assert "config.json" not in manifest(to("hf", litgpt, tmp_path / "two").out)["source"]


def test_the_result_has_a_json_form(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """What was written, from what, and what it took."""
    result = to("meta", checkpoint(head_dim=16), tmp_path / "out", tensor_parallel=2, verify=True)
    told = result.to_json()
    assert json.loads(json.dumps(told)) == {key: list(v) if isinstance(v, tuple) else v for key, v in told.items()}
    assert told.pop("seconds") > 0
    assert told.pop("peak_rss") > 50_000_000
    ranks = [torch.load(tmp_path / "out" / f"consolidated.0{rank}.pth") for rank in (0, 1)]
    assert told == {
        "out": str(tmp_path / "out"),
        "layout": "meta",
        "source_layout": "hf",
        "tensors": sum(len(tensors) for tensors in ranks),
        "bytes": sum(tensor.nbytes for tensors in ranks for tensor in tensors.values()),
        "files": ("consolidated.00.pth", "consolidated.01.pth"),
        "losses": (),
        "verified": True,
        "logits_difference": 0.0,
        "notes": ("the source has no tokenizer.model, which meta's tools take their tokens from",),
    }


def row(source: Path, settings: ConvertSettings, target: str) -> dict[str, Any]:
    """What a dry run says of the step that writes ``target``."""
    steps = plan(source, source.parent / "nowhere", settings).to_json()["steps"]
    (found,) = [step for step in steps if target in [spec["name"] for spec in step["writes"]]]
    assert not (source.parent / "nowhere").exists()
    return {
        key: [spec["name"] for spec in value] if key in ("reads", "writes") else value for key, value in found.items()
    }


def test_a_dry_run_says_what_comes_of_what(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Under the names of source and target, with the operation, the bytes written and the memory it takes."""
    source = checkpoint(head_dim=16)
    parts = [f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkv"]
    fused = "transformer.h.1.attn.qkv.weight"
    assert row(source, ConvertSettings("litgpt"), fused) | {"peak_bytes": None} == {
        "reads": parts,
        "operation": "concatenate",
        "writes": [fused],
        "bytes": 160 * 96 * 4,
        "peak_bytes": None,
    }
    litgpt = to("litgpt", source, tmp_path / "litgpt").out
    back = row(litgpt, ConvertSettings("hf"), parts[1])
    assert (back["reads"], back["operation"], back["writes"]) == ([fused], "split", [parts[1]])
    meta = row(litgpt, ConvertSettings("meta", tensor_parallel=2), "01/layers.1.attention.wq.weight")
    assert (meta["reads"], meta["operation"]) == ([fused], "split; rotary of 6 heads to pairs; divide rows by 2")
    assert meta["writes"] == ["00/layers.1.attention.wq.weight", "01/layers.1.attention.wq.weight"]
    assert meta["peak_bytes"] > 0


def test_a_dry_run_names_what_quantized_weights_are_stored_as(
    quantized_llama: Quantized, checkpoint: Checkpoint
) -> None:
    """Made dense, repacked, or copied one by one."""
    source, layer = quantized_llama(**WHOLE), "model.layers.0.mlp.up_proj"
    stored = [f"{layer}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx")]
    dense = row(source, ConvertSettings("litgpt", dequantize=True), "transformer.h.0.mlp.fc_2.weight")
    assert dense["reads"] == stored
    repacked = row(source, ConvertSettings("lit-llama", size="t"), "transformer.h.0.mlp.c_fc2.quant_weight")
    assert (repacked["reads"], repacked["operation"]) == (stored, "repack; as it is")
    assert row(source, ConvertSettings("hf"), stored[0])["reads"] == [stored[0]]
    eight = quantized_llama(mode="llm.int8")
    assert row(eight, ConvertSettings("hf"), f"{layer}.weight")["reads"] == [f"{layer}.weight"]
    assert row(eight, ConvertSettings("hf", dequantize=True), f"{layer}.weight")["reads"] == [
        f"{layer}.{part}" for part in ("weight", "SCB", "weight_format")
    ]


def test_a_dry_run_adds_up(checkpoint: Checkpoint) -> None:
    """Files, bytes, the most memory of any step, and the notes that a run would give."""
    planned = plan(checkpoint(**LLAMA_1), Path("nowhere"), ConvertSettings("lit-llama", size="7C"))
    told = planned.to_json()
    assert told["shards"] == [{"file": "7C/lit-llama.pth", "bytes": told["output_bytes"]}]
    assert told["output_bytes"] == sum(step["bytes"] for step in told["steps"])
    assert told["peak_bytes"] == max(step["peak_bytes"] for step in told["steps"])
    assert told["notes"] == [WARNING, NO_TOKENIZER]
    assert "flops" not in told
    assert json.loads(json.dumps(told)) == told
