"""Documents into sequences: end to end, cut where a sequence is full; nothing padded, no document dropped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

__all__ = ["LEAST", "pack"]

LEAST = 2
"""Tokens beyond the prefix that a sequence must have to be of use: one to predict another from."""


def pack(
    documents: Iterable[Sequence[int]], prefix: Sequence[int], length: int, samples: int | None = None
) -> list[list[int]]:
    """Pack tokenized documents into at most ``samples`` sequences (None: as many as they fill).

    Every sequence begins with ``prefix``, and so does every document within one. All but the last have
    ``length`` tokens; the last may be shorter, and is left out below ``len(prefix) + LEAST``. Where a
    sequence has no room for a token after the prefix, the prefix's beginning fills it up, and the document
    starts the next. A document that begins with the prefix already, as chat templates write it, does not get
    it twice; one without tokens is passed over.

    Documents are taken one by one, and no more of them than are needed.

    Args:
        documents: Token ids of each document, without special tokens.
        prefix: What the tokenizer puts before a sequence; may be empty.
        length: Tokens of a full sequence, prefix included; at least ``len(prefix) + LEAST``.
    """
    return list(islice(_sequences(documents, list(prefix), length), samples))


def _sequences(documents: Iterable[Sequence[int]], prefix: list[int], length: int) -> Iterator[list[int]]:
    head = len(prefix)
    current = list(prefix)
    for document in documents:
        start = head if head and list(document[:head]) == prefix else 0
        if start == len(document):
            continue
        if len(current) > head:
            current += prefix
            if len(current) >= length:
                yield current[:length]
                current = list(prefix)
        while start < len(document):
            end = start + length - len(current)
            current += document[start:end]
            start = end
            if len(current) == length:
                yield current
                current = list(prefix)
    if len(current) >= head + LEAST:
        yield current
