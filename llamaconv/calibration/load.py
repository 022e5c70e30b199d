"""From what the user names to token sequences: choose the source, shuffle, tokenize, pack."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llamaconv.calibration.corpus import Split, read_corpus
from llamaconv.calibration.packing import LEAST, pack
from llamaconv.calibration.readers import Document, read_jsonl, read_text
from llamaconv.calibration.sequences import CalibrationSet
from llamaconv.calibration.tokens import check_ids, read_npy, read_safetensors
from llamaconv.errors import CalibrationError, UsageError
from llamaconv.tokenizer import Tokenizer

__all__ = ["DEFAULT_LENGTH", "load_calibration", "load_evaluation", "require_file"]

logger = logging.getLogger(__name__)

DEFAULT_LENGTH = 2048
_TOKEN_READERS = {".npy": read_npy, ".safetensors": read_safetensors}
_SUFFIXES = (".txt", ".jsonl", *_TOKEN_READERS)
# More characters per token than any text has on average: of a document longer than this allows, only so much
# is tokenized at first.
_CHARACTERS_PER_TOKEN = 16


@dataclass(frozen=True)
class _Wish:
    """What was asked for, whatever the source."""

    split: Split
    directory: Path
    vocab_size: int
    max_positions: int | None
    samples: int | None
    seq_len: int | None
    seed: int | None  # None: in the file's order

    @property
    def length(self) -> int:
        return self.seq_len or min(DEFAULT_LENGTH, self.max_positions or DEFAULT_LENGTH)


def load_calibration(
    source: str | None,
    *,
    directory: Path,
    vocab_size: int,
    max_positions: int | None,
    samples: int,
    seq_len: int | None,
    seed: int,
) -> CalibrationSet:
    """The sequences to calibrate on.

    Text is taken in documents, shuffled by ``seed`` (alike on every machine), tokenized and packed; token
    arrays are used as they are, row by row.

    Args:
        source: None for the built-in corpus, or a file: .txt (one document), .jsonl (one per line), .npy or
            .safetensors (one integer array [samples, length]).
        directory: The checkpoint's folder; the tokenizer is loaded from here when text is to be tokenized.
        vocab_size: The model's; each id must be below it.
        max_positions: The longest sequence that the model takes; None: any.
        samples: At most so many sequences.
        seq_len: Tokens per sequence of text; None: 2,048, or ``max_positions`` where that is less.
        seed: For the documents' order.

    Returns:
        A set with at least one sequence. Where it has fewer tokens than asked for, a note says so; notes are
        logged as warnings too.

    Raises:
        CalibrationError: The source is missing, malformed or empty; an id is not in the vocabulary; a
            sequence would be longer than the model takes; there is no tokenizer, or no chat template, where
            one is needed.
        UnsupportedError: The tokenizer needs code from the checkpoint.
        IntegrityError: The built-in corpus is damaged.
        UsageError: ``samples`` or ``seq_len`` is too small to mean anything.
    """
    return _load(source, _Wish("calibration", directory, vocab_size, max_positions, samples, seq_len, seed))


def load_evaluation(
    source: str | None,
    *,
    directory: Path,
    vocab_size: int,
    max_positions: int | None,
    samples: int | None = None,
    seq_len: int | None = None,
) -> CalibrationSet:
    """The sequences to judge by: the corpus's held-out documents, or a file as for ``load_calibration``.

    All of it in the file's order, or its first ``samples`` sequences. Arguments, result and errors otherwise
    as for ``load_calibration``; every sequence has at least two tokens, so that there is one to predict.
    """
    return _load(source, _Wish("evaluation", directory, vocab_size, max_positions, samples, seq_len, None))


def _load(source: str | None, wish: _Wish) -> CalibrationSet:
    if wish.samples is not None and wish.samples < 1:
        raise UsageError(f"the samples asked for are {wish.samples}; at least 1 is needed.", samples=wish.samples)
    if source is None:
        loaded = _from_documents(f"builtin:{wish.split}", read_corpus(wish.split), wish)
    else:
        loaded = _from_file(Path(source), wish)
    for note in loaded.notes:
        logger.warning("%s", note)
    return loaded


def require_file(path: Path) -> None:
    """Refuse a path that is not a file's, or of no kind that can be read.

    Raises:
        CalibrationError: It is one of these.
    """
    if not path.is_file():
        reason = "is not a file" if path.exists() else "does not exist"
        raise CalibrationError(f"{path}: {reason}.", file=str(path))
    if path.suffix.lower() not in _SUFFIXES:
        raise CalibrationError(
            f"{path}: not a kind of file that holds text or tokens.",
            hint=f"Its name must end in {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]}.",
            file=str(path),
        )


def _from_file(path: Path, wish: _Wish) -> CalibrationSet:
    require_file(path)
    suffix = path.suffix.lower()
    if suffix in _TOKEN_READERS:
        return _from_tokens(path, wish)
    if suffix == ".txt":
        return _from_documents(path.name, read_text(path), wish)
    documents, blank = read_jsonl(path)
    loaded = _from_documents(path.name, documents, wish)
    if not blank:
        return loaded
    note = f"{path.name}: {blank:,} of {blank + len(documents):,} documents have no text and were left out"
    return replace(loaded, notes=(note, *loaded.notes))


def _from_tokens(path: Path, wish: _Wish) -> CalibrationSet:
    ids, available = _TOKEN_READERS[path.suffix.lower()](path, wish.samples)
    length = ids.shape[1]
    if wish.max_positions is not None and length > wish.max_positions:
        raise CalibrationError(
            f"{path}: its rows have {length:,} tokens, the model takes {wish.max_positions:,} at most.",
            hint="Cut the rows, or give the text itself.",
            file=str(path),
            length=length,
            max_positions=wish.max_positions,
        )
    if wish.split == "evaluation" and length < 2:
        raise CalibrationError(f"{path}: its rows have 1 token, and none to predict from it.", file=str(path))
    check_ids(path, ids, wish.vocab_size)
    notes = []
    if wish.seq_len is not None and wish.seq_len != length:
        notes.append(
            f"{path.name}: token arrays are used as they are: its rows have {length:,} tokens, "
            f"the sequence length {wish.seq_len:,} does not apply"
        )
    if wish.samples is not None and available < wish.samples:
        notes.append(_short(wish, wish.samples, length, ids.size))
    return CalibrationSet.of(ids, path.name, notes)


def _from_documents(name: str, documents: Sequence[Document], wish: _Wish) -> CalibrationSet:
    length = wish.length
    if wish.max_positions is not None and length > wish.max_positions:
        raise CalibrationError(
            f"the sequence length {length:,} is above the model's maximum of {wish.max_positions:,}.",
            hint=f"Use --seq-len {wish.max_positions} or less.",
            seq_len=length,
            max_positions=wish.max_positions,
        )
    tokenizer = Tokenizer.load(wish.directory)
    prefix = tokenizer.prefix()
    if length < len(prefix) + LEAST:
        raise UsageError(f"the sequence length is {length}; at least {len(prefix) + LEAST} is needed.", seq_len=length)
    ordered = list(documents)
    if wish.seed is not None:
        # random.Random's shuffle is specified by its code and has not changed; numpy's may with any release
        random.Random(wish.seed).shuffle(ordered)
    rows = pack(_tokenized(ordered, tokenizer, wish), prefix, length, wish.samples)
    if not rows:
        raise CalibrationError(
            f"{name}: too little text: fewer than {LEAST} tokens.", hint="Give more text.", name=name
        )
    tokens = sum(map(len, rows))
    short = wish.samples is not None and tokens < wish.samples * length
    notes = [_short(wish, wish.samples, length, tokens)] if short and wish.samples is not None else []
    return CalibrationSet.of(rows, name, notes)


def _tokenized(documents: Sequence[Document], tokenizer: Tokenizer, wish: _Wish) -> Iterator[list[int]]:
    """Each document's ids, computed when asked for."""
    enough = None if wish.samples is None else wish.samples * wish.length
    for document in documents:
        text = _as_text(document, tokenizer)
        ids = _beginning(text, tokenizer, enough)
        if ids and not 0 <= min(ids) <= max(ids) < wish.vocab_size:
            raise CalibrationError(
                f"{document.name}: the tokenizer makes token {max(ids):,} of it; "
                f"the model's vocabulary is 0 to {wish.vocab_size - 1:,}.",
                hint=f"The tokenizer in {wish.directory} does not belong to this model.",
                id=max(ids),
            )
        yield ids


def _as_text(document: Document, tokenizer: Tokenizer) -> str:
    if isinstance(document.content, str):
        return document.content
    try:
        return tokenizer.chat(document.content)
    except CalibrationError as error:
        message = f"{document.name}: {error.message}"
        raise CalibrationError(message, hint=error.hint, **error.facts) from error


def _beginning(text: str, tokenizer: Tokenizer, enough: int | None) -> list[int]:
    """The ids of ``text``, or the first ``enough`` of them: a text can be far longer than its use."""
    if enough is not None and len(text) > (most := enough * _CHARACTERS_PER_TOKEN):
        ids = tokenizer.encode(text[:most])
        if len(ids) > enough:
            return ids[:enough]
    return tokenizer.encode(text)


def _short(wish: _Wish, samples: int, length: int, tokens: int) -> str:
    goes_on = "quantization" if wish.split == "calibration" else "evaluation"
    return (
        f"asked for {samples * length:,} tokens ({samples:,} x {length:,}), "
        f"the {wish.split} text has {tokens:,}; {goes_on} goes on with these"
    )
