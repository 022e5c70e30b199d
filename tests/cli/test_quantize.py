from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import fields
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from llamaconv.cli import main
from llamaconv.cli.quantize import command
from llamaconv.quantizers.names import MODES
from llamaconv.tasks.quantize import QuantizeSettings
from tests.cli.models import MODEL, write_tokens
from tests.cli.processes import command_line, environment

LAYERS = 4 * 7


def parsed(*arguments: str) -> dict[str, object]:
    """The settings that the task gets, by name."""
    with command.make_context("quantize", ["SRC", "DST", *arguments]) as context:
        names = {field.name for field in fields(QuantizeSettings)}
        return {name: value for name, value in context.params.items() if name in names}


def test_the_defaults_are_the_librarys() -> None:
    """Whoever types nothing gets what whoever writes Python gets; there is an option for every setting."""
    assert QuantizeSettings(**parsed("--mode", "gptq.int4")) == QuantizeSettings("gptq.int4")  # type: ignore[arg-type]
    assert set(parsed("--mode", "gptq.int4")) == {field.name for field in fields(QuantizeSettings)}


def test_the_modes_are_the_librarys() -> None:
    """--mode offers what there is a quantizer for."""
    [mode] = [option for option in command.params if option.name == "mode"]
    assert isinstance(mode.type, click.Choice)
    assert tuple(mode.type.choices) == MODES


def test_every_option_reaches_its_setting() -> None:
    """Each is parsed to the type that the task takes."""
    arguments = (
        "--mode gptq.int3 --group-size -1 --asym --act-order --damp 0.05 --scales minmax --sweeps 0 --lm-head "
        "--skip *.q --skip *.k --calibration c.txt --samples 3 --seq-len 64 --seed 9 --device cuda:1 "
        "--dtype float16 --compute-dtype float32 --threads 2 --max-shard-size 1MiB --fallback rtn "
        "--layout lit-llama --size 7B --overwrite"
    )
    assert parsed(*arguments.split()) == {
        "mode": "gptq.int3",
        "group_size": -1,
        "symmetric": False,
        "act_order": True,
        "damping": 0.05,
        "scales": "minmax",
        "sweeps": 0,
        "lm_head": True,
        "skip": ("*.q", "*.k"),
        "calibration": "c.txt",
        "samples": 3,
        "seq_len": 64,
        "seed": 9,
        "device": "cuda:1",
        "dtype": "float16",
        "compute_dtype": "float32",
        "threads": 2,
        "max_shard_size": 2**20,
        "fallback": "rtn",
        "layout": "lit-llama",
        "size": "7B",
        "overwrite": True,
    }


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "--mode gptq.int5",
        "--mode gptq.int4 --group-size 0",
        "--mode gptq.int4 --damp nan",
        "--mode gptq.int4 --damp -1",
        "--mode gptq.int4 --samples 0",
        "--mode gptq.int4 --sweeps -1",
        "--mode gptq.int4 --seq-len 1",
        "--mode gptq.int4 --seed -1",
        "--mode gptq.int4 --threads 0",
        "--mode gptq.int4 --max-shard-size 5ZB",
        "--mode gptq.int4 --fallback fp4",
        "--mode gptq.int4 --dtype int8",
        "--mode gptq.int4 --device meta",
        "--mode gptq.int4 --scales best",
        "--mode gptq.int4 extra",
    ],
)
def test_what_cannot_be_parsed_exits_2(arguments: str) -> None:
    """click refuses it before anything is loaded."""
    assert CliRunner().invoke(command, ["SRC", "DST", *arguments.split()]).exit_code == 2


def test_options_without_effect_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """LLM.int8 takes no calibration and has no groups; whoever asks for them is told."""
    arguments = ["SRC", "DST", "--mode", "llm.int8", "--asym", "--samples", "128", "--skip", "*.q_proj"]
    assert main(["quantize", *arguments]) == 2
    assert capsys.readouterr().err.splitlines()[1] == (
        "Error: Without effect with --mode llm.int8: --sym/--asym, --samples."
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dry-run", "--report", "r.json"], "Error: --report has nothing to report of a --dry-run."),
        (
            ["--report", "DST/r.json"],
            "Error: --report lies inside DST, which holds the checkpoint and nothing else.",
        ),
    ],
)
def test_reports_with_no_place_are_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """A dry run has no figures, and the output directory is not ours to litter."""
    assert main(["quantize", "SRC", "DST", "--mode", "gptq.int4", *arguments]) == 2
    assert message in capsys.readouterr().err.splitlines()


