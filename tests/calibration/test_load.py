from __future__ import annotations

import json
import logging
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import llamaconv
from llamaconv.calibration import CalibrationSet, load_calibration, load_evaluation
from llamaconv.calibration.corpus import read_corpus
from llamaconv.errors import CalibrationError, UsageError
from llamaconv.tokenizer import Tokenizer

MODEL = Path(llamaconv.__file__).parent / "demo" / "model"
BOS = 1
IDS = np.arange(40, dtype=np.int64).reshape(5, 8)


def calibrate(source: object, **changes: Any) -> CalibrationSet:
    """load_calibration with the demo model's facts, unless told otherwise."""
    facts: dict[str, Any] = {"directory": MODEL, "vocab_size": 1024, "max_positions": 2048}
    facts |= {"samples": 3, "seq_len": 16, "seed": 0}
    return load_calibration(None if source is None else str(source), **(facts | changes))


def judge(source: object, **changes: Any) -> CalibrationSet:
    facts: dict[str, Any] = {"directory": MODEL, "vocab_size": 1024, "max_positions": 2048, "seq_len": 16}
    return load_evaluation(None if source is None else str(source), **(facts | changes))


def ids(text: str) -> list[int]:
    return Tokenizer.load(MODEL).encode(text)


def rows(loaded: CalibrationSet) -> list[list[int]]:
    return [sequence.tolist() for sequence in loaded.sequences]


