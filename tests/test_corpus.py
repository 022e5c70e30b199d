"""The built-in calibration corpus as data: what it must contain, and what it must not fall below."""

from __future__ import annotations

import hashlib
import json
import lzma
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

CORPUS = Path(__file__).parents[1] / "calibration"
INDEX: dict[str, Any] = json.loads((CORPUS / "index.json").read_text(encoding="utf-8"))
DOCUMENTS: list[dict[str, Any]] = INDEX["documents"]
DATA: dict[str, bytes] = {entry["file"]: (CORPUS / entry["file"]).read_bytes() for entry in DOCUMENTS}
TEXT: dict[str, str] = {file: data.decode("utf-8") for file, data in DATA.items()}
ENGLISH = ("dialogue", "prose", "questions")

# Measured on the validation text of WikiText-2 (raw, 1,121,681 bytes of UTF-8), with Python's zlib and lzma:
# bytes by compressed bytes. Ratios grow with size, so its first 450,000 bytes are compared with all of the
# corpus, which is larger, and its first 150,000 with the corpus's English, which is larger too.
WIKITEXT_450K = {"zlib": 2.983, "lzma": 3.492}
WIKITEXT_150K = {"zlib": 2.909, "lzma": 3.240}
# Of all runs of eight words (split at blanks), how many occur more than once: the whole file, its lowest figure
# (0.01259 in the first 450,000 bytes).
WIKITEXT_REPEATED = 0.01095
# Bits (zlib -9) per character of the most repetitive of its pieces of 6,000 bytes; the median is 3.41. By
# character, because UTF-8 spends up to three bytes on one and compression takes them back.
WIKITEXT_BITS = 2.60
BITS_FROM = 4_000  # bytes of a document from which the comparison is fair

# Script of each language, as Unicode's names of its letters begin.
SCRIPTS = {
    "ar": ("ARABIC",),
    "bn": ("BENGALI",),
    "de": ("LATIN",),
    "el": ("GREEK",),
    "es": ("LATIN",),
    "fr": ("LATIN",),
    "he": ("HEBREW",),
    "hi": ("DEVANAGARI",),
    "ja": ("HIRAGANA", "KATAKANA", "CJK"),
    "ko": ("HANGUL",),
    "ru": ("CYRILLIC",),
    "th": ("THAI",),
    "uk": ("CYRILLIC",),
    "zh": ("CJK",),
}


def ratios(data: bytes) -> dict[str, float]:
    return {"zlib": len(data) / len(zlib.compress(data, 9)), "lzma": len(data) / len(lzma.compress(data))}


def eight_words(text: str) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[i : i + 8]) for i in range(len(words) - 7)]


def joined(kinds: Iterable[str]) -> bytes:
    return b"".join(DATA[entry["file"]] for entry in DOCUMENTS if entry["kind"] in kinds)


def test_the_index_lists_exactly_the_documents() -> None:
    """Every file in a kind's folder is in the index once, in order, under its kind; nothing else lies about."""
    files = sorted(path.relative_to(CORPUS).as_posix() for path in CORPUS.rglob("*") if path.is_file())
    assert [entry["file"] for entry in DOCUMENTS] == [file for file in files if "/" in file]
    assert [file for file in files if "/" not in file] == ["README.md", "index.json"]
    assert all(entry["file"].split("/")[0] == entry["kind"] for entry in DOCUMENTS)
    assert INDEX["licence"] == "Apache-2.0"


