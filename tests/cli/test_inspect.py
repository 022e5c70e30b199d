from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamaconv.cli import main
from llamaconv.cli.inspect import command
from tests.cli.models import MODEL


def test_a_checkpoint_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    """Family, shape, parameters, bytes, dtypes, quantization, head, and whether config.json agrees."""
    assert main(["inspect", str(MODEL)]) == 0
    streams = capsys.readouterr()
    assert streams.err == ""
    assert streams.out.splitlines() == [
        f"path          {MODEL}",
        "layout        hf",
        "family        llama, LlamaForCausalLM",
        "shape         4 layers, width 256, MLP 640, 8 heads of 32 (2 for keys and values), vocabulary 1024",
        "parameters    2.89 M",
        "tensors       5.77 MB in 1 shard",
        "dtypes        bfloat16 5.77 MB",
        "quantization  none",
        "output head   tied to the embedding",
        "config.json   agrees with every tensor",
    ]


def test_tensors_are_listed_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    """--tensors adds every name with dtype, shape and size; without it the JSON has none."""
    assert main(["inspect", str(MODEL), "--tensors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[11].split() == ["tensor", "dtype", "shape", "size"]
    assert lines[13].split() == ["model.embed_tokens.weight", "bfloat16", "[1024,", "256]", "524", "kB"]
    assert len(lines) == 13 + 38
    assert main(["inspect", str(MODEL), "--json"]) == 0
    assert "tensors" not in json.loads(capsys.readouterr().out)
    assert main(["inspect", str(MODEL), "--json", "--tensors"]) == 0
    assert len(json.loads(capsys.readouterr().out)["tensors"]) == 38


def test_faults_are_part_of_the_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A config.json that disagrees is described, fault by fault; a lone file needs none."""
    (tmp_path / "model.safetensors").symlink_to(MODEL / "model.safetensors")
    config = json.loads((MODEL / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 672}))
    assert main(["inspect", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "config.json   disagrees with the tensors:" in lines
    assert len([line for line in lines if "672" in line]) == 1 + 4 * 3
    (tmp_path / "config.json").unlink()
    assert main(["inspect", str(tmp_path / "model.safetensors")]) == 0
    assert "config.json   not compared" in capsys.readouterr().out.splitlines()


def test_no_checkpoint_exits_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A path that is not there is an input that cannot be used, not a slip of the command line."""
    assert main(["inspect", str(tmp_path / "none")]) == 3
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith(f"Error: {tmp_path / 'none'}")


def test_a_path_is_taken_as_it_is() -> None:
    """Whether it exists is for the task to say."""
    with command.make_context("inspect", ["no/such/thing", "--tensors"]) as context:
        assert context.params["path"] == Path("no/such/thing")
        assert context.params["tensors"] is True
