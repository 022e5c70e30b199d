from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaconv.errors import CheckpointError, HubError
from llamaconv.hub.result import Skipped
from llamaconv.sources.directory import choose
from tests.hub.listings import choose_from, chosen, refusal, shards

SAFETENSORS_INDEX, TORCH_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"
INDEXES = {SAFETENSORS_INDEX: shards("model", 3), TORCH_INDEX: shards("pytorch_model", 2, ".bin")}

# One kind of weights each, in the order in which they are chosen.
KINDS = [
    [SAFETENSORS_INDEX, *shards("model", 3)],
    ["model.safetensors"],
    ["one.safetensors", "two.safetensors", *shards("three", 2)],
    ["model.fp16.safetensors"],
    ["consolidated.safetensors"],
    [TORCH_INDEX, *shards("pytorch_model", 2, ".bin")],
    ["pytorch_model.bin"],
    ["consolidated.00.pth", "consolidated.01.pth", "params.json"],
    ["lit_model.pth", "model_config.yaml"],
    ["llama-gptq.4bit.pth"],
    shards("pytorch_model", 2, ".bin"),
    shards("pytorch_model.fp16", 2, ".bin"),
]
AROUND = ["config.json", "tokenizer.json", "tokenizer.model", "License.txt", "modeling_x.py", "chat_template.jinja"]
AROUND += [
    "additional_chat_templates/tool_use.jinja",
    "source.spm",
    "bpe.codes",
    "vocab.txt",
    "merges.txt",
    "x.tiktoken",
    "USE_POLICY.md",
]
BESIDE = {
    "README.md": "not needed to use the model",
    "optimizer.pt": "the state of a training",
    "adapter_config.json": "an adapter",
    "adapter_model.safetensors": "an adapter",
    "model.gguf": "other weights",
    "tf_model.h5.index.json": "other weights",
    "original/consolidated.00.pth": "not part of the model at the top",
    "additional_chat_templates/README.md": "not part of the model at the top",
}


