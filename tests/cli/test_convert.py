from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import fields
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from llamaconv.cli import main
from llamaconv.cli.convert import command
from llamaconv.layouts.known import LAYOUTS
from llamaconv.tasks.convert import ConvertSettings
from tests.cli.models import MODEL
from tests.cli.processes import command_line, environment


def parsed(*arguments: str) -> dict[str, object]:
    """The settings that the task gets, by name."""
    with command.make_context("convert", ["SRC", "DST", *arguments]) as context:
        names = {field.name for field in fields(ConvertSettings)}
        return {name: value for name, value in context.params.items() if name in names}


def choices(name: str) -> tuple[str, ...]:
    """What an option offers."""
    [option] = [option for option in command.params if option.name == name]
    assert isinstance(option.type, click.Choice)
    return tuple(option.type.choices)


def test_the_defaults_are_the_librarys() -> None:
    """Whoever types nothing gets what whoever writes Python gets; there is an option for every setting."""
    assert ConvertSettings(**parsed("--to", "hf")) == ConvertSettings("hf")  # type: ignore[arg-type]
    assert set(parsed("--to", "hf")) == {field.name for field in fields(ConvertSettings)}


def test_the_layouts_are_the_librarys() -> None:
    """--from offers all, --to all that are still written."""
    assert set(choices("layout")) == set(LAYOUTS)
    assert set(choices("to")) == set(LAYOUTS) - {"litgpt-legacy"}


def test_every_option_reaches_its_setting() -> None:
    """Each is parsed to the type that the task takes."""
    arguments = (
        "--to meta --from lit-llama --format torch --dtype bfloat16 --allow-overflow --dequantize --tensor-parallel 8 "
        "--embedding-split rows --size 13B --max-shard-size 1MiB --rope-theta 1e6 --rope-factor 8 --max-positions 99 "
        "--norm-eps 1e-6 --vocab-size 290 --heads 6 --verify --workers 3 --overwrite"
    )
    assert parsed(*arguments.split()) == {
        "to": "meta",
        "layout": "lit-llama",
        "format": "torch",
        "dtype": "bfloat16",
        "allow_overflow": True,
        "dequantize": True,
        "tensor_parallel": 8,
        "embedding_split": "rows",
        "size": "13B",
        "max_shard_size": 2**20,
        "rope_theta": 1e6,
        "rope_factor": 8.0,
        "max_positions": 99,
        "norm_eps": 1e-6,
        "vocab_size": 290,
        "heads": 6,
        "verify": True,
        "workers": 3,
        "overwrite": True,
    }


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "--to gguf",
        "--to litgpt-legacy",
        "--to hf --from gguf",
        "--to hf --format pickle",
        "--to hf --dtype int8",
        "--to meta --tensor-parallel 0",
        "--to meta --embedding-split both",
        "--to hf --max-shard-size 5ZB",
        "--to hf --rope-theta nan",
        "--to hf --rope-factor 0",
        "--to hf --norm-eps -1",
        "--to hf --heads 0",
        "--to hf --vocab-size 1.5",
        "--to hf --workers 0",
        "--to hf extra",
        "--to hf --size=",
    ],
)
def test_what_cannot_be_parsed_exits_2(arguments: str) -> None:
    """click refuses it before anything is loaded."""
    assert CliRunner().invoke(command, ["SRC", "DST", *arguments.split()]).exit_code == 2