def test_quantizing_prints_and_reports_one_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints the result on stdout, --report writes the same to a file; the checkpoint is there."""
    report = tmp_path / "report.json"
    code = main(
        ["quantize", str(MODEL), str(tmp_path / "out"), "--mode", "llm.int8", "--json", "--report", str(report)]
    )
    assert code == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads(report.read_text())
    assert (result["mode"], result["share_quantized"], len(result["layers"])) == ("llm.int8", 1.0, LAYERS)
    assert sorted(os.listdir(tmp_path)) == ["out", "report.json"]
    assert (tmp_path / "out" / "llamaconv.json").exists()


def test_the_result_for_people_is_compact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each kind of layer, then what was written, how much of it is quantized, what loads it."""
    tokens = write_tokens(tmp_path / "tokens.npy")
    out = tmp_path / "out"
    code = main(["quantize", str(MODEL), str(out), "--mode", "gptq.int4", "--calibration", str(tokens), "-q"])
    streams = capsys.readouterr()
    assert code == 0
    assert all(line.startswith("Note: ") for line in streams.err.splitlines())
    lines = streams.out.splitlines()
    assert [line.split()[:2] for line in lines[2:9]] == [
        [f"{name}_proj", "4"] for name in ("q", "k", "v", "o", "gate", "up", "down")
    ]
    said = [" ".join(line.split()) for line in lines[10:]]
    assert said[0].startswith(f"wrote {out}, ")
    assert "quantized 100 % of the blocks' weights" in said
    assert "loads in gptqmodel, transformers, vllm" in said
    assert "not in auto-gptq it loses an embedding that is tied to the head" in said


def test_bad_places_have_their_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No SRC is 3, DST inside SRC is 2, DST not empty is 7, a report that cannot be written is 7."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for source, out, more, code in [
        (tmp_path / "none", tmp_path / "out", [], 3),
        (MODEL, MODEL / "out", [], 2),
        (MODEL, tmp_path / "full", [], 7),
        (MODEL, tmp_path / "out", ["--report", str(tmp_path / "none" / "r.json")], 7),
    ]:
        assert main(["quantize", str(source), str(out), "--mode", "llm.int8", "-q", *more]) == code
        streams = capsys.readouterr()
        assert streams.out == ""
        assert streams.err.splitlines()[-1].startswith(("Error: ", "Hint: "))
        assert "Traceback" not in streams.err
    assert os.listdir(tmp_path) == ["full"]
    assert not (MODEL / "out").exists()


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It prints the plan, for people or as one object."""
    arguments = ["quantize", str(MODEL), str(tmp_path / "out"), "--mode", "llm.int8", "--dry-run"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("writes ")
    assert main([*arguments, "--json"]) == 0
    assert {"steps", "output_bytes", "peak_bytes", "flops"} <= set(json.loads(capsys.readouterr().out))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_in_mid_run_publishes_nothing(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """DST is absent, the report too, and the last line says what remains."""
    out, tokens = tmp_path / "out", write_tokens(tmp_path / "tokens.npy", 64, 512)
    arguments = ["--mode", "gptq.int4", "--calibration", str(tokens), "--report", str(tmp_path / "report.json")]
    with subprocess.Popen(
        command_line("quantize", MODEL, out, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("quantizing: "):
                break
        process.send_signal(number)
        printed, err = process.communicate(timeout=60)
    assert (process.returncode, printed) == (code, "")
    assert err.splitlines()[-1].startswith(f"Interrupted; {out} is as it was before.")
    assert "Traceback" not in err
    assert set(os.listdir(tmp_path)) <= {"tokens.npy", "out.partial"}
    assert err.count("out.partial") == (tmp_path / "out.partial").exists()
