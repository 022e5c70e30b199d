from __future__ import annotations

import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from llamaconv.weight_names import (
    SAFETENSORS,
    TORCH,
    HubFormat,
    Missing,
    Series,
    is_mistral,
    is_training_state,
    meta_ranks,
    missing_shards,
    series_among,
)


def test_the_hubs_names_are_those_of_transformers() -> None:
    """One file and an index, as safetensors and as torch files."""
    assert (SAFETENSORS.single, SAFETENSORS.index) == (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    assert (TORCH.single, TORCH.index) == (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)


@pytest.mark.parametrize("form", [SAFETENSORS, TORCH])
def test_shards_that_huggingface_hub_names_are_one_whole_series(form: HubFormat) -> None:
    """Its files are in one series, of which none is missing; without one of them that one is."""
    tensors = {letter: torch.zeros(2, 3) for letter in "abcde"}
    pattern = f"{form.stem}{{suffix}}{form.suffix}"
    split = split_torch_state_dict_into_shards(tensors, filename_pattern=pattern, max_shard_size=24)
    names = list(split.filename_to_tensors)
    assert form.shards([*names, form.single, "config.json"]) == {Series(form.stem, 5, "00005", form.suffix): names}
    assert missing_shards(names) == Missing((), 0)
    assert missing_shards([*names[:3], names[4]]) == Missing((names[3],), 1)


def test_shards_of_other_models_are_not_the_hubs() -> None:
    """The stem and the suffix are the format's own, and what counts are numbers."""
    names = ["x-00001-of-00001.safetensors", "model.fp16-00001-of-00001.safetensors", "model-00001-of-00001.bin"]
    assert SAFETENSORS.shards([*names, "model-x-of-y.safetensors", "model-00001-of-00001.fp16.safetensors"]) == {}
    assert TORCH.shards(["pytorch_model-fp16-00001-of-00001.bin"]) == {}


SERIES = st.builds(
    lambda stem, width, count: Series(stem, width, f"{count:0{width}}", ".bin"),
    st.sampled_from(["model", "a-b", "x-1-of-2", ""]),
    st.integers(1, 9),
    st.integers(1, 120),
)


@given(st.data(), st.sets(SERIES, min_size=1, max_size=3))
def test_what_is_there_and_what_is_missing_is_all(data: st.DataObject, several: set[Series]) -> None:
    """Of each series that has its first file, the others are missing, in the order of series and numbers."""
    there, missing = [], []
    for series in sorted({(one.stem, one.count): one for one in several}.values()):
        first, *names = [series.name(number) for number in range(1, int(series.count) + 1)]
        present = {first, *(data.draw(st.sets(st.sampled_from(names))) if names else ())}
        there += [name for name in (first, *names) if name in present]
        missing += [name for name in names if name not in present]
        assert list(series_among(present)) == [series]
    assert missing_shards(data.draw(st.permutations(there))) == Missing(tuple(missing[:100]), len(missing))


def test_numbers_with_and_without_zeros_are_two_series() -> None:
    """A number that may be in either is in the one with the zeros; of several alone the width is their own."""
    padded, plain = [[f"m-{number:0{width}}-of-12.bin" for number in range(1, 13)] for width in (2, 1)]
    both = series_among([*padded, *plain])
    assert both == {Series("m", 2, "12", ".bin"): padded + plain[9:], Series("m", 1, "12", ".bin"): plain[:9]}
    assert series_among(plain[9:]) == {Series("m", 2, "12", ".bin"): plain[9:]}
    assert series_among(["m-0-of-3.bin", "m-2-of-3.bin"]) == {
        Series("m", 1, "3", ".bin"): ["m-0-of-3.bin", "m-2-of-3.bin"]
    }
    long = [f"m-{number:05}-of-012345.bin" for number in range(1, 12346)]
    assert missing_shards(long) == Missing((), 0)


def test_numbers_beyond_the_count_make_up_for_none() -> None:
    """Zero, and what is larger than the count, are none of the shards that it promises."""
    assert missing_shards(["m-00000-of-00002.bin", "m-00003-of-00002.bin"]) == Missing(
        ("m-00001-of-00002.bin", "m-00002-of-00002.bin"), 2
    )


@given(st.sets(st.integers(0, 130)))
def test_metas_ranks_are_counted_from_zero_to_the_last(ranks: set[int]) -> None:
    """They come in the order of their numbers, of two digits or more; each below the last must be there."""
    names = [f"consolidated.{rank:02}.pth" for rank in ranks]
    others = ["consolidated.0.pth", "consolidated.007.pth", "consolidated.00.pth.tmp", "consolidated.safetensors"]
    assert list(meta_ranks([*names, *others]).items()) == [(n, f"consolidated.{n:02}.pth") for n in sorted(ranks)]
    gaps = [rank for rank in range(max(ranks, default=0)) if rank not in ranks]
    lost = [f"consolidated.{rank:02}.pth" for rank in gaps]
    assert missing_shards([*names, *others]) == Missing(tuple(lost[:100]), len(lost))


def test_a_name_alone_costs_no_memory() -> None:
    """Of what a file that claims to be one of 999,999,999 promises, a hundred are named and the others counted."""
    missing = missing_shards(["model-000000001-of-999999999.safetensors"])
    assert (len(missing.names), missing.count) == (100, 999_999_998)
    assert missing.names[0] == "model-000000002-of-999999999.safetensors"
    assert missing_shards(["model-1-of-9999999999.safetensors", "consolidated.100000.pth"]) == Missing((), 0)


@pytest.mark.parametrize(
    ("count", "most", "told"),
    [
        (0, 2, ""),
        (2, 2, "a is gone.\nb is gone."),
        (3, 2, "a is gone.\nb is gone.\n… and 1 more."),
        (1004, 5, "a is gone.\nb is gone.\nc is gone.\n… and 1001 more."),
    ],
)
def test_what_is_missing_is_told_a_line_each(count: int, most: int, told: str) -> None:
    """Up to so many, of those that are known; the others are counted."""
    assert Missing(("a", "b", "c")[:count], count).told(lambda name: f"{name} is gone.", most) == told


@pytest.mark.parametrize(
    ("name", "training", "mistral"),
    [
        ("training_args.bin", True, False),
        ("trainer_state.json", True, False),
        ("optimizer.pt", True, False),
        ("optimizer.safetensors", True, False),
        ("scheduler.pt", True, False),
        ("scaler.pt", True, False),
        ("rng_state_0.pth", True, False),
        ("consolidated.safetensors", False, True),
        ("consolidated-00001-of-00002.safetensors", False, True),
        ("consolidated.00.pth", False, False),
        ("model.safetensors", False, False),
        ("my_optimizer.pt", False, False),
    ],
)
def test_names_that_are_no_model_or_the_same_once_more(name: str, training: bool, mistral: bool) -> None:
    """A trainer's files are told from weights, and Mistral's own from the Hub's."""
    assert (is_training_state(name), is_mistral(name)) == (training, mistral)