def test_the_index_matches_every_byte() -> None:
    """Sizes and SHA-256 are the files' own, and the digest over the lot is that of sha256sum's output."""
    for entry in DOCUMENTS:
        data = DATA[entry["file"]]
        assert (entry["bytes"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest()), entry["file"]
    lines = "".join(f"{entry['sha256']}  {entry['file']}\n" for entry in DOCUMENTS)
    assert INDEX["sha256"] == hashlib.sha256(lines.encode()).hexdigest(), "run tools/index_calibration.py"


def test_the_readme_has_the_figures_of_the_index() -> None:
    """The README's table and digest are those of these documents."""
    readme = (CORPUS / "README.md").read_text(encoding="utf-8")
    assert f"Digest: `{INDEX['sha256']}`" in readme, "run tools/index_calibration.py"
    for kind in sorted({entry["kind"] for entry in DOCUMENTS}):
        of_kind = [entry for entry in DOCUMENTS if entry["kind"] == kind]
        assert f"| {kind} | {len(of_kind)} | {sum(entry['bytes'] for entry in of_kind):,} |" in readme


def test_there_is_enough_of_it() -> None:
    """At least 300 KB in at least 60 documents are calibrated on, and none dominates."""
    of_calibration = [entry["bytes"] for entry in DOCUMENTS if entry["split"] == "calibration"]
    assert sum(of_calibration) >= 300_000
    assert len(of_calibration) >= 60
    assert max(entry["bytes"] for entry in DOCUMENTS) < 10_000


def test_every_kind_is_there_in_both_splits() -> None:
    """Each kind has at least two documents to calibrate on and one to judge by."""
    kinds = {"c", "dialogue", "json", "languages", "markup", "mathematics", "prose", "python", "questions"}
    kinds |= {"shell", "sql", "tables"}
    counts = Counter((entry["split"], entry["kind"]) for entry in DOCUMENTS)
    assert {entry["kind"] for entry in DOCUMENTS} == kinds
    assert all(counts["calibration", kind] >= 2 and counts["evaluation", kind] >= 1 for kind in kinds)


def test_about_every_sixth_document_is_held_out() -> None:
    """60 to 80 KB to judge by, in at least three scripts beside Latin."""
    held = [entry for entry in DOCUMENTS if entry["split"] == "evaluation"]
    assert 60_000 <= sum(entry["bytes"] for entry in held) <= 80_000
    assert 5 <= len(DOCUMENTS) / len(held) <= 7
    assert len({SCRIPTS[entry["language"]] for entry in held if entry["kind"] == "languages"}) >= 4


def test_languages_are_written_in_their_scripts() -> None:
    """At least eight languages in at least eight scripts; four of five letters of a document are in its language's."""
    of_language = [entry for entry in DOCUMENTS if entry["kind"] == "languages"]
    assert len({entry["language"] for entry in of_language}) >= 8
    assert len({SCRIPTS[entry["language"]] for entry in of_language}) >= 8
    for entry in of_language:
        letters = [character for character in TEXT[entry["file"]] if character.isalpha()]
        own = [c for c in letters if unicodedata.name(c).startswith(SCRIPTS[entry["language"]])]
        assert len(own) >= 0.8 * len(letters), entry["file"]


@pytest.mark.parametrize("file", TEXT)
def test_a_document_is_clean_text(file: str) -> None:
    """Valid UTF-8 without control or unassigned characters, replacement marks or CR; it ends in one newline."""
    text = TEXT[file]
    strange = {c for c in text if unicodedata.category(c) in ("Cc", "Cn", "Co", "Cs") and c not in "\n\t"}
    assert not strange
    assert "\ufffd" not in text
    assert "\ufeff" not in text
    assert text == text.strip("\n") + "\n"


@pytest.mark.parametrize("file", TEXT)
def test_a_document_spells_no_special_token(file: str) -> None:
    """Nothing in it is what common tokenizers take for BOS, EOS, padding or the marks of a chat."""
    marks = (
        "<s>",
        "</s>",
        "<unk>",
        "<pad>",
        "<bos>",
        "<eos>",
        "<|",
        "|>",
        "[INST]",
        "[/INST]",
        "<<SYS>>",
        "<start_of_turn>",
    )
    assert [mark for mark in marks if mark in TEXT[file]] == []


@pytest.mark.parametrize("file", TEXT)
def test_a_document_is_no_filler(file: str) -> None:
    """It takes at least as many bits per character as the most repetitive passage of WikiText-2."""
    assert len(DATA[file]) >= BITS_FROM
    assert 8 * len(zlib.compress(DATA[file], 9)) / len(TEXT[file]) >= WIKITEXT_BITS


def test_the_corpus_compresses_no_better_than_wikitext() -> None:
    """Neither all of it nor its English alone is as repetitive as a somewhat smaller piece of WikiText-2."""
    for data, size, limits in (
        (b"".join(DATA.values()), 450_000, WIKITEXT_450K),
        (joined(ENGLISH), 150_000, WIKITEXT_150K),
    ):
        assert len(data) >= size
        assert all(ratio <= limits[name] for name, ratio in ratios(data).items()), ratios(data)


def test_the_corpus_repeats_itself_no_more_than_wikitext() -> None:
    """Runs of eight words that occur again, in one document or in two, are no larger share than in WikiText-2."""
    runs = {file: eight_words(text) for file, text in TEXT.items()}
    counts = Counter(run for of_file in runs.values() for run in of_file)
    repeated = {file: sum(counts[run] > 1 for run in of_file) for file, of_file in runs.items()}
    assert sum(repeated.values()) / sum(counts.values()) <= WIKITEXT_REPEATED
    worst = {file: count / len(runs[file]) for file, count in repeated.items() if runs[file]}
    assert max(worst.values()) <= 5 * WIKITEXT_REPEATED, max(worst, key=lambda file: worst[file])


def test_no_document_is_there_twice() -> None:
    """No two documents are the same, and no two share a line of 60 characters or more."""
    assert len({" ".join(text.split()) for text in TEXT.values()}) == len(TEXT)
    lines = [(line.strip(), file) for file, text in TEXT.items() for line in set(text.split("\n"))]
    shared = Counter(line for line, _ in set(lines) if len(line) >= 60)
    assert [line for line, count in shared.items() if count > 1] == []