def test_converting_prints_one_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints it as one object on stdout; the checkpoint is there."""
    out = tmp_path / "out"
    assert main(["convert", str(MODEL), str(out), "--to", "litgpt", "--json"]) == 0
    streams = capsys.readouterr()
    result = json.loads(streams.out)
    assert (result["out"], result["layout"], result["source_layout"]) == (str(out), "litgpt", "hf")
    assert result["files"] == ["lit_model.pth"]
    assert (out / "llamaconv.json").exists()
    assert os.listdir(tmp_path) == ["out"]


def test_the_result_for_people_is_compact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was written where, from what into what, what was checked, and what it took."""
    out = tmp_path / "out"
    assert main(["convert", str(MODEL), str(out), "--to", "meta", "--tensor-parallel", "2", "--verify", "-q"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith(f"wrote {out}, ")
    assert lines[0].endswith(" in 2 files")
    assert lines[1:3] == [
        "layout meta, from hf",
        "verified every tensor; logits differ by at most 0.000 of their size",
    ]
    assert lines[3].startswith("took ")
    assert len(lines) == 4


def test_what_was_lost_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each tensor: an error, or, where it is accepted, in the result."""
    source = shutil.copytree(MODEL, tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    norm = tensors["model.norm.weight"] = torch.full((256,), 1e6, dtype=torch.float32)
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    line = f"model.norm.weight: of {norm.numel()} values 256 overflow in float16"
    arguments = ["convert", str(source), str(tmp_path / "out"), "--to", "hf", "--dtype", "float16", "-q"]
    assert main(arguments) == 8
    err = capsys.readouterr().err.splitlines()
    assert err[0] == f"Error: {line}"
    assert main([*arguments, "--allow-overflow"]) == 0
    assert f"lost {line}" in [" ".join(shown.split()) for shown in capsys.readouterr().out.splitlines()]


def test_a_dry_run_prints_the_table_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Source names, operation, target names, shapes and bytes; then files, memory and notes; or all as one object."""
    arguments = ["convert", str(MODEL), str(tmp_path / "out"), "--to", "meta", "--dry-run"]
    assert main(arguments) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["from", "operation", "to", "size"]
    [query] = [" ".join(line) for line in lines if "model.layers.3.self_attn.q_proj.weight" in line]
    assert query.startswith("model.layers.3.self_attn.q_proj.weight [256, 256] rotary of ")
    assert " heads to pairs layers.3.attention.wq.weight [256, 256] " in query
    assert [line[0] for line in lines[-3:]] == ["writes", "needs", "note"]
    assert " ".join(lines[-1][1:]) == "the source has no tokenizer.model, which meta's tools take their tokens from"
    assert main([*arguments, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert set(planned) == {"steps", "shards", "output_bytes", "peak_bytes", "notes"}
    assert set(planned["steps"][0]) == {"reads", "operation", "writes", "bytes", "peak_bytes"}
    assert set(planned["steps"][0]["reads"][0]) == {"name", "shape", "dtype", "bytes"}
    assert os.listdir(tmp_path) == []


def test_bad_places_have_their_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No SRC is 3, DST inside SRC is 2, DST not empty is 7, a model that the layout cannot hold is 3."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for source, out, more, code in [
        (tmp_path / "none", tmp_path / "out", ["--to", "hf"], 3),
        (MODEL, MODEL / "out", ["--to", "hf"], 2),
        (MODEL, tmp_path / "full", ["--to", "hf"], 7),
        (MODEL, tmp_path / "out", ["--to", "lit-llama"], 3),
        (MODEL, tmp_path / "out", ["--to", "meta", "--tensor-parallel", "3"], 3),
        (MODEL, tmp_path / "out", ["--to", "hf", "--from", "meta"], 3),
        (MODEL, tmp_path / "out", ["--to", "hf", "--heads", "4"], 2),
        (MODEL, tmp_path / "out", ["--to", "hf", "--tensor-parallel", "2"], 2),
    ]:
        assert main(["convert", str(source), str(out), "-q", *more]) == code
        streams = capsys.readouterr()
        assert streams.out == ""
        assert streams.err.splitlines()[-1].startswith(("Error: ", "Hint: "))
        assert "Traceback" not in streams.err
    assert os.listdir(tmp_path) == ["full"]
    assert not (MODEL / "out").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_in_mid_run_publishes_nothing(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """DST is absent, and the last line says what remains."""
    out = tmp_path / "out"
    written = tmp_path / "out.partial" / "lit_model.pth"  # then transformers is imported, which takes a while
    with subprocess.Popen(
        command_line("convert", MODEL, out, "--to", "litgpt", "--verify"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        while not written.exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        printed, err = process.communicate(timeout=60)
    assert (process.returncode, printed) == (code, "")
    assert err.splitlines()[-1].startswith(f"Interrupted; {out} is as it was before.")
    assert "Traceback" not in err
    assert os.listdir(tmp_path) == ["out.partial"]
    assert "out.partial" in err
