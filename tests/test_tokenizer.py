from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import llamaconv
from llamaconv.errors import CalibrationError, UnsupportedError
from llamaconv.tokenizer import Tokenizer

MODEL = Path(llamaconv.__file__).parent / "demo" / "model"
TEXT = "def café():\n    return 'naïve'  # 日本"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}{{ raise_exception('unknown role: ' + message.role) }}{% endif %}"
    "[{{ message.role }}]{{ message.content }}</s>{% endfor %}"
)


def copy(target: Path, *names: str) -> Path:
    target.mkdir(exist_ok=True)
    for name in names or ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / name, target)
    return target


def patch(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def processor(*parts: str) -> dict[str, Any]:
    """A post-processor that puts special tokens around a text ("$": the text)."""
    pieces = [
        {"Sequence": {"id": "A", "type_id": 0}} if part == "$" else {"SpecialToken": {"id": part, "type_id": 0}}
        for part in parts
    ]
    ids = {"<s>": 1, "</s>": 2}
    special = {part: {"id": part, "ids": [ids[part]], "tokens": [part]} for part in parts if part != "$"}
    return {"type": "TemplateProcessing", "single": pieces, "pair": [*pieces, *pieces], "special_tokens": special}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return copy(tmp_path / "checkpoint")


@pytest.fixture
def fast(tmp_path: Path) -> Path:
    return copy(tmp_path / "fast", "tokenizer.json")


def test_a_text_is_encoded_without_special_tokens(directory: Path, fast: Path) -> None:
    """transformers and the tokenizers library give the same ids, and neither puts BOS before them."""
    ids = Tokenizer.load(directory).encode(TEXT)
    assert ids == Tokenizer.load(fast).encode(TEXT)
    assert ids[:2] != [1, 1]
    assert 1 not in ids
    assert Tokenizer.load(directory).encode("") == []


def test_a_text_longer_than_the_model_takes_is_encoded_whole(directory: Path, fast: Path) -> None:
    """Neither the maximum in tokenizer_config.json nor truncation and padding set in tokenizer.json cut or fill it."""
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    padding |= {"pad_type_id": 0, "pad_token": "<unk>"}
    long = "a, b; " * 2000
    whole = Tokenizer.load(fast).encode(long)
    assert len(whole) > 2048
    for place in (directory, fast):
        patch(place / "tokenizer.json", truncation=truncation, padding=padding)
        assert Tokenizer.load(place).encode(long) == whole
        assert len(Tokenizer.load(place).encode("a")) == 1


@pytest.mark.parametrize(
    ("parts", "prefix"),
    [(["<s>", "$"], [1]), (["$"], []), (["$", "</s>"], []), (["<s>", "</s>", "$", "</s>"], [1, 2])],
)
def test_the_prefix_is_what_the_tokenizer_puts_before_a_text(fast: Path, parts: list[str], prefix: list[int]) -> None:
    """BOS, nothing, or several tokens; what it puts after a text is no part of it."""
    patch(fast / "tokenizer.json", post_processor=processor(*parts))
    assert Tokenizer.load(fast).prefix() == prefix


def test_the_prefix_is_asked_of_transformers_too(directory: Path) -> None:
    """With BOS as the model was trained, and without where the tokenizer adds none."""
    assert Tokenizer.load(directory).prefix() == [1]
    patch(directory / "tokenizer.json", post_processor=None)
    assert Tokenizer.load(directory).prefix() == []


def test_a_tokenizer_that_makes_nothing_of_any_text_is_refused(fast: Path) -> None:
    """Without a text that keeps its tokens there is no telling where the prefix ends."""
    patch(fast / "tokenizer.json", normalizer={"type": "Replace", "pattern": {"Regex": "."}, "content": ""})
    with pytest.raises(CalibrationError) as caught:
        Tokenizer.load(fast).prefix()
    assert str(caught.value) == (
        f"{fast}: cannot tell what its tokenizer puts before a sequence (no test text keeps its tokens)."
    )


def test_messages_go_through_the_chat_template(directory: Path) -> None:
    """The template's text comes back, special tokens written out, without a prompt for a next turn."""
    patch(directory / "tokenizer_config.json", chat_template=TEMPLATE)
    tokenizer = Tokenizer.load(directory)
    text = tokenizer.chat([{"role": "user", "content": "Hé?"}, {"role": "assistant", "content": "Ho."}])
    assert text == "<s>[user]Hé?</s>[assistant]Ho.</s>"
    assert tokenizer.encode(text)[0] == 1
    assert tokenizer.encode(text).count(2) == 2


def test_a_chat_template_in_a_file_of_its_own_is_found(fast: Path) -> None:
    """chat_template.jinja is read without a tokenizer_config.json, too."""
    copy(fast, "config.json")
    (fast / "chat_template.jinja").write_text("{% for m in messages %}<{{ m.content }}>{% endfor %}")
    assert Tokenizer.load(fast).chat([{"role": "user", "content": "a"}]) == "<a>"


@pytest.mark.parametrize("only", [True, False])
def test_messages_without_a_chat_template_are_refused(directory: Path, fast: Path, only: bool) -> None:
    """No template is guessed."""
    place = fast if only else directory
    with pytest.raises(CalibrationError) as caught:
        Tokenizer.load(place).chat([{"role": "user", "content": "a"}])
    assert str(caught.value) == f"{place}: its tokenizer has no chat template, and `messages` need one."
    assert caught.value.hint == "Give the conversations as `text`, written out as the model expects them."


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (TEMPLATE, "unknown role: system"),
        ("{{ messages[7].content }}", "list object has no element 7"),
        ("{% if %}", "Expected an expression, got 'end of statement block'"),
        ("{{ 1 // 0 }}", "integer division or modulo by zero"),
    ],
)
def test_a_template_that_refuses_gives_its_reason(directory: Path, template: str, reason: str) -> None:
    """Whatever a template raises, on purpose or not, is the reason in one error."""
    patch(directory / "tokenizer_config.json", chat_template=template)
    with pytest.raises(CalibrationError) as caught:
        Tokenizer.load(directory).chat([{"role": "system", "content": "a"}])
    assert str(caught.value) == f"the chat template refuses the messages ({reason})."


