from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llamaconv.errors import OutputExistsError, UnsupportedError, UsageError
from llamaconv.tasks.convert import ConvertSettings, convert
from llamaconv.tasks.evaluate import EvaluateSettings, evaluate
from llamaconv.tasks.inspect import inspect
from llamaconv.tasks.quantize import QuantizeSettings, plan, quantize
from llamaconv.tasks.quantize_lit_llama import between
from tests.conftest import Checkpoint

LLAMA_1 = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rope_theta": 10000.0,
    "vocab_size": 288,
}
SETTINGS = QuantizeSettings(
    "gptq.int4", group_size=-1, lm_head=True, layout="lit-llama", size="tiny", samples=8, seq_len=96, threads=1
)


def test_lit_llama_gets_the_codes_that_gptq_gets(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The file where its scripts look, weights that stand for the same as in GPTQ's own format, and nothing between."""
    source = checkpoint(**LLAMA_1)
    result = quantize(source, tmp_path / "lit", SETTINGS)
    assert result.out == tmp_path / "lit"
    assert dict(result.runtimes) == {
        "lit-llama": "a width of 64; it knows 4096, 5120, 6656, 8192; "
        "a vocabulary of 288, padded to 320 rows; it builds 32000"
    }
    stored = torch.load(tmp_path / "lit" / "tiny" / "llama-gptq.4bit.pth")
    assert stored["transformer.h.0.attn.c_attn.quant_weight"].shape == (3 * 64, 64 // 2)
    assert stored["lm_head.scales"].shape == (320, 1)
    assert not between(tmp_path / "lit").exists()
    quantize(source, tmp_path / "gptq", replace(SETTINGS, layout="hf", size=None))
    back = ConvertSettings("hf", heads=2, vocab_size=288, verify=True)
    convert(tmp_path / "lit", tmp_path / "back", back)
    figures = evaluate(tmp_path / "back", EvaluateSettings(against=tmp_path / "gptq", samples=2, seq_len=64, threads=1))
    assert (figures.kl, figures.top1) == (pytest.approx(0, abs=1e-12), 1)


def test_the_manifest_tells_of_both_halves(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """How the codes came to be, inside how they were packed."""
    quantize(checkpoint(**LLAMA_1), tmp_path / "lit", SETTINGS)
    manifest = json.loads((tmp_path / "lit" / "llamaconv.json").read_text())
    assert (manifest["task"], manifest["layout"]) == ("convert", "lit-llama")
    assert manifest["source_manifest"]["task"] == "quantize"
    assert len(manifest["source_manifest"]["layers"]) == 3 * 7 + 1
    assert inspect(tmp_path / "lit").layout == "lit-llama"


def test_what_its_loader_does_not_take_is_refused_before_the_work(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Settings all at once; a model that it cannot hold; a width that its scripts do not know; a taken destination."""
    source = checkpoint(**LLAMA_1)
    wrong = QuantizeSettings("gptq.int3", layout="lit-llama", skip=("*.o_proj",))
    with pytest.raises(UsageError) as caught:
        quantize(source, tmp_path / "out", wrong)
    assert str(caught.value) == (
        "--layout lit-llama needs --mode gptq.int4 or gptq.int8, --group-size -1, --lm-head, no --skip."
    )
    with pytest.raises(UsageError):
        plan(source, tmp_path / "out", wrong)
    with pytest.raises(UnsupportedError, match="2 key-value heads for 6 heads"):
        quantize(checkpoint(), tmp_path / "out", SETTINGS)
    with pytest.raises(UnsupportedError, match="a width of 64; it knows 4096, 5120, 6656, 8192"):
        quantize(source, tmp_path / "out", replace(SETTINGS, size=None))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    with pytest.raises(OutputExistsError):
        quantize(source, tmp_path / "taken", SETTINGS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]


def test_what_lies_in_the_way_of_the_work_is_kept(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A checkpoint of ours, from a run that was killed or the user's own: it is not replaced, --overwrite or not."""
    source, out = checkpoint(**LLAMA_1), tmp_path / "lit"
    quantize(source, between(out), replace(SETTINGS, layout="hf", size=None))
    with pytest.raises(OutputExistsError, match=r"lit\.gptq is in the way"):
        quantize(source, out, replace(SETTINGS, overwrite=True))
    assert inspect(between(out)).faults == ()
    assert not out.exists()
