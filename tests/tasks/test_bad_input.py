"""What cannot be quantized is refused before anything exists at the destination."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamaconv.errors import (
    CalibrationError,
    OutputError,
    OutputExistsError,
    UnsupportedError,
    UsageError,
)
from llamaconv.tasks.quantize import plan, quantize
from tests.conftest import Checkpoint
from tests.models import patch_config, write_model, write_tokenizer
from tests.tasks.runs import run, settings_for, write_tokens
from tests.tasks.spoiled import CASES, Bad


@pytest.fixture
def source(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A checkpoint to spoil, of one file."""
    return shutil.copytree(checkpoint(), tmp_path / "model")


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return write_tokens(tmp_path / "tokens.npy")


@pytest.mark.parametrize("bad", CASES.values(), ids=CASES)
@pytest.mark.parametrize("action", [quantize, plan], ids=["quantize", "plan"])
def test_bad_input_is_refused_before_any_output_exists(
    source: Path, tokens: Path, bad: Bad, action: Callable[..., object]
) -> None:
    """With all that is wrong in one error, at once, and not a trace at the destination; a dry run says the same."""
    given = bad.spoil(source) or source
    settings: dict[str, Any] = {"mode": "gptq.int4", "calibration": tokens} | bad.settings
    if isinstance(settings["calibration"], str):
        settings["calibration"] = settings["calibration"].format(source=source)
    home = source.parent / "home"
    home.mkdir()
    begun = time.perf_counter()
    with pytest.raises(bad.kind) as caught:
        action(given, home / "out", settings_for(**settings))
    assert type(caught.value) is bad.kind
    assert time.perf_counter() - begun < 20
    text = str(caught.value)
    places = [text.find(line.format(source=source) if "{source}" in line else line) for line in bad.lines]
    assert -1 not in places, text
    assert places == sorted(places)
    assert caught.value.exit_code == {UsageError: 2, OutputError: 7}.get(bad.kind, 3)
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("mode", ["gptq.int4", "llm.int8"])
def test_what_is_quantized_already_is_refused(checkpoint: Checkpoint, tmp_path: Path, mode: str) -> None:
    """Whichever way, and whichever way is asked for."""
    once = run(checkpoint(), tmp_path / "once", mode).out
    for again in ("gptq.int8", "llm.int8"):
        with pytest.raises(UnsupportedError) as caught:
            run(once, tmp_path / "twice", again)
        assert str(caught.value) == f"{once}: already quantized ({mode})"
        assert caught.value.exit_code == 3
    assert not (tmp_path / "twice").exists()


def test_another_tool_s_quantization_is_refused(source: Path, tmp_path: Path) -> None:
    """By its name in config.json."""
    with pytest.raises(UnsupportedError) as caught:
        run(patch_config(source, quantization_config={"quant_method": "awq", "bits": 4}), tmp_path / "out")
    assert str(caught.value) == f"{source}: already quantized (awq)"


def test_widths_that_are_no_multiples_of_32_are_all_listed(tmp_path: Path) -> None:
    """Inputs and outputs, of every layer of every block."""
    shape = {"hidden_size": 72, "head_dim": 20, "intermediate_size": 100, "num_hidden_layers": 2}
    source = write_tokenizer(write_model(tmp_path / "model", **shape))
    with pytest.raises(UnsupportedError) as caught:
        run(source, tmp_path / "out", group_size=-1)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2 * 14
    assert lines[0] == "model.layers.0.self_attn.q_proj.weight [120, 72]: 120 outputs are not a multiple of 32"
    assert lines[-1] == "model.layers.1.mlp.down_proj.weight [72, 100]: 100 inputs are not a multiple of 32"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("out", "relation"),
    [
        ("model", "are the same"),
        ("model/out", "the output is inside the source"),
        ("link/out", "the output is inside the source"),
        (".", "the source is inside the output"),
    ],
)
def test_source_and_output_must_lie_apart(source: Path, tokens: Path, out: str, relation: str) -> None:
    """By whatever name; it is a usage error, also where --overwrite would allow it."""
    (source.parent / "link").symlink_to(source)
    before = sorted(source.parent.rglob("*"))
    for action in (quantize, plan):
        with pytest.raises(UsageError) as caught:
            action(source, source.parent / out, settings_for("gptq.int4", tokens, overwrite=True))
        assert relation in str(caught.value)
        assert caught.value.exit_code == 2
    assert sorted(source.parent.rglob("*")) == before


@pytest.mark.parametrize("kind", ["full", "file"])
def test_an_output_that_is_there_is_not_touched(source: Path, tmp_path: Path, kind: str) -> None:
    """Neither a folder that holds something, nor a file."""
    out = tmp_path / "out"
    mine = out / "mine" if kind == "full" else out
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(OutputExistsError) as caught:
        run(source, out)
    assert caught.value.exit_code == 7
    assert mine.read_text() == "mine"
    assert not (tmp_path / "out.partial").exists()


def test_an_output_that_cannot_be_written_is_an_error(source: Path, tmp_path: Path) -> None:
    """What it should lie in is a file."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError) as caught:
        run(source, tmp_path / "file" / "out", calibration=write_tokens(tmp_path / "tokens.npy"))
    assert str(tmp_path / "file") in str(caught.value)
    assert caught.value.exit_code == 7
    assert (tmp_path / "file").read_text() == "mine"


def test_tokens_beyond_the_vocabulary_are_refused(source: Path, tmp_path: Path) -> None:
    """With the first one's place."""
    rows = np.arange(24).reshape(2, 12)
    rows[1, 5], rows[1, 7] = 288, -1
    np.save(tmp_path / "bad.npy", rows)
    with pytest.raises(CalibrationError) as caught:
        run(source, tmp_path / "out", calibration=tmp_path / "bad.npy")
    assert str(caught.value) == (
        f"{tmp_path / 'bad.npy'}: row 1, column 5: 288 is not a token of the model, whose vocabulary is 0 to 287 "
        "(1 more like it)."
    )
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out").exists()
