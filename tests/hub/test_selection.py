from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from huggingface_hub.utils import filter_repo_objects
from hypothesis import given
from hypothesis import strategies as st

from llamaconv.errors import CheckpointError, HubError, LlamaconvError, UsageError
from llamaconv.hub.selection import Selection, select
from llamaconv.sources.directory import choose
from tests.hub.listings import listing_of


def shards(stem: str, count: int, suffix: str = ".safetensors", first: int = 1) -> list[str]:
    return [f"{stem}-{number:05}-of-{count:05}{suffix}" for number in range(first, first + count)]


SAFETENSORS_INDEX, TORCH_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"

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
AROUND += ["additional_chat_templates/tool_use.jinja", "vocab.txt", "merges.txt", "x.tiktoken", "USE_POLICY.md"]
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


def chosen(selection: Selection) -> list[str]:
    return [file.name for file in selection.chosen]


def refusal(names: Sequence[str], *arguments: Sequence[str]) -> LlamaconvError:
    with pytest.raises(LlamaconvError) as caught:
        select(listing_of(names), *arguments)
    return caught.value


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
    selection = select(listing_of(repository))
    general = {"params.json", "model_config.yaml"} & repository
    assert chosen(selection) == sorted({*KINDS[first], *AROUND, *general})
    used = {name for name in KINDS[first] if name.endswith((".safetensors", ".bin", ".pth"))}
    index = {name for name in KINDS[first] if name.endswith(".index.json")}
    assert read_from(tmp_path, chosen(selection)) == (index or used)


def test_what_is_skipped_is_said_in_a_few_lines() -> None:
    """Each file beside the model has a reason; several with the same are counted."""
    names = ["config.json", "model.safetensors", *BESIDE, "a.png", "onnx/a.onnx", "onnx/b/c.json"]
    assert select(listing_of(names)).skipped == (
        ("2 files (README.md, a.png)", "not needed to use the model"),
        ("2 files (adapter_config.json, adapter_model.safetensors)", "an adapter"),
        ("additional_chat_templates/README.md", "not part of the model at the top"),
        ("2 files in onnx/", "not part of the model at the top"),
        ("original/consolidated.00.pth", "not part of the model at the top"),
        ("2 files (model.gguf, tf_model.h5.index.json)", "other weights"),
        ("optimizer.pt", "the state of a training"),
    )
    folders = [f"checkpoint-{number}/model.safetensors" for number in range(5)]
    many = select(listing_of(["model.safetensors", *folders, *(f"{letter}.gguf" for letter in "abcd")]))
    assert many.skipped == (
        ("4 files (a.gguf, b.gguf, c.gguf and 1 more)", "other weights"),
        ("5 files in 5 folders", "not part of the model at the top"),
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
        selection = select(listing_of(names))
    except HubError:
        return
    assert chosen(selection) == [name for name in sorted(names) if name in set(chosen(selection))]
    weights = {name for name in chosen(selection) if WEIGHTS.fullmatch(name)}
    assert weights
    assert [kind for kind, pattern in KIND_OF if all(pattern.fullmatch(name) for name in weights)] != []
    left_out = sum(int(match[1]) if (match := re.match(r"(\d+) files ", what)) else 1 for what, _ in selection.skipped)
    assert left_out + len(selection.chosen) == len(names)
    used = read_from(tmp_path_factory.mktemp("selected"), chosen(selection))
    indexes = {name for name in chosen(selection) if name.endswith(".index.json")}
    assert used == (indexes or weights)


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
        selected = chosen(select(listing_of(names)))
    except HubError:
        assert everything is None
    else:
        assert read_from(tmp_path_factory.mktemp("selected"), selected) == everything


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        ([SAFETENSORS_INDEX, "model.safetensors"], [SAFETENSORS_INDEX, "model.safetensors"]),
        ([SAFETENSORS_INDEX, "model.safetensors", *shards("model", 2)], [SAFETENSORS_INDEX, *shards("model", 2)]),
        ([SAFETENSORS_INDEX, *shards("model", 2, first=0)], [SAFETENSORS_INDEX, *shards("model", 2, first=0)]),
        ([SAFETENSORS_INDEX, *shards("m", 2)], [SAFETENSORS_INDEX, *shards("m", 2)]),
        ([SAFETENSORS_INDEX, *shards("model", 2), *shards("model", 3)[1:]], [SAFETENSORS_INDEX, *shards("model", 2)]),
        ([SAFETENSORS_INDEX, "pytorch_model.bin"], ["pytorch_model.bin"]),
        ([TORCH_INDEX, "pytorch_model.bin", "ggml.bin"], [TORCH_INDEX, "pytorch_model.bin"]),
        ([TORCH_INDEX, "x.bin", "lit_model.pth"], ["lit_model.pth"]),
        ([*shards("model", 2), "consolidated.safetensors"], shards("model", 2)),
        (
            ["model.fp16.safetensors", "model.fp16-00001-of-00001.safetensors", "model.safetensors"],
            ["model.safetensors"],
        ),
        (shards("model.fp16", 2), shards("model.fp16", 2)),
        (["consolidated.safetensors", "adapter_model.safetensors"], ["consolidated.safetensors"]),
    ],
)
def test_repositories_with_odd_shards(names: list[str], weights: list[str]) -> None:
    """An index goes with the shards it can mean, counted from one or from zero; a variant only where it is alone."""
    assert chosen(select(listing_of(names))) == sorted(weights)


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
            [TORCH_INDEX, *shards("pytorch_model", 3, ".bin", first=0)[:2]],
            "org/name is incomplete: the shard 'pytorch_model-00002-of-00003.bin' is missing.",
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
    assert lines[10] == "… and 99989 more."


