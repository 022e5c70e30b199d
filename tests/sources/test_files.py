from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llamaconv.errors import CheckpointError
from llamaconv.sources.files import FilesReader
from llamaconv.sources.weights import open_weights, open_weights_together
from llamaconv.tensors import TensorSpec
from tests.sources.torch_files import write_legacy, write_ranks, write_zip


def test_files_are_merged_in_the_given_order(tmp_path: Path) -> None:
    """Specs follow the files, and within a file its list; the index comes last among the files, and holds nothing."""
    save_file({"z": torch.zeros(3, dtype=torch.int8), "y": torch.zeros(2)}, tmp_path / "2")
    write_zip(tmp_path / "1", {"x": torch.zeros(4)})
    write_legacy(tmp_path / "0", {"w": torch.ones(1)})
    paths = tuple(tmp_path / name for name in "210")
    reader = FilesReader(open_weights_together(paths), index=tmp_path / "index.json")
    assert list(reader.specs) == ["y", "z", "x", "w"]
    assert reader.files == (*paths, tmp_path / "index.json")
    assert reader.holdings == dict(zip(paths, [("y", "z"), ("x",), ("w",)], strict=True))
    assert reader["w"].read().tolist() == [1]


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    """Which of the two would count is nobody's guess; all such tensors are named."""
    one, two = tmp_path / "1", tmp_path / "2"
    save_file({"a": torch.zeros(1), "b": torch.zeros(2), "c": torch.zeros(3)}, one)
    write_zip(two, {"a": torch.zeros(1), "b": torch.zeros(2)})
    with pytest.raises(CheckpointError) as caught:
        FilesReader(open_weights_together([one, two]))
    assert caught.value.message == (
        f"Tensor 'a' is both in {one} and in {two}.\nTensor 'b' is both in {one} and in {two}."
    )


def test_prefixes_set_the_tensors_of_ranks_apart(tmp_path: Path) -> None:
    """Equal names in two files are two tensors, whose specs, holdings and bytes are each file's own."""
    write_ranks(tmp_path, [{"w": torch.ones(2, 3), "n": torch.ones(1)}, {"w": torch.zeros(3, 2), "n": torch.zeros(1)}])
    paths = sorted(tmp_path.iterdir())
    reader = FilesReader(open_weights_together(paths), prefixes=["00/", "01/"])
    assert list(reader.specs) == ["00/w", "00/n", "01/w", "01/n"]
    assert reader.holdings == {paths[0]: ("00/w", "00/n"), paths[1]: ("01/w", "01/n")}
    lazy = reader["01/w"]
    assert lazy.spec == reader.specs["01/w"] == TensorSpec("01/w", (3, 2), torch.float32)
    assert lazy.read().tolist() == [[0, 0]] * 3
    assert lazy.extents == open_weights(paths[1])["w"].extents
    with pytest.raises(CheckpointError, match=r"^The checkpoint has no tensor 'w'\.$"):
        reader["w"]