@pytest.mark.parametrize("files", [[], ["config.json", "model.safetensors"]])
def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path, files: list[str]) -> None:
    """Weights alone tokenize nothing; the hint says how to do without a tokenizer."""
    for file in files:
        (tmp_path / file).write_text("{}")
    with pytest.raises(CalibrationError) as caught:
        Tokenizer.load(tmp_path)
    assert str(caught.value) == f"{tmp_path}: no tokenizer is here, and text needs one."
    assert caught.value.hint == (
        "Put the model's tokenizer files there, or give tokens instead of text: "
        "--calibration TOKENS.npy (quantize), --text TOKENS.npy (evaluate)."
    )
    assert caught.value.exit_code == 3


def test_a_folder_that_is_not_there_is_not_looked_for_elsewhere(tmp_path: Path) -> None:
    """An absent path is never taken for the name of a repository."""
    with pytest.raises(CalibrationError, match="no tokenizer is here"):
        Tokenizer.load(tmp_path / "owner" / "name")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("data", ["", "{", "[1]"])
def test_a_damaged_tokenizer_is_refused(directory: Path, name: str, data: str) -> None:
    """The folder is named with the reader's reason; nothing else is tried."""
    (directory / name).write_text(data)
    with pytest.raises(CalibrationError) as caught:
        Tokenizer.load(directory)
    assert str(caught.value).startswith(f"{directory}: its tokenizer cannot be read (")


def test_a_tokenizer_that_is_code_is_never_run(directory: Path, tmp_path: Path) -> None:
    """auto_map names a class in the checkpoint's own code: the code is not imported, and the error says why."""
    (directory / "tokenization_x.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    auto_map = {"AutoTokenizer": ["tokenization_x.X", None]}
    patch(directory / "tokenizer_config.json", auto_map=auto_map, tokenizer_class="X")
    with pytest.raises(UnsupportedError) as caught:
        Tokenizer.load(directory)
    assert str(caught.value) == (
        f"{directory}: its tokenizer is code that comes with the checkpoint (auto_map), and such code is never run."
    )
    assert not (tmp_path / "ran").exists()


OFFLINE = """
import sys
from pathlib import Path

def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        sys.exit(f"{event}: {arguments}")

sys.addaudithook(watch)
import llamaconv.calibration
assert "transformers" not in sys.modules
from llamaconv.tokenizer import Tokenizer
print(Tokenizer.load(Path(sys.argv[1])).prefix())
"""


def test_nothing_is_fetched_and_transformers_comes_late(directory: Path) -> None:
    """Loading a tokenizer opens no connection; importing our modules leaves transformers out."""
    command = [sys.executable, "-c", OFFLINE, str(directory)]
    root = Path(llamaconv.__file__).parents[1]
    child = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=120, check=False)
    assert (child.stdout, child.returncode) == ("[1]\n", 0), child.stderr


def test_a_long_reason_is_cut(directory: Path) -> None:
    """A reason of thousands of characters, which some libraries give, is cut at a blank."""
    patch(directory / "tokenizer_config.json", chat_template="{{ raise_exception('word ' * 1000) }}")
    with pytest.raises(CalibrationError) as caught:
        Tokenizer.load(directory).chat([{"role": "user", "content": "a"}])
    assert str(caught.value) == f"the chat template refuses the messages ({'word ' * 40}…)."
