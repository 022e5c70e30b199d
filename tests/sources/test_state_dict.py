from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from llamaconv.errors import UnsupportedError
from llamaconv.sources.weights import open_weights
from tests.sources.torch_files import write_zip
from tests.sources.views import assert_same


def fault_of(path: Path) -> str:
    with pytest.raises(UnsupportedError) as caught:
        open_weights(path)
    assert (
        caught.value.hint == "Give a file of a model's tensors by name, as torch.save(model.state_dict(), …) writes it."
    )
    return caught.value.message


@pytest.mark.parametrize("name", ["model", "state_dict", "module"])
def test_the_model_may_be_one_level_down(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Beside the optimizer's state, which is passed over and named, and plain values, which are passed over."""
    content = {
        "step": 3,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}},
        name: {"w": torch.arange(3), "version": (1, torch.Size([2]), torch.float16, {1.5}, b"x", None, 1j)},
    }
    path = write_zip(tmp_path / "x.pth", content)
    assert_same(open_weights(path), {"w": torch.arange(3)})
    assert caplog.messages == [f"{path}: tensors under 'optimizer' are passed over"]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "value",
    [Counter([30, 60]), {(0, 1): 2}, {0.5: 1}, {2**64: 1}, {1, 2}, frozenset({(1, 2)}), bytearray(b"abc"), 2**20_000],
    ids=lambda value: type(value).__name__,
)
def test_plain_values_of_any_kind_are_passed_over(
    tmp_path: Path, value: object, protocol: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as a scheduler's milestones, beside the model and within it; nothing is said."""
    content = {"model": {"w": torch.arange(3), "within": value}, "m": value}
    assert_same(open_weights(write_zip(tmp_path / "x.pth", content, protocol)), {"w": torch.arange(3)})
    assert not caplog.records


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ({}, "holds no tensors by name, only nothing."),
        ({"a": 1, "b": {"c": torch.ones(1)}}, "holds no tensors by name, only 'a', 'b'."),
        (
            {"state": {0: {"exp_avg": torch.ones(1)}}, "param_groups": []},
            "holds no tensors by name, only 'state', 'param_groups'.",
        ),
        ({"model": {"inner": {"w": torch.ones(1)}}}, "holds no tensors by name, only 'model'."),
        (
            {"model": {"w": torch.ones(1)}, "module": {"w": torch.ones(1)}},
            "holds several models, under 'model' and 'module'.",
        ),
        ([torch.ones(1)], "holds a list, not a dictionary of tensors by name."),
        (torch.ones(1), "holds a single tensor, not a dictionary of tensors by name."),
        ({0: torch.ones(1)}, "a tensor is called 0, which is no name."),
        ({(0, 1): torch.ones(1)}, "a tensor is called <tuple>, which is no name."),
        (
            {"s": torch.ones(2, 2).to_sparse(), "w": torch.ones(1), "c": torch.ones(1, dtype=torch.complex64).conj()},
            "tensor 's' is sparse.\n{path}: tensor 'c' is the conjugate or negative of what is stored.",
        ),
        ({"m": torch.ones(2, device="meta")}, "tensor 'm' has no data, only a shape."),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: object, fault: str) -> None:
    """Nothing by name, two models, or tensors that are no plain ones, each by its name."""
    path = write_zip(tmp_path / "x.pth", content)
    assert fault_of(path) == f"{path}: {fault.format(path=path)}"


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
def test_quantized_tensors_are_refused_by_name(tmp_path: Path) -> None:
    """Their scale is in the pickle, and nothing here would keep it."""
    path = write_zip(tmp_path / "x.pth", {"w": torch.quantize_per_tensor(torch.ones(2), 0.5, 0, torch.qint8)})
    assert fault_of(path) == f"{path}: tensor 'w' is quantized."
