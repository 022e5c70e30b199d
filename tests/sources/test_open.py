from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llamaconv.errors import CheckpointError, InputError, UnsupportedError
from llamaconv.sources.open import open_checkpoint
from tests.sources.files import write_index
from tests.sources.torch_files import write_legacy, write_ranks, write_zip

INDEX = "model.safetensors.index.json"


def save(path: Path, *names: str) -> Path:
    """One file with a tensor of its own value per name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.full((2,), float(len(name))) for name in names}, path)
    return path


def sharded(directory: Path) -> Path:
    """Two shards with an index; the index's order is not the shards'."""
    save(directory / "model-00001-of-00002.safetensors", "b", "aa")
    save(directory / "model-00002-of-00002.safetensors", "ccc")
    weights = {"aa": "model-00001-of-00002.safetensors", "ccc": "model-00002-of-00002.safetensors"}
    write_index(directory / INDEX, {**weights, "b": "model-00001-of-00002.safetensors"})
    return directory


def fault_of(path: Path, kind: type[InputError] = CheckpointError) -> InputError:
    with pytest.raises(kind) as caught:
        open_checkpoint(path)
    assert caught.value.exit_code == 3
    return caught.value


@pytest.mark.parametrize("given", ["", INDEX])
def test_an_index_opens_all_its_shards(tmp_path: Path, given: str) -> None:
    """By its folder or by its own path, an index gives all tensors, in the shards' order."""
    directory = sharded(tmp_path / "model")
    checkpoint = open_checkpoint(directory / given)
    assert checkpoint.directory == directory
    assert list(checkpoint.reader.specs) == ["aa", "b", "ccc"]
    assert checkpoint.reader["ccc"].read().tolist() == [3, 3]
    assert [file.name for file in checkpoint.reader.files] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        INDEX,
    ]


def test_a_single_file_is_a_checkpoint_beside_its_config(tmp_path: Path) -> None:
    """A file opens whatever its name, even one shard of many; its folder is where the config lies."""
    path = save(tmp_path / "weights.safetensors", "a")
    checkpoint = open_checkpoint(path)
    assert (checkpoint.directory, checkpoint.reader.files) == (tmp_path, (path,))
    directory = sharded(tmp_path / "model")
    assert list(open_checkpoint(directory / "model-00002-of-00002.safetensors").reader.specs) == ["ccc"]


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


def test_the_hub_caches_links_are_followed(tmp_path: Path) -> None:
    """Snapshots of links into ../../blobs open by folder, file and index; their folder is the snapshot."""
    directory = sharded(tmp_path / "snapshots" / "0123")
    (tmp_path / "blobs").mkdir()
    for number, path in enumerate(sorted(directory.iterdir())):
        path.rename(tmp_path / "blobs" / str(number))
        path.symlink_to(f"../../blobs/{number}")
    for given in (directory, directory / INDEX):
        checkpoint = open_checkpoint(given)
        assert checkpoint.directory == directory
        assert checkpoint.reader["b"].read().tolist() == [1, 1]
    assert open_checkpoint(directory / "model-00001-of-00002.safetensors").directory == directory
    assert fault_of(tmp_path).hint == "This is a folder of the Hub's cache: give the one below snapshots/."


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


@pytest.mark.parametrize("given", ["", "pytorch_model.bin.index.json"])
def test_an_index_of_torch_shards(tmp_path: Path, given: str) -> None:
    """As of safetensors: all shards, and whatever they and the index say differently is named."""
    write_zip(tmp_path / "pytorch_model-00001-of-00002.bin", {"a": torch.ones(1), "b": torch.ones(2)})
    write_legacy(tmp_path / "pytorch_model-00002-of-00002.bin", {"c": torch.ones(3)})
    weights = {"a": "pytorch_model-00001-of-00002.bin", "c": "pytorch_model-00002-of-00002.bin"}
    path = write_index(tmp_path / "pytorch_model.bin.index.json", weights | {"b": weights["a"]})
    reader = open_checkpoint(tmp_path / given).reader
    assert list(reader.specs) == ["a", "b", "c"]
    assert reader.files[-1] == path
    assert reader["c"].read().tolist() == [1] * 3
    write_index(path, weights | {"gone": weights["c"]})
    assert fault_of(tmp_path / given).message == (
        f"{path}: tensor 'gone' should be in {weights['c']!r}, which lacks it.\n"
        f"{path}: tensor 'b' in {weights['a']!r} is not named by the index."
    )
    (tmp_path / weights["c"]).unlink()
    assert fault_of(tmp_path / given).message == f"{path}: the shard {weights['c']!r} is missing."


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


