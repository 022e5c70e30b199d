from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import llamaconv
from llamaconv.calibration import load_calibration
from llamaconv.tasks.quantize import quantize
from tests.conftest import Checkpoint
from tests.models import write_model, write_tokenizer
from tests.tasks.runs import LAYERS, digests, run, settings_for, write_tokens


def manifest(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "llamaconv.json").read_text()))


@pytest.mark.parametrize("size", ["5GB", "200kB"])
@pytest.mark.parametrize("mode", ["gptq.int4", "llm.int8"])
def test_every_file_is_vouched_for(tmp_path: Path, mode: str, size: str) -> None:
    """sha256 of each source file that had a say and of each output file but the manifest itself."""
    source = write_tokenizer(write_model(tmp_path / "model", max_shard_size=size))
    (source / "README.md").write_text("no say in it")
    out = run(source, tmp_path / "out", mode, max_shard_size=100_000).out
    before, after = digests(source), digests(out)
    del before["README.md"], after["llamaconv.json"]
    assert manifest(out)["source"] == before
    assert manifest(out)["outputs"] == after
    assert len([name for name in before if name.endswith(".safetensors")]) == (1 if size == "5GB" else 8)


def test_the_whole_manifest_of_a_calibrated_run(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Versions, settings as they were understood, calibration, and what came of each layer."""
    tokens = write_tokens(tmp_path / "some tokens.npy", 2, 32)
    result = run(checkpoint(), tmp_path / "out", calibration=tokens, skip=("*.o_proj",), damping=0.02)
    found = manifest(result.out)
    assert list(found) == [
        "tool",
        "version",
        "libraries",
        "task",
        "settings",
        "source",
        "downloaded_from",
        "calibration",
        "share_quantized",
        "layers",
        "notes",
        "outputs",
    ]
    assert (found["tool"], found["version"], found["task"]) == ("llamaconv", llamaconv.__version__, "quantize")
    names = ("numba", "numpy", "safetensors", "torch", "transformers")
    assert found["libraries"] == {name: version(name) for name in names}
    assert found["settings"] == {
        "mode": "gptq.int4",
        "group_size": 32,
        "symmetric": True,
        "act_order": False,
        "damping": 0.02,
        "scales": "search",
        "sweeps": 3,
        "lm_head": False,
        "skip": ["*.o_proj"],
        "samples": 128,
        "seq_len": 32,
        "seed": 0,
        "dtype": "keep",
        "compute_dtype": "float32",
        "max_shard_size": 5_000_000_000,
        "fallback": None,
    }
    data = load_calibration(
        str(tokens), directory=tmp_path, vocab_size=288, max_positions=512, samples=128, seq_len=None, seed=0
    )
    assert found["calibration"] == {"name": tokens.name, "sha256": data.sha256, "sequences": 2, "tokens": 64}
    assert found["share_quantized"] == result.share_quantized
    kept = [layer for layer in LAYERS if "o_proj" not in layer]
    assert [layer["name"] for layer in found["layers"]] == [
        f"model.layers.{b}.{name}" for b in range(3) for name in kept
    ]
    for stored, layer in zip(found["layers"], result.layers, strict=True):
        assert 0 < stored.pop("error") == layer.error < 0.1
        assert stored == {
            "name": layer.name,
            "mode": "gptq.int4",
            "bits": 4,
            "group_size": 32,
            "damping": 0.02,
            "damping_raises": 0,
            "fallback": None,
        }
    assert found["notes"] == list(result.notes)
    assert len(found["notes"]) == 2


def test_the_manifest_of_a_run_without_calibration(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Settings that had no say are left out."""
    found = manifest(run(checkpoint(), tmp_path / "out", "llm.int8", damping=0.3, seed=9).out)
    assert found["settings"] == {
        "mode": "llm.int8",
        "lm_head": False,
        "skip": [],
        "dtype": "keep",
        "max_shard_size": 5_000_000_000,
    }
    assert found["calibration"] is None
    assert found["notes"] == []
    assert "bitsandbytes" in found["libraries"]
    assert "numba" not in found["libraries"]
    assert found["layers"][0] | {"error": 0} == {
        "name": "model.layers.0.self_attn.q_proj",
        "mode": "llm.int8",
        "bits": 8,
        "group_size": -1,
        "error": 0,
        "damping": None,
        "damping_raises": 0,
        "fallback": None,
    }


@pytest.mark.parametrize("mode", ["gptq.int4", "llm.int8"])
def test_no_paths_and_no_times(checkpoint: Checkpoint, tmp_path: Path, mode: str) -> None:
    """In no JSON file that is written."""
    out = run(checkpoint(), tmp_path / "out", mode).out
    for path in out.glob("*.json"):
        text = path.read_text()
        assert not re.search(r"/tmp|/home|/root|seconds|20\d\d-\d\d", text), path.name
        assert str(tmp_path.name) not in text


@pytest.mark.parametrize("kind", ["npy", "safetensors", "txt", "jsonl", "messages", "builtin"])
def test_every_kind_of_calibration_is_named_and_hashed(checkpoint: Checkpoint, tmp_path: Path, kind: str) -> None:
    """By its file's name and by exactly the sequences it came to."""
    path = _calibration(tmp_path, kind)
    settings = settings_for("gptq.int4", path, samples=3, seq_len=24)
    out = quantize(checkpoint(), tmp_path / "out", settings).out
    data = load_calibration(
        settings.calibration,
        directory=checkpoint(),
        vocab_size=288,
        max_positions=512,
        samples=3,
        seq_len=24,
        seed=0,
    )
    assert manifest(out)["calibration"] == {
        "name": "builtin:calibration" if path is None else path.name,
        "sha256": data.sha256,
        "sequences": 3,
        "tokens": 72,
    }


def _calibration(folder: Path, kind: str) -> Path | None:
    if kind == "builtin":
        return None
    if kind in ("npy", "safetensors"):
        tokens = write_tokens(folder / "tokens.npy", 4, 24)
        if kind == "npy":
            return tokens
        import numpy as np
        from safetensors.numpy import save_file

        save_file({"ids": np.load(tokens)}, folder / "tokens.safetensors")
        return folder / "tokens.safetensors"
    path = folder / f"{kind}.{'txt' if kind == 'txt' else 'jsonl'}"
    texts = [f"The {n}th sentence is about nothing in particular, and ends here." for n in range(4)]
    if kind == "txt":
        path.write_text("\n".join(texts))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    else:
        path.write_text("".join(json.dumps({"messages": [{"role": "user", "content": t}]}) + "\n" for t in texts))
    return path
