"""What cannot be converted is refused before anything exists at the destination."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llamaconv.errors import CheckpointError, OutputError, OutputExistsError, UsageError
from llamaconv.tasks.convert import ConvertSettings, convert, plan
from tests.conftest import Checkpoint
from tests.tasks.conversions import MODELS, to
from tests.tasks.spoiled_conversions import CASES
from tests.tasks.spoiling import Bad


@pytest.fixture
def source(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A checkpoint to spoil."""
    return shutil.copytree(checkpoint(head_dim=16), tmp_path / "source")


@pytest.mark.parametrize("bad", CASES.values(), ids=CASES)
def test_bad_input_is_refused_before_any_output_exists(checkpoint: Checkpoint, tmp_path: Path, bad: Bad) -> None:
    """With all that is wrong in one error, at once, and not a trace at the destination; a dry run says the same."""
    family, changes = MODELS[bad.name]
    good = checkpoint(family, **changes)
    source = tmp_path / "source"
    if bad.layout == "hf":
        shutil.copytree(good, source)
    else:
        to(bad.layout, good, source)
    bad.spoil(source)
    home = tmp_path / "home"
    home.mkdir()
    for target, action in (("hf", convert), ("litgpt", plan)):
        begun = time.perf_counter()
        with pytest.raises(bad.kind) as caught:
            action(source, home / "out", ConvertSettings(target, **bad.settings))
        assert time.perf_counter() - begun < 5
        assert type(caught.value) is bad.kind
        assert str(caught.value).splitlines() == [line.replace("{source}", str(source)) for line in bad.lines]
        assert caught.value.exit_code == (2 if bad.kind is UsageError else 3)
        assert list(home.iterdir()) == []


def test_the_nearest_layout_is_named(tmp_path: Path) -> None:
    """With how near it is, and what says which names are missing."""
    source = tmp_path / "source"
    source.mkdir()
    CASES["unknown names"].spoil(source)
    with pytest.raises(CheckpointError) as caught:
        to("hf", source, tmp_path / "out")
    assert caught.value.hint == "The nearest is litgpt: 1 of 3 modules have names of it."
    assert caught.value.facts["nearest"] == "litgpt"


@pytest.mark.parametrize(
    ("out", "relation"),
    [
        ("source", "are the same"),
        ("source/out", "the output is inside the source"),
        ("link/out", "the output is inside the source"),
        (".", "the source is inside the output"),
    ],
)
@pytest.mark.parametrize("given", ["source", "source/model.safetensors", "link"])
def test_source_and_output_must_lie_apart(source: Path, given: str, out: str, relation: str) -> None:
    """By whatever name, a weight file's folder too; also where --overwrite would allow it, and in a dry run."""
    (source.parent / "link").symlink_to(source)
    before = {path: path.stat().st_mtime_ns for path in source.parent.rglob("*")}
    actions: list[Callable[..., object]] = [convert, plan]
    for action in actions:
        with pytest.raises(UsageError) as caught:
            action(source.parent / given, source.parent / out, ConvertSettings("litgpt", overwrite=True))
        assert relation in str(caught.value)
        assert caught.value.exit_code == 2
    assert {path: path.stat().st_mtime_ns for path in source.parent.rglob("*")} == before


def test_settings_that_mean_nothing_are_refused(source: Path, tmp_path: Path) -> None:
    """All of them, from Python too; litgpt's older layout is read and not written."""
    settings = ConvertSettings(
        "litgpt-legacy",
        layout="nonesuch",
        format="pickle",  # type: ignore[arg-type]
        embedding_split="halves",  # type: ignore[arg-type]
        tensor_parallel=0,
        workers=-1,
    )
    with pytest.raises(UsageError) as caught:
        convert(source, tmp_path / "out", settings)
    assert str(caught.value) == (
        "no such settings: to='litgpt-legacy', layout='nonesuch', format='pickle', embedding_split='halves', "
        "tensor_parallel=0, workers=-1"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize("kind", ["full", "file"])
def test_an_output_that_is_there_is_not_touched(source: Path, tmp_path: Path, kind: str) -> None:
    """Neither a folder that holds something, nor a file."""
    out = tmp_path / "out"
    mine = out / "mine" if kind == "full" else out
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(OutputExistsError) as caught:
        to("litgpt", source, out)
    assert caught.value.exit_code == 7
    assert mine.read_text() == "mine"
    assert not (tmp_path / "out.partial").exists()


def test_an_output_that_is_there_is_replaced_on_request(source: Path, tmp_path: Path) -> None:
    """By all of the new one and nothing of the old."""
    first = to("litgpt", source, tmp_path / "out").out
    second = to("meta", source, tmp_path / "out", overwrite=True).out
    assert first == second
    assert {path.name for path in second.glob("*.pth")} == {"consolidated.00.pth"}
    assert not (second / "model_config.yaml").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_an_output_that_cannot_be_written_is_an_error(source: Path, tmp_path: Path) -> None:
    """What it should lie in is a file."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError) as caught:
        to("litgpt", source, tmp_path / "file" / "out")
    assert str(tmp_path / "file") in str(caught.value)
    assert caught.value.exit_code == 7
    assert (tmp_path / "file").read_text() == "mine"


def test_a_source_that_changes_meanwhile_is_an_error(source: Path, tmp_path: Path) -> None:
    """What was checked must be what is read; nothing is published."""
    path = source / "model.safetensors"

    def change(progress: object) -> None:
        path.write_bytes(path.read_bytes())

    with pytest.raises(CheckpointError, match=r"model\.safetensors: the file changed after its header was read"):
        to("litgpt", source, tmp_path / "out", change, dtype="bfloat16")
    assert not (tmp_path / "out").exists()