def test_a_pickle_of_more_than_tensors_is_refused(tmp_path: Path) -> None:
    """Alone in a folder, named itself, or named by an index."""
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(pickle.dumps(save))
    for given in (tmp_path, path, write_index(tmp_path / "index.json", {"a": path.name})):
        error = fault_of(given, UnsupportedError)
        assert error.message == (
            f"{path}: the pickle in it wants {__name__}.save; only tensors are taken from a pickle, "
            "and nothing in it was run."
        )


OUTSIDE = [
    *("/etc/passwd", "../x.safetensors", "sub/../../x", "..", ".", "", "a\0b"),
    *("C:\\x", "C:x", "..\\x", "\\\\host\\share\\x"),
]


def test_an_index_cannot_point_outside_or_at_nothing(tmp_path: Path) -> None:
    """Absolute paths, "..", drives, NUL and missing shards are all listed in one error."""
    names = ["good.safetensors", "missing.safetensors", "sub/missing.safetensors", "n" * 300, *OUTSIDE]
    save(tmp_path / "good.safetensors", "t0")
    save(tmp_path.parent / "x.safetensors", "x")
    path = write_index(tmp_path / INDEX, {f"t{i}": name for i, name in enumerate(names)})
    error = fault_of(tmp_path)
    assert sorted(error.message.splitlines()) == sorted(
        [f"{path}: the shard {name!r} is not inside the folder." for name in OUTSIDE]
        + [f"{path}: the shard {name!r} is missing." for name in names[1:4]]
    )


def test_a_shard_in_a_subfolder_is_inside(tmp_path: Path) -> None:
    """Only leaving the folder is forbidden."""
    save(tmp_path / "sub" / "one.safetensors", "a")
    write_index(tmp_path / INDEX, {"a": "sub/one.safetensors"})
    assert list(open_checkpoint(tmp_path).reader.specs) == ["a"]


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    """A tensor that a shard lacks, holds unnamed, twice or elsewhere is named; all in one error."""
    save(tmp_path / "1.safetensors", "right", "extra", "twice", "moved")
    save(tmp_path / "2.safetensors", "twice")
    path = write_index(
        tmp_path / INDEX,
        {
            "right": "1.safetensors",
            "twice": "2.safetensors",
            "moved": "2.safetensors",
            "gone": "1.safetensors",
        },
    )
    assert sorted(fault_of(tmp_path).message.splitlines()) == [
        f"{path}: tensor 'extra' in '1.safetensors' is not named by the index.",
        f"{path}: tensor 'gone' should be in '1.safetensors', which lacks it.",
        f"{path}: tensor 'moved' is in '1.safetensors' instead.",
        f"{path}: tensor 'moved' should be in '2.safetensors', which lacks it.",
        f"{path}: tensor 'twice' is in '2.safetensors' as the index says, but also in '1.safetensors'.",
    ]


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    """A download that stopped early shows in the shard's header."""
    shard = sharded(tmp_path) / "model-00002-of-00002.safetensors"
    os.truncate(shard, shard.stat().st_size - 3)
    assert fault_of(tmp_path).message == (f"{shard}: truncated: the header describes 8 bytes of data, the file has 5.")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "the index is not JSON (Expecting value, line 1, column 1)."),
        ("[]", "the index is not a JSON object."),
        ("{}", "weight_map: Field required."),
        ('{"weight_map": {}}', "the weight_map is empty."),
        ('{"weight_map": ["a"]}', "weight_map: Input should be a valid dictionary."),
        ('{"weight_map": {"a": 1, "b": null}}', "weight_map.a: Input should be a valid string."),
        ('{"weight_map": {"a": "1", "a": "2"}}', 'the index is not usable: the key "a" stands in it twice.'),
        ('{"weight_map": {"a": "1"}, "metadata": 1}', "metadata: Input should be a valid dictionary."),
    ],
)
def test_a_malformed_index_says_where(tmp_path: Path, content: str, fault: str) -> None:
    """Not JSON and JSON of another shape are told apart, with the place."""
    (tmp_path / INDEX).write_text(content)
    assert fault_of(tmp_path).message.splitlines()[0] == f"{tmp_path / INDEX}: {fault}"


def test_other_fields_of_an_index_are_ignored(tmp_path: Path) -> None:
    """transformers adds total_parameters, others add more."""
    save(tmp_path / "1.safetensors", "a")
    extra: dict[str, Any] = {
        "weight_map": {"a": "1.safetensors"},
        "metadata": {"total_parameters": 2},
        "x": [],
    }
    (tmp_path / INDEX).write_text(json.dumps(extra))
    assert list(open_checkpoint(tmp_path).reader.specs) == ["a"]