REPOSITORY = ["README.md", "a/b/c.json", "a/d.txt", "ab.json", "config.json"]


def test_named_files_are_what_is_chosen() -> None:
    """Files are taken by name, folders with all that is below them, each once; the others were not asked for."""
    selection = select(listing_of(REPOSITORY), ["config.json", "a/", "a/d.txt", "config.json"])
    assert chosen(selection) == ["a/b/c.json", "a/d.txt", "config.json"]
    assert selection.skipped == (("2 files (README.md, ab.json)", "not asked for"),)


def test_unknown_names_stand_in_one_error() -> None:
    """Each name that is not there has its line, with the nearest name that is; a folder must end in a slash."""
    error = refusal(REPOSITORY, ["confg.json", "a/b", "zzz", "config.json", "ab/", "zzz"])
    assert error.message == (
        "org/name has no 'confg.json': did you mean 'config.json'?\n"
        "org/name has no 'a/b': did you mean 'a/b/'?\n"
        "org/name has no 'zzz'.\n"
        "org/name has no 'ab/': did you mean 'a/b/'?"
    )
    assert error.hint == "It has README.md, a/b/c.json, a/d.txt and 2 more."
    assert error.exit_code == 4
    many = refusal([], [f"x{number}" for number in range(12)])
    assert many.message.splitlines()[9:] == ["org/name has no 'x9'.", "… and 2 more."]
    assert many.hint == "It has no files."


PATTERNS = st.lists(st.sampled_from(["*", "*.json", "a/", "a/*", "*b*", "[ab]*", "?onfig.json", "README.md", "A/"]))


@given(PATTERNS, PATTERNS)
def test_patterns_are_those_of_huggingface_hub(include: list[str], exclude: list[str]) -> None:
    """What patterns choose is what huggingface_hub would download with them."""
    theirs = list(filter_repo_objects(sorted(REPOSITORY), allow_patterns=include or None, ignore_patterns=exclude))
    try:
        selection = select(listing_of(REPOSITORY), (), include or ["*"], exclude)
    except UsageError:
        assert not theirs or "A/" in include
    else:
        assert chosen(selection) == theirs


def test_patterns_and_what_they_leave_out(caplog: pytest.LogCaptureFixture) -> None:
    """The reason tells what was excluded from what was not asked for; an idle pattern of --exclude is said."""
    selection = select(listing_of(REPOSITORY), (), ["*.json"], ["a/", "*.png"])
    assert chosen(selection) == ["ab.json", "config.json"]
    assert selection.skipped == (("2 files (README.md, a/d.txt)", "not asked for"), ("a/b/c.json", "excluded"))
    assert caplog.messages == ["org/name has no file that matches '*.png': it excludes nothing"]
    assert chosen(select(listing_of(REPOSITORY), (), (), ["*.json"])) == ["README.md", "a/d.txt"]


@pytest.mark.parametrize(
    ("names", "arguments", "message", "hint"),
    [
        (
            REPOSITORY,
            (["config.json"], ["*"], []),
            "Both files and patterns were given.",
            "Name the files, or use --include and --exclude.",
        ),
        (
            REPOSITORY,
            ([], ["*.bin", "*.json", "B/"], []),
            "org/name has no file that matches '*.bin'.\norg/name has no file that matches 'B/'.",
            "It has README.md, a/b/c.json, a/d.txt and 2 more.",
        ),
        ([], ([], ["*"], []), "org/name has no file that matches '*'.", "It has no files."),
        (REPOSITORY, ([], [], ["*"]), "No file of org/name is left to download.", "Leave out a pattern of --exclude."),
        ([], ([], [], ["*"]), "No file of org/name is left to download.", "It has no files."),
    ],
)
def test_patterns_that_choose_nothing(
    names: list[str], arguments: tuple[list[str], list[str], list[str]], message: str, hint: str
) -> None:
    """Patterns that contradict names, match nothing, or leave nothing are the caller's error."""
    error = refusal(names, *arguments)
    assert (error.message, error.hint, error.exit_code) == (message, hint, 2)
