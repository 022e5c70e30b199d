from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from llamaconv.cli import main
from llamaconv.cli.evaluate import command
from llamaconv.tasks.evaluate import EvaluateSettings
from tests.cli.models import MODEL, write_tokens


def parsed(*arguments: str) -> EvaluateSettings:
    with command.make_context("evaluate", ["MODEL", *arguments]) as context:
        names = [field.name for field in fields(EvaluateSettings)]
        return EvaluateSettings(**{name: context.params[name] for name in names})


def test_the_defaults_are_the_librarys() -> None:
    """Whoever types nothing gets what whoever writes Python gets; there is an option for every setting."""
    assert parsed() == EvaluateSettings()


def test_every_option_reaches_its_setting() -> None:
    """Each is parsed to the type that the task takes."""
    arguments = (
        "--against a/b --text t.txt --samples 3 --seq-len 64 --device cpu --compute-dtype bfloat16 --threads 2 "
        "--max-kl 0.01 --max-ppl-ratio 1.05"
    )
    assert parsed(*arguments.split()) == EvaluateSettings(Path("a/b"), "t.txt", 3, 64, "cpu", "bfloat16", 2, 0.01, 1.05)


def test_figures_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against itself a model agrees everywhere; without a reference there is perplexity alone."""
    tokens = str(write_tokens(tmp_path / "tokens.npy"))
    assert main(["evaluate", str(MODEL), "--text", tokens, "-q", "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert (alone["tokens"], alone["kl"]) == (240, None)
    assert main(["evaluate", str(MODEL), "--text", tokens, "--against", str(MODEL), "-q"]) == 0
    streams = capsys.readouterr()
    assert streams.err == ""
    rows = dict(line.split(maxsplit=1) for line in streams.out.splitlines() if not line.startswith(("mean", "top")))
    assert rows["perplexity"] == rows["reference"] == f"{alone['perplexity']:#.6g}".rstrip(".")
    assert rows["ratio"] == "1.00000"
    assert "top-1 agreement  100 %" in streams.out.splitlines()


@pytest.mark.parametrize("mode", [[], ["--json"]])
def test_a_missed_gate_exits_8_with_the_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: list[str]
) -> None:
    """People get the table and the error, machines one object with both."""
    tokens = str(write_tokens(tmp_path / "tokens.npy"))
    gate = ["--text", tokens, "--against", str(MODEL), "--max-ppl-ratio", "0.5", "-q", *mode]
    assert main(["evaluate", str(MODEL), *gate]) == 8
    streams = capsys.readouterr()
    assert streams.err.splitlines()[0] == "Error: perplexity ratio 1 is above the limit of 0.5"
    if mode:
        error = json.loads(streams.out)["error"]
        assert (error["type"], error["evaluation"]["top1"]) == ("GateError", 1.0)
    else:
        assert "  ratio          1.00000" in streams.out.splitlines()


def test_a_gate_without_a_reference_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    """It could never be missed."""
    assert main(["evaluate", str(MODEL), "--max-kl", "1"]) == 2
    assert capsys.readouterr().err.startswith("Error: ")