def write_jsonl(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


# Text


def test_the_built_in_corpus_is_the_default() -> None:
    """Without a source the calibration split is shuffled by the seed, tokenized and packed."""
    loaded = calibrate(None, samples=300, seq_len=32, seed=5)
    documents = [document.content for document in read_corpus("calibration")]
    random.Random(5).shuffle(documents)
    whole = [token for text in documents[:9] for token in [BOS, *ids(str(text))]]
    without = [token for row in rows(loaded) for token in row[1:]]
    assert (loaded.name, loaded.tokens, loaded.notes) == ("builtin:calibration", 300 * 32, ())
    # A sequence's own BOS may stand where a document's would, so the text alone is compared.
    assert [t for t in without if t != BOS] == [t for t in whole if t != BOS][: len(without) - without.count(BOS)]


def test_the_built_in_evaluation_is_the_other_split_whole_and_in_order() -> None:
    """Evaluation reads every held-out document in the index's order, and none that calibration reads."""
    loaded = judge(None, seq_len=64)
    whole = [token for document in read_corpus("evaluation") for token in ids(str(document.content))]
    packed = [token for row in rows(loaded) for token in row if token != BOS]
    assert (loaded.name, loaded.notes) == ("builtin:evaluation", ())
    assert packed == whole[: len(packed)]
    assert len(whole) - len(packed) < 2


def test_the_seed_alone_decides_the_order() -> None:
    """The same seed gives the same bytes, another seed another order."""
    one, again, other = (calibrate(None, seed=seed).sha256 for seed in (0, 0, 1))
    assert one == again
    assert one != other


def test_a_seed_means_the_same_order_everywhere(tmp_path: Path) -> None:
    """The order for seed 0 is written down here: another machine or library version must give the same."""
    path = write_jsonl(tmp_path / "a.jsonl", *({"text": letter} for letter in "abcdefgh"))
    (row,) = rows(calibrate(path, seed=0))
    assert row == [token for letter in "ebfcadhg" for token in (BOS, *ids(letter))]


def test_a_text_file_is_packed_to_full_sequences(tmp_path: Path) -> None:
    """One document is cut where a sequence is full; each begins with BOS; the rest is a shorter last one."""
    text = "One quick fox.\n\nTwo lazy dogs; three naïve cats."
    (tmp_path / "fox.txt").write_text(f"\n{text}\n", encoding="utf-8")
    loaded = calibrate(tmp_path / "fox.txt", seq_len=11, samples=9)
    whole = ids(text)
    assert loaded.name == "fox.txt"
    assert rows(loaded) == [[BOS, *whole[i : i + 10]] for i in range(0, len(whole), 10)]
    assert len(loaded.sequences[-1]) < 11


def test_lines_of_jsonl_are_shuffled_for_calibration_and_not_for_evaluation(tmp_path: Path) -> None:
    """Short documents share sequences; evaluation keeps the file's order."""
    path = write_jsonl(tmp_path / "a.jsonl", *({"text": word} for word in ("a", "b", "c", "d")))
    a, b, c, d = (ids(word)[0] for word in "abcd")
    assert rows(judge(path)) == [[BOS, a, BOS, b, BOS, c, BOS, d]]
    order = [a, b, c, d]
    random.Random(7).shuffle(order)
    assert rows(calibrate(path, seed=7)) == [[token for letter in order for token in (BOS, letter)]]
    assert order != [a, b, c, d]


def test_conversations_go_through_the_chat_template_once(tmp_path: Path) -> None:
    """A template that writes BOS itself does not lead to two of them."""
    shutil.copytree(MODEL, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    config = tmp_path / "model" / "tokenizer_config.json"
    template = "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content }}</s>{% endfor %}"
    config.write_text(json.dumps(json.loads(config.read_bytes()) | {"chat_template": template}))
    path = write_jsonl(tmp_path / "a.jsonl", {"messages": [{"role": "user", "content": "Why?"}]})
    assert rows(judge(path, directory=tmp_path / "model")) == [[BOS, *ids("user: Why?"), 2]]


def test_a_conversation_without_a_template_names_its_line(tmp_path: Path) -> None:
    """The error says which line needs the chat template that is not there."""
    path = write_jsonl(tmp_path / "a.jsonl", {"text": "fine"}, {"messages": [{"role": "user", "content": "a"}]})
    with pytest.raises(CalibrationError) as caught:
        calibrate(path)
    assert str(caught.value) == (
        f"a.jsonl, line 2: {MODEL}: its tokenizer has no chat template, and `messages` need one."
    )


def test_texts_left_out_are_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Lines without text are counted in a note, which is logged too."""
    path = write_jsonl(tmp_path / "a.jsonl", {"text": ""}, {"text": "a b c"}, {"text": " "})
    note = "a.jsonl: 2 of 3 documents have no text and were left out"
    assert judge(path).notes == (note,)
    assert caplog.record_tuples == [("llamaconv.calibration.load", logging.WARNING, note)]


@pytest.mark.parametrize(("max_positions", "length"), [(None, 2048), (32768, 2048), (2048, 2048), (640, 640)], ids=str)
def test_the_default_length_is_2048_or_what_the_model_takes(max_positions: int | None, length: int) -> None:
    """Nobody has to know the model's maximum to stay below it."""
    loaded = calibrate(None, samples=2, seq_len=None, max_positions=max_positions)
    assert [len(sequence) for sequence in loaded.sequences] == [length, length]


def test_a_length_above_the_models_maximum_is_refused() -> None:
    """Positions that the model was not built for are not calibrated on."""
    with pytest.raises(CalibrationError) as caught:
        calibrate(None, seq_len=4096)
    assert str(caught.value) == "the sequence length 4,096 is above the model's maximum of 2,048."
    assert (caught.value.hint, caught.value.exit_code) == ("Use --seq-len 2048 or less.", 3)


def test_a_length_without_room_for_two_tokens_is_refused() -> None:
    """With BOS, three tokens are the least."""
    with pytest.raises(UsageError) as caught:
        calibrate(None, seq_len=2)
    assert str(caught.value) == "the sequence length is 2; at least 3 is needed."
    assert [len(sequence) for sequence in calibrate(None, seq_len=3).sequences] == [3, 3, 3]


def test_fewer_than_one_sample_is_refused() -> None:
    """None of anything is not a calibration."""
    with pytest.raises(UsageError) as caught:
        calibrate(None, samples=0)
    assert str(caught.value) == "the samples asked for are 0; at least 1 is needed."


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    """One token predicts nothing."""
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(CalibrationError) as caught:
        calibrate(tmp_path / "a.txt")
    assert str(caught.value) == "a.txt: too little text: fewer than 2 tokens."


def test_fewer_tokens_than_asked_for_are_said_plainly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The note has what was asked for and what there is; quantization goes on."""
    (tmp_path / "a.txt").write_text("a b c d")
    note = "asked for 262,144 tokens (128 x 2,048), the calibration text has 5; quantization goes on with these"
    assert calibrate(tmp_path / "a.txt", samples=128, seq_len=None).notes == (note,)
    assert caplog.record_tuples == [("llamaconv.calibration.load", logging.WARNING, note)]
    assert judge(tmp_path / "a.txt", samples=2).notes == (
        "asked for 32 tokens (2 x 16), the evaluation text has 5; evaluation goes on with these",
    )
    assert judge(tmp_path / "a.txt").notes == ()


def test_of_a_long_text_no_more_is_tokenized_than_needed(tmp_path: Path) -> None:
    """A text far longer than its use gives the same first sequences as its beginning, and in the same time."""
    sentence = "Number nine, the seventh naïve fox; (it jumped). "
    (tmp_path / "long.txt").write_text(sentence * 400_000, encoding="utf-8")
    (tmp_path / "short.txt").write_text(sentence * 40, encoding="utf-8")
    assert rows(calibrate(tmp_path / "long.txt")) == rows(calibrate(tmp_path / "short.txt"))


def test_of_a_text_with_few_tokens_enough_is_tokenized(tmp_path: Path) -> None:
    """Where the beginning has too few tokens for its length, the rest is tokenized as well."""
    (tmp_path / "model").mkdir()
    tokenizer = json.loads((MODEL / "tokenizer.json").read_bytes())
    strip = {"type": "Replace", "pattern": {"String": "x"}, "content": ""}
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(tokenizer | {"normalizer": strip}))
    (tmp_path / "a.txt").write_text("x" * 10_000 + "abc" * 40)
    loaded = calibrate(tmp_path / "a.txt", samples=2, directory=tmp_path / "model")
    assert rows(loaded) == rows(calibrate(write_text(tmp_path / "b.txt", "abc" * 40), samples=2))


def write_text(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    """An id that the model has no embedding for is found after tokenizing, too."""
    path = write_text(tmp_path / "a.txt", "é")
    (token, *_) = sorted(ids("é"), reverse=True)
    with pytest.raises(CalibrationError) as caught:
        calibrate(path, vocab_size=token)
    assert str(caught.value) == (
        f"a.txt: the tokenizer makes token {token:,} of it; the model's vocabulary is 0 to {token - 1:,}."
    )
    assert caught.value.hint == f"The tokenizer in {MODEL} does not belong to this model."


def test_text_without_a_tokenizer_is_refused_and_tokens_are_not(tmp_path: Path) -> None:
    """Only text needs a tokenizer; a folder of weights alone calibrates on tokens."""
    with pytest.raises(CalibrationError, match="no tokenizer is here, and text needs one"):
        calibrate(None, directory=tmp_path)
    np.save(tmp_path / "a.npy", IDS)
    assert calibrate(tmp_path / "a.npy", directory=tmp_path).tokens == 24


# Tokens


@pytest.mark.parametrize("name", ["a.npy", "a.NPY", "a.safetensors"])
def test_token_arrays_are_used_as_they_are(tmp_path: Path, name: str) -> None:
    """The first rows, without BOS put before them, without shuffling, without cutting."""
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file({"ids": IDS}, path)
    else:
        with path.open("wb") as file:
            np.save(file, IDS)
    loaded = calibrate(path, seq_len=None, seed=3)
    assert rows(loaded) == IDS[:3].tolist()
    assert (loaded.name, loaded.notes) == (name, ())
    assert rows(judge(path, seq_len=None)) == IDS.tolist()
    assert rows(judge(path, seq_len=None, samples=2)) == IDS[:2].tolist()


def test_fewer_rows_than_samples_are_said_plainly(tmp_path: Path) -> None:
    """What was asked for is counted in rows of the file's length."""
    np.save(tmp_path / "a.npy", IDS)
    assert calibrate(tmp_path / "a.npy", samples=128, seq_len=None).notes == (
        "asked for 1,024 tokens (128 x 8), the calibration text has 40; quantization goes on with these",
    )


def test_a_sequence_length_does_not_apply_to_token_arrays(tmp_path: Path) -> None:
    """Rows are not cut, and that is said."""
    np.save(tmp_path / "a.npy", IDS)
    loaded = calibrate(tmp_path / "a.npy", seq_len=4)
    assert rows(loaded) == IDS[:3].tolist()
    assert loaded.notes == (
        "a.npy: token arrays are used as they are: its rows have 8 tokens, the sequence length 4 does not apply",
    )


def test_rows_longer_than_the_model_takes_are_refused(tmp_path: Path) -> None:
    """Rows are used as they are, so too long ones cannot be used."""
    np.save(tmp_path / "a.npy", IDS)
    with pytest.raises(CalibrationError) as caught:
        calibrate(tmp_path / "a.npy", max_positions=7, seq_len=None)
    assert str(caught.value) == f"{tmp_path / 'a.npy'}: its rows have 8 tokens, the model takes 7 at most."
    assert calibrate(tmp_path / "a.npy", max_positions=8).tokens == 24


def test_ids_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    """Row, column and id are named; the exit code is that of bad input."""
    np.save(tmp_path / "a.npy", IDS)
    with pytest.raises(CalibrationError) as caught:
        calibrate(tmp_path / "a.npy", vocab_size=23)
    assert str(caught.value) == (
        f"{tmp_path / 'a.npy'}: row 2, column 7: 23 is not a token of the model, whose vocabulary is 0 to 22."
    )
    assert caught.value.exit_code == 3


def test_rows_of_one_token_judge_nothing(tmp_path: Path) -> None:
    """Evaluation needs a token to predict; a Hessian does not."""
    np.save(tmp_path / "a.npy", IDS[:, :1])
    with pytest.raises(CalibrationError) as caught:
        judge(tmp_path / "a.npy")
    assert str(caught.value) == f"{tmp_path / 'a.npy'}: its rows have 1 token, and none to predict from it."
    assert calibrate(tmp_path / "a.npy", seq_len=None).tokens == 3


# Files


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """A name that is not there, and one that is a folder."""
    for path, reason in ((tmp_path / "a.txt", "does not exist"), (tmp_path, "is not a file")):
        with pytest.raises(CalibrationError) as caught:
            calibrate(path)
        assert (str(caught.value), caught.value.exit_code) == (f"{path}: {reason}.", 3)


@pytest.mark.parametrize("name", ["a.csv", "a", "a.json", "a.npz", "a.pt"])
def test_other_kinds_of_files_are_refused(tmp_path: Path, name: str) -> None:
    """What a file holds is told by its name's end, and only four are known."""
    path = write_text(tmp_path / name, "text")
    with pytest.raises(CalibrationError) as caught:
        judge(path)
    assert str(caught.value) == f"{path}: not a kind of file that holds text or tokens."
    assert caught.value.hint == "Its name must end in .txt, .jsonl, .npy or .safetensors."