def read_from(folder: Path, names: Sequence[str]) -> set[str] | None:
    """What is taken for the weights in a folder with files of these names; None for an error."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    try:
        return set(choose(folder).names)
    except CheckpointError:
        return None


@pytest.mark.parametrize("first", range(len(KINDS)))
def test_the_weights_come_once_with_what_belongs_to_them(tmp_path: Path, first: int) -> None:
    """Of all kinds the best known is taken, with configuration, tokenizer and licence; the others are skipped."""
    repository = {name for kind in KINDS[first:] for name in kind} | set(AROUND) | set(BESIDE)
    selection = choose_from(repository, indexes=INDEXES)
    general = {"params.json", "model_config.yaml"} & repository
    assert chosen(selection) == sorted({*KINDS[first], *AROUND, *general})
    used = {name for name in KINDS[first] if name.endswith((".safetensors", ".bin", ".pth"))}
    index = {name for name in KINDS[first] if name.endswith(".index.json")}
    assert read_from(tmp_path, chosen(selection)) == (index or used)


def test_what_is_skipped_is_said_in_a_few_lines() -> None:
    """Each file beside the model has a reason; several with the same are counted."""
    names = ["config.json", "model.safetensors", *BESIDE, "a.png", "onnx/a.onnx", "onnx/b/c.json"]
    adapter, elsewhere = ("adapter_config.json", "adapter_model.safetensors"), "not part of the model at the top"
    assert choose_from(names).skipped == (
        Skipped("2 files (README.md, a.png)", "not needed to use the model", ("README.md", "a.png")),
        Skipped("2 files (adapter_config.json, adapter_model.safetensors)", "an adapter", adapter),
        Skipped("additional_chat_templates/README.md", elsewhere, ("additional_chat_templates/README.md",)),
        Skipped("2 files in onnx/", elsewhere, ("onnx/a.onnx", "onnx/b/c.json")),
        Skipped("original/consolidated.00.pth", elsewhere, ("original/consolidated.00.pth",)),
        Skipped(
            "2 files (model.gguf, tf_model.h5.index.json)", "other weights", ("model.gguf", "tf_model.h5.index.json")
        ),
        Skipped("optimizer.pt", "the state of a training", ("optimizer.pt",)),
    )
    folders = [f"checkpoint-{number}/model.safetensors" for number in range(5)]
    others = [f"{letter}.gguf" for letter in "abcd"]
    many = choose_from(["model.safetensors", *folders, *others])
    assert many.skipped == (
        Skipped("4 files (a.gguf, b.gguf, c.gguf and 1 more)", "other weights", tuple(others)),
        Skipped("5 files in 5 folders", elsewhere, tuple(folders)),
    )


POOL = [*{name for kind in KINDS for name in kind}, *AROUND, *BESIDE, *shards("model", 2), "model.bf16.safetensors"]
POOL += ["x.bin", "consolidated.03.pth", "lit-llama.pth", "model-00000-of-00002.safetensors"]
WEIGHTS = re.compile(r".*\.(safetensors|bin|pth|pt|gguf)")
KIND_OF = [
    ("safetensors", re.compile(r".*\.safetensors")),
    ("torch", re.compile(r"pytorch_model.*\.bin")),
    ("meta", re.compile(r"consolidated\..*\.pth")),
    ("litgpt", re.compile(r"lit_model\.pth")),
    ("lit-llama", re.compile(r"(lit-llama|llama-gptq).*\.pth")),
]


@given(st.sets(st.sampled_from(POOL)))
def test_any_repository_gives_one_model_or_an_error(tmp_path_factory: pytest.TempPathFactory, names: set[str]) -> None:
    """The selection has one kind of weights, all that is read from it afterwards, and says how much it left out."""
    try:
        selection = choose_from(names, indexes=INDEXES)
    except HubError:
        return
    assert chosen(selection) == [name for name in sorted(names) if name in set(chosen(selection))]
    weights = {name for name in chosen(selection) if WEIGHTS.fullmatch(name)}
    assert weights
    assert [kind for kind, pattern in KIND_OF if all(pattern.fullmatch(name) for name in weights)] != []
    assert sorted([*chosen(selection), *(name for one in selection.skipped for name in one.names)]) == sorted(names)
    used = read_from(tmp_path_factory.mktemp("selected"), chosen(selection))
    indexes = {name for name in chosen(selection) if name.endswith(".index.json")}
    assert used == (indexes or weights)
    assert all(set(INDEXES[index]) == weights for index in indexes)


# As the pool, but without what a whole folder's weights may be and a selection's never are: adapters, variants.
WHOLE = [*(kind for number, kind in enumerate(KINDS) if number not in (3, 11)), ["config.json"], ["original/x.pth"]]
BROKEN = [shards("part", 3)[:2], ["consolidated.02.pth"], ["lit-llama.pth"], ["pytorch_model-00001-of-00009.bin"]]


@given(st.lists(st.sampled_from([*WHOLE, *BROKEN]), unique_by=tuple))
def test_a_selection_is_read_as_the_whole_repository_would_be(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[list[str]]
) -> None:
    """What is chosen from a folder is the same whether all was downloaded or the selection; errors are the same."""
    names = sorted({name for kind in kinds for name in kind})
    everything = read_from(tmp_path_factory.mktemp("everything"), names)
    try:
        selected = chosen(choose_from(names, indexes=INDEXES))
    except HubError:
        assert everything is None
    else:
        assert read_from(tmp_path_factory.mktemp("selected"), selected) == everything


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        ([*shards("model", 2), "consolidated.safetensors"], shards("model", 2)),
        (
            ["model.fp16.safetensors", "model.fp16-00001-of-00001.safetensors", "model.safetensors"],
            ["model.safetensors"],
        ),
        (shards("model.fp16", 2), shards("model.fp16", 2)),
        (["consolidated.safetensors", "adapter_model.safetensors"], ["consolidated.safetensors"]),
        (
            [f"model-{n}-of-12.safetensors" for n in range(1, 13)],
            [f"model-{n}-of-12.safetensors" for n in range(1, 13)],
        ),
    ],
)
def test_repositories_with_odd_shards(names: list[str], weights: list[str]) -> None:
    """Numbers tell what is whole, with zeros before them or without; a variant is taken only where it is alone."""
    assert chosen(choose_from(names)) == sorted(weights)


SEVERAL = "Choose one of them with --include, and its configuration with it."
NAME_THEM = "Name the files that you want, or choose them with --include."
INCOMPLETE = "Take another revision; or name the files that you want all the same."


@pytest.mark.parametrize(
    ("names", "message", "hint"),
    [
        ([], "org/name has no weights that are taken without being named: no weights at all.", NAME_THEM),
        (["config.json"], "org/name has no weights that are taken without being named: no weights at all.", NAME_THEM),
        (
            ["q4.gguf", "q8.gguf", "README.md", "optimizer.pt"],
            "org/name has no weights that are taken without being named: only GGUF files.",
            NAME_THEM,
        ),
        (
            ["adapter_model.bin", "x.bin", "model.h5", "original/a.pth", "onnx/b.onnx", "c/d.json"],
            "org/name has no weights that are taken without being named: only TensorFlow, torch files and an adapter "
            "and weights in onnx/, original/.",
            NAME_THEM,
        ),
        (
            shards("model", 4)[1:3],
            "org/name is incomplete: the shard 'model-00001-of-00004.safetensors' is missing.\n"
            "org/name is incomplete: the shard 'model-00004-of-00004.safetensors' is missing.",
            INCOMPLETE,
        ),
        (
            ["consolidated.00.pth", "consolidated.02.pth"],
            "org/name is incomplete: the shard 'consolidated.01.pth' is missing.",
            INCOMPLETE,
        ),
        (
            ["model.bf16.safetensors", "model.fp16.safetensors"],
            "org/name has several models: model.bf16.safetensors, model.fp16.safetensors.",
            SEVERAL,
        ),
        (
            ["lit-llama.pth", "llama-gptq.8bit.pth"],
            "org/name has several models: lit-llama.pth, llama-gptq.8bit.pth.",
            SEVERAL,
        ),
    ],
)
def test_repositories_without_one_complete_model(names: list[str], message: str, hint: str) -> None:
    """No weights, a gap in their numbers, or several models: said before anything is downloaded."""
    error = refusal(names)
    assert (error.message, error.hint, error.exit_code) == (message, hint, 4)


def test_a_name_alone_costs_no_memory() -> None:
    """A shard that claims to be one of 999,999,999 is refused with the first ten that are missing."""
    lines = refusal(["model-000000001-of-999999999.safetensors"]).message.splitlines()
    assert len(lines) == 11
    assert lines[0] == "org/name is incomplete: the shard 'model-000000002-of-999999999.safetensors' is missing."
    assert lines[10] == "… and 999999988 more."


def test_promises_of_many_series_cost_no_time() -> None:
    """300 series of 99,999 shards each are refused in the time that their names take."""
    began = perf_counter()
    lines = refusal([f"s{number}-00001-of-99999.safetensors" for number in range(300)]).message.splitlines()
    assert perf_counter() - began < 0.5
    assert lines[0] == "org/name is incomplete: the shard 's0-00002-of-99999.safetensors' is missing."
    assert lines[10] == f"… and {300 * 99_998 - 10} more."
