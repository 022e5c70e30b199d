from __future__ import annotations

from pathlib import Path

import pytest

import llamaconv
from llamaconv.cli import main
from llamaconv.cli.demo import command


def test_the_artifacts_may_have_a_place() -> None:
    """--out names it; without it the demo makes one."""
    with command.make_context("demo", ["--out", "there"]) as context:
        assert context.params["out"] == Path("there")
    with command.make_context("demo", []) as context:
        assert context.params["out"] is None


def test_the_demo_ends_with_a_table_and_the_artifacts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the download survived, one row for the dense model and one for each mode, then where the checkpoints are."""
    assert main(["demo", "--out", str(tmp_path), "-q"]) == 0
    told = capsys.readouterr()
    assert "model.safetensors: 127.0.0.1:" in told.err
    assert "reset the connection; trying again in " in told.err
    lines = told.out.splitlines()
    assert lines[0].startswith("llamaconv/demo-3m at ")
    assert lines[0].endswith(": 5 files, 5.83 MB downloaded, 1 dropped connection survived")
    assert lines[1].startswith("llama: 2.89 M parameters, 4 layers; judged on ")
    assert lines[3].split("  ")[0] == ""
    assert [line.split()[0] for line in lines[5:8]] == ["dense", "gptq.int4", "llm.int8"]
    places = [str(tmp_path / name) for name in ("dense", "gptq.int4", "llm.int8")]
    assert lines[-3:] == [f"wrote  {places[0]}", *(f"       {place}" for place in places[1:])]
    assert (tmp_path / "gptq.int4" / "model.safetensors").exists()
    bundled = Path(llamaconv.__file__).parent / "demo" / "model"
    assert {path.name: path.read_bytes() for path in bundled.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "dense").iterdir() if path.is_file()
    }
