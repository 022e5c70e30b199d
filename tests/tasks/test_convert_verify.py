"""--verify: what was written is read back, and held against the source by every bit and by what it computes."""

from __future__ import annotations

import shutil
from itertools import groupby
from pathlib import Path

import pytest
import torch

from llamaconv.errors import IntegrityError
from llamaconv.progress import Progress
from tests.conftest import Checkpoint
from tests.models import load_weights, patch_config, save_weights
from tests.sources.files import bits
from tests.tasks.conversions import HELD, MODELS, same_bits, stored, to

HINT = "The disk or its driver is at fault, or llamaconv is: please report it."


class Flip:
    """Changes the first byte of a tensor in a file, as soon as all is written there."""

    def __init__(self, file: Path, tensor: torch.Tensor) -> None:
        self.file = file
        self.value = bits(tensor)
        self.done = False

    def __call__(self, progress: Progress) -> None:
        if progress.task == "converting" and progress.done == progress.total and not self.done:
            content = self.file.read_bytes()
            assert content.count(self.value) == 1
            place = content.index(self.value)
            with self.file.open("r+b") as file:
                file.seek(place)
                file.write(bytes([content[place] ^ 1]))
            self.done = True


@pytest.mark.parametrize(
    ("name", "layout"), [(name, layout) for name, layouts in HELD.items() for layout in ("hf", *layouts)]
)
def test_what_was_converted_rightly_passes(
    checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, layout: str
) -> None:
    """With equal logits; a mixture, which nothing here runs, by its tensors, and that is said."""
    family, changes = MODELS[name]
    source = checkpoint(family, dtype=torch.bfloat16, **changes)
    result = to(layout, source, tmp_path / "out", verify=True)
    assert result.verified
    assert result.logits_difference == (None if name == "Mixtral" else 0)
    told = [record.message for record in caplog.records if record.message.startswith("logits")]
    assert told == (
        [f"logits are not compared: {source}: a mixture of 5 experts in each layer"] if name == "Mixtral" else []
    )


@pytest.mark.parametrize(
    ("layout", "file", "settings"),
    [
        ("hf", "model.safetensors", {}),
        ("hf", "pytorch_model.bin", {"format": "torch"}),
        ("litgpt", "lit_model.pth", {}),
        ("lit-llama", "tiny/lit-llama.pth", {}),
        ("meta", "consolidated.00.pth", {}),
    ],
)
def test_a_byte_that_changed_on_the_way_is_found(
    checkpoint: Checkpoint, tmp_path: Path, layout: str, file: str, settings: dict[str, str]
) -> None:
    """In whatever file; the tensor is named, the exit code is 6, and nothing is published."""
    source = checkpoint(**MODELS["Llama 1"][1])
    norm = load_weights(source)["model.layers.1.input_layernorm.weight"]
    flip = Flip(tmp_path / "out.partial" / file, norm)
    with pytest.raises(IntegrityError) as caught:
        to(layout, source, tmp_path / "out", flip, verify=True, **settings)
    assert flip.done
    assert str(caught.value).splitlines() == [
        "What was written is not what was to be written:",
        "model.layers.1.input_layernorm.weight differs",
    ]
    assert (caught.value.hint, caught.value.exit_code) == (HINT, 6)
    assert not (tmp_path / "out").exists()
    again = to(layout, source, tmp_path / "out", verify=True, **settings)
    assert again.logits_difference == 0
    assert not (tmp_path / "out.partial").exists()


def test_a_byte_in_one_of_several_copies_is_found(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The second rank's norm is read by nobody else."""
    norm = load_weights(checkpoint(head_dim=16))["model.norm.weight"]
    flip = Flip(tmp_path / "out.partial" / "consolidated.01.pth", norm)
    with pytest.raises(IntegrityError) as caught:
        to("meta", checkpoint(head_dim=16), tmp_path / "out", flip, verify=True, tensor_parallel=2)
    assert str(caught.value).splitlines()[-1] == (
        "01/norm.weight differs from 00/norm.weight, of which it should be a copy"
    )
    assert caught.value.exit_code == 6
    assert not (tmp_path / "out").exists()


def test_without_it_nobody_looks(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The same byte goes through: what finds it is the reading back."""
    norm = load_weights(checkpoint())["model.norm.weight"]
    flip = Flip(tmp_path / "out.partial" / "model.safetensors", norm)
    result = to("hf", checkpoint(), tmp_path / "out", flip)
    assert flip.done
    assert not result.verified
    assert result.logits_difference is None
    assert not same_bits(load_weights(result.out), load_weights(checkpoint()))


def test_a_cast_is_held_against_the_cast_source(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Bit for bit; the logits differ by what the dtype makes of them."""
    result = to("litgpt", checkpoint(), tmp_path / "out", dtype="bfloat16", verify=True)
    assert result.logits_difference is not None
    assert 0 < result.logits_difference < 0.05


def test_equal_tensors_that_no_config_ties_pass(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Other layouts have no way to say that they are two."""
    source = shutil.copytree(checkpoint(head_dim=16), tmp_path / "source")
    save_weights(source, **{"lm_head.weight": load_weights(source)["model.embed_tokens.weight"].clone()})
    for layout in ("hf", "litgpt", "meta"):
        assert to(layout, source, tmp_path / layout, verify=True).logits_difference == 0


def test_models_with_few_positions_are_run_on_as_many(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """OPT has an embedding for each position and none beyond."""
    assert to("hf", checkpoint("opt", rope_theta=...), tmp_path / "out", verify=True).logits_difference == 0


def test_a_model_that_transformers_does_not_know_is_compared_by_its_tensors(
    checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And why its logits are not is told."""
    source = patch_config(shutil.copytree(checkpoint(), tmp_path / "source"), model_type="nonesuch")
    result = to("hf", source, tmp_path / "out", format="torch", verify=True)
    assert result.logits_difference is None
    assert same_bits(stored(result.out), load_weights(source))
    (told,) = [record.message for record in caplog.records]
    assert told.startswith("logits are not compared: ")
    assert "'nonesuch'" in told


def test_what_is_being_done_is_reported(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """One task after the other, each from nothing to all of it."""
    seen: list[Progress] = []
    result = to("litgpt", checkpoint(), tmp_path / "out", seen.append, verify=True)
    tasks = {task: list(group) for task, group in groupby(seen, lambda progress: progress.task)}
    assert list(tasks) == ["converting", "verifying", "running the output", "running the source"]
    for progress in tasks.values():
        done = [report.done for report in progress]
        assert (done[0], done[-1]) == (0, progress[-1].total)
        assert done == sorted(done)
        assert len({(report.total, report.unit) for report in progress}) == 1
    assert (tasks["converting"][0].total, tasks["converting"][0].unit) == (result.bytes, "bytes")
    assert [report.detail for report in tasks["verifying"][:-1]] == list(load_weights(checkpoint()))
