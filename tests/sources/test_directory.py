from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llamaconv.errors import CheckpointError
from llamaconv.sources.open import open_checkpoint
from tests.sources.files import INDEX, save, sharded, write_index
from tests.sources.torch_files import write_ranks, write_zip


def fault_of(path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    return caught.value


def test_a_directory_prefers_the_standard_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One odd file is used; model.safetensors goes before others; an index before both, which is said."""
    save(tmp_path / "odd.safetensors", "odd")
    assert list(open_checkpoint(tmp_path).reader.specs) == ["odd"]
    assert not caplog.records
    save(tmp_path / "model.safetensors", "single")
    assert list(open_checkpoint(tmp_path).reader.specs) == ["single"]
    sharded(tmp_path)
    assert list(open_checkpoint(tmp_path).reader.specs) == ["aa", "b", "ccc"]
    assert caplog.messages == [
        f"{tmp_path}: model.safetensors is used, odd.safetensors beside it is not",
        f"{tmp_path}: {INDEX} is used, model.safetensors, odd.safetensors beside it are not",
    ]


def test_several_files_without_an_index_are_one_checkpoint(tmp_path: Path) -> None:
    """Files with disjoint names are merged; a name in two of them is an error."""
    save(tmp_path / "one.safetensors", "a", "b")
    save(tmp_path / "two.safetensors", "c")
    assert list(open_checkpoint(tmp_path).reader.specs) == ["a", "b", "c"]
    save(tmp_path / "three.safetensors", "a")
    error = fault_of(tmp_path)
    assert error.message == (
        f"Tensor 'a' is both in {tmp_path / 'one.safetensors'} and in {tmp_path / 'three.safetensors'}."
    )


def test_numbered_files_without_an_index_must_be_complete(tmp_path: Path) -> None:
    """The name of one shard tells how many there are."""
    save(tmp_path / "model-00002-of-00004.safetensors", "a")
    save(tmp_path / "model-00003-of-00004.safetensors", "b")
    assert fault_of(tmp_path).message == (
        f"{tmp_path}: the shard 'model-00001-of-00004.safetensors' is missing.\n"
        f"{tmp_path}: the shard 'model-00004-of-00004.safetensors' is missing."
    )
    save(tmp_path / "model-00001-of-999999999.safetensors", "c")
    assert len(fault_of(tmp_path).message.splitlines()) == 101


ORDER = [
    ("pytorch_model.other.bin", "pytorch_model.other.bin"),
    ("pytorch_model-00001-of-00001.bin", "pytorch_model-00001-of-00001.bin"),
    ("7B/lit-llama.pth", "7B/lit-llama.pth"),
    ("llama-gptq.4bit.pth", "llama-gptq.4bit.pth"),
    ("lit_model.pth", "lit_model.pth"),
    ("consolidated.00.pth", "consolidated.00.pth"),
    ("pytorch_model.bin", "pytorch_model.bin"),
    ("shard.bin", "pytorch_model.bin.index.json"),
    ("other.safetensors", "other.safetensors"),
    ("model.safetensors", "model.safetensors"),
    ("shard.safetensors", "model.safetensors.index.json"),
]


def test_each_kind_of_weights_goes_before_the_last(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From any torch file up to an index of safetensors, the better known name is used, and the others are named."""
    for number, (file, used) in enumerate(ORDER):
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        write_zip(path, {file: torch.full((2,), float(number))})
        if used.endswith(".json"):
            write_index(tmp_path / used, {file: file})
        caplog.clear()
        checkpoint = open_checkpoint(tmp_path)
        assert checkpoint.directory == (path.parent if "/" in file else tmp_path)
        assert checkpoint.reader[file].read().tolist() == [number] * 2
        assert checkpoint.reader.holdings == {path: (file,)}
        assert [message.partition(" is used, ")[0] for message in caplog.messages] == [f"{tmp_path}: {used}"] * bool(
            number
        )
    assert caplog.messages == [
        f"{tmp_path}: model.safetensors.index.json is used, consolidated.00.pth, lit_model.pth, llama-gptq.4bit.pth "
        "and 6 more beside it are not"
    ]


def test_the_state_of_training_is_no_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What a trainer leaves in the folder is neither opened nor missed."""
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth"):
        (tmp_path / name).touch()
    assert fault_of(tmp_path).message.startswith(f"{tmp_path}: no weights there, only optimizer.pt, rng_state.pth")
    write_zip(tmp_path / "weights.pt", {"a": torch.ones(1)})
    assert list(open_checkpoint(tmp_path).reader.specs) == ["a"]
    assert not caplog.records


def test_mistrals_own_file_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its repositories hold the model twice: under the Hub's names, and under Mistral's in one file."""
    save(tmp_path / "consolidated.safetensors", "own")
    assert list(open_checkpoint(tmp_path).reader.specs) == ["own"]
    assert not caplog.records
    save(tmp_path / "model-00001-of-00002.safetensors", "a")
    save(tmp_path / "model-00002-of-00002.safetensors", "b")
    assert list(open_checkpoint(tmp_path).reader.specs) == ["a", "b"]
    assert caplog.messages == [
        f"{tmp_path}: model-00001-of-00002.safetensors and 1 more are used, consolidated.safetensors beside it is not"
    ]


def test_torch_shards_without_an_index(tmp_path: Path) -> None:
    """Their numbers tell how many there are."""
    write_zip(tmp_path / "pytorch_model-00001-of-00003.bin", {"a": torch.ones(1)})
    write_zip(tmp_path / "pytorch_model-00003-of-00003.bin", {"c": torch.ones(1)})
    assert fault_of(tmp_path).message == f"{tmp_path}: the shard 'pytorch_model-00002-of-00003.bin' is missing."
    write_zip(tmp_path / "pytorch_model-00002-of-00003.bin", {"b": torch.ones(1)})
    assert list(open_checkpoint(tmp_path).reader.specs) == ["a", "b", "c"]


def test_metas_ranks_are_one_checkpoint(tmp_path: Path) -> None:
    """Several files have prefixes, one has none; a gap in their numbers is named."""
    one = write_ranks(tmp_path / "one", [{"w": torch.ones(2)}])
    assert list(open_checkpoint(one).reader.specs) == ["w"]
    three = write_ranks(tmp_path / "three", [{"w": torch.full((2,), float(rank))} for rank in range(3)])
    reader = open_checkpoint(three).reader
    assert {name: reader[name].read().tolist() for name in reader.specs} == {
        "00/w": [0, 0],
        "01/w": [1, 1],
        "02/w": [2, 2],
    }
    assert list(open_checkpoint(three / "consolidated.01.pth").reader.specs) == ["w"]
    for rank in range(2):
        (three / f"consolidated.{rank:02}.pth").unlink()
    assert fault_of(three).message == (
        f"{three}: the shard 'consolidated.00.pth' is missing.\n{three}: the shard 'consolidated.01.pth' is missing."
    )


def test_more_than_a_hundred_ranks_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """Numbers of three digits follow those of two; one with a needless zero is none."""
    write_ranks(tmp_path, [{"w": torch.full((1,), float(rank))} for rank in range(112)])
    write_zip(tmp_path / "consolidated.007.pth", {"w": torch.ones(1)})
    reader = open_checkpoint(tmp_path).reader
    assert list(reader.specs) == [f"{rank:02}/w" for rank in range(112)]
    assert [int(reader[name].read()) for name in reader.specs] == list(range(112))
    (tmp_path / "consolidated.101.pth").unlink()
    assert fault_of(tmp_path).message == f"{tmp_path}: the shard 'consolidated.101.pth' is missing."
    write_zip(tmp_path / "consolidated.99999.pth", {"w": torch.ones(1)})
    assert len(fault_of(tmp_path).message.splitlines()) == 101


OWN = [
    ("hf", "model.safetensors"),
    ("litgpt", "lit_model.pth"),
    ("litgpt-legacy", "lit_model.pth"),
    ("lit-llama", "7B/lit-llama.pth"),
    ("meta", "consolidated.00.pth"),
]


@pytest.mark.parametrize(("prefer", "own"), OWN)
def test_a_layout_that_is_named_has_its_own_files_first(
    tmp_path: Path, prefer: str, own: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as litgpt's file beside the model.safetensors that it was made of; which is said."""
    (tmp_path / "7B").mkdir()
    for name in dict.fromkeys(name for _, name in OWN):
        write_zip(tmp_path / name, {name: torch.ones(1)})
    checkpoint = open_checkpoint(tmp_path, prefer)
    assert checkpoint.reader.files == (tmp_path / own,)
    assert checkpoint.directory == (tmp_path / own).parent
    assert caplog.messages[0].startswith(f"{tmp_path}: {own} is used, ")


@pytest.mark.parametrize(("prefer", "own"), OWN)
def test_a_layout_without_files_of_its_own_takes_what_is_there(tmp_path: Path, prefer: str, own: str) -> None:
    """The usual order decides where no file has one of its names."""
    write_zip(tmp_path / "weights.pt", {"w": torch.ones(1)})
    assert open_checkpoint(tmp_path, prefer).reader.files == (tmp_path / "weights.pt",)
    (tmp_path / own).parent.mkdir(exist_ok=True)
    write_zip(tmp_path / own, {"w": torch.ones(1)})
    assert open_checkpoint(tmp_path, prefer).reader.files == (tmp_path / own,)


def test_the_hubs_own_files_are_of_any_of_its_forms(tmp_path: Path) -> None:
    """Numbered torch files without an index too, which otherwise come last."""
    for name in ("lit_model.pth", "pytorch_model-00001-of-00001.bin"):
        write_zip(tmp_path / name, {"w": torch.ones(1)})
    assert open_checkpoint(tmp_path).reader.files == (tmp_path / "lit_model.pth",)
    assert open_checkpoint(tmp_path, "hf").reader.files == (tmp_path / "pytorch_model-00001-of-00001.bin",)
    write_zip(tmp_path / "pytorch_model.bin", {"w": torch.ones(1)})
    assert open_checkpoint(tmp_path, "hf").reader.files == (tmp_path / "pytorch_model.bin",)


def test_lit_llamas_folder_may_be_the_one_above(tmp_path: Path) -> None:
    """One model in a subfolder is meant; of several, or of two forms of one, none is."""
    seven = tmp_path / "7B"
    seven.mkdir()
    (tmp_path / "tokenizer.model").touch()
    write_zip(seven / "lit-llama.pth", {"w": torch.ones(1)})
    for given in (tmp_path, seven, seven / "lit-llama.pth"):
        checkpoint = open_checkpoint(given)
        assert (checkpoint.directory, checkpoint.reader.files) == (seven, (seven / "lit-llama.pth",))
    write_zip(seven / "llama-gptq.4bit.pth", {"w": torch.ones(1)})
    error = fault_of(tmp_path)
    assert error.message == f"{seven}: several models: lit-llama.pth, llama-gptq.4bit.pth."
    assert error.hint == "Give one of these files."
    (tmp_path / "13B").mkdir()
    write_zip(tmp_path / "13B" / "lit-llama.pth", {"w": torch.ones(1)})
    error = fault_of(tmp_path)
    assert error.message == f"{tmp_path}: lit-llama's weights are in 13B, 7B."
    assert error.hint == "Give one of these folders."


def test_nothing_there_is_said_plainly(tmp_path: Path) -> None:
    """A missing path, an empty folder, and a folder without weights have a message each."""
    assert fault_of(tmp_path / "no").message == f"{tmp_path / 'no'} does not exist."
    assert fault_of(tmp_path).message == f"{tmp_path} is empty."
    for name in ("tokenizer.json", "config.json"):
        (tmp_path / name).touch()
    error = fault_of(tmp_path)
    assert error.message == f"{tmp_path}: no weights there, only config.json, tokenizer.json."
    assert error.hint == "Give the folder that holds the weights, *.safetensors or torch files."
    for number in range(12):
        (tmp_path / f"a{number:02}").touch()
    assert fault_of(tmp_path).message.endswith("a09 and 4 more.")
    (tmp_path / "link").symlink_to("nowhere")
    assert fault_of(tmp_path / "link").message == (f"{tmp_path / 'link'}: cannot be read: No such file or directory.")
