from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from llamaconv.calibration.packing import LEAST, pack

BOS = 1
tokens = st.integers(min_value=3, max_value=9)
documents = st.lists(st.lists(tokens, max_size=9), max_size=8)
prefixes = st.sampled_from([[], [1], [1, 2]])


def text_of(sequences: list[list[int]]) -> list[int]:
    """What is left when all tokens of prefixes (1 and 2) are taken away."""
    return [token for sequence in sequences for token in sequence if token > 2]


@given(documents, prefixes, st.integers(min_value=4, max_value=12))
def test_no_token_of_a_document_is_lost_or_moved(texts: list[list[int]], prefix: list[int], length: int) -> None:
    """Without its prefixes, the packed text is the documents in their order; at most LEAST - 1 tokens are cut off."""
    packed = text_of(pack(texts, prefix, length))
    whole = [token for text in texts for token in text]
    assert packed == whole[: len(packed)]
    assert len(whole) - len(packed) < LEAST


@given(documents, prefixes, st.integers(min_value=4, max_value=12))
def test_every_sequence_begins_with_the_prefix_and_all_but_the_last_are_full(
    texts: list[list[int]], prefix: list[int], length: int
) -> None:
    """Sequences begin as the tokenizer begins one; only the last may be shorter, by LEAST tokens of text at most."""
    packed = pack(texts, prefix, length)
    assert all(sequence[: len(prefix)] == prefix for sequence in packed)
    assert all(len(sequence) == length for sequence in packed[:-1])
    assert all(len(prefix) + LEAST <= len(sequence) <= length for sequence in packed)


@given(documents, prefixes, st.integers(4, 12), st.integers(1, 5))
def test_asking_for_fewer_sequences_gives_the_first_ones(
    texts: list[list[int]], prefix: list[int], length: int, samples: int
) -> None:
    """``samples`` cuts the list of sequences and changes none of them."""
    assert pack(texts, prefix, length, samples) == pack(texts, prefix, length)[:samples]


@given(documents, st.sampled_from([[1], [1, 2]]), st.integers(4, 12))
def test_a_document_that_begins_with_the_prefix_does_not_get_it_twice(
    texts: list[list[int]], prefix: list[int], length: int
) -> None:
    """Documents that carry the prefix already are packed as if they did not."""
    carrying = [prefix + text for text in texts]
    assert pack(carrying, prefix, length) == pack(texts, prefix, length)


def test_documents_follow_each_other_with_the_prefix_between() -> None:
    """Two short documents share a sequence; a long one is cut where the sequence is full, and goes on in the next."""
    assert pack([[10, 11], [20, 21, 22, 23, 24, 25, 26]], [BOS], 6) == [
        [BOS, 10, 11, BOS, 20, 21],
        [BOS, 22, 23, 24, 25, 26],
    ]


def test_where_only_the_prefix_has_room_the_document_starts_the_next_sequence() -> None:
    """A full sequence may end in the prefix's beginning; the document then begins the next one, with one prefix."""
    assert pack([[10, 11, 12], [20, 21]], [1, 2], 6) == [[1, 2, 10, 11, 12, 1], [1, 2, 20, 21]]
    assert pack([[10, 11], [20, 21]], [1, 2], 6) == [[1, 2, 10, 11, 1, 2], [1, 2, 20, 21]]


def test_a_last_sequence_of_one_token_is_left_out() -> None:
    """One token predicts nothing; two do."""
    assert pack([[10, 11, 12, 13]], [BOS], 4) == [[BOS, 10, 11, 12]]
    assert pack([[10, 11, 12, 13, 14]], [BOS], 4) == [[BOS, 10, 11, 12], [BOS, 13, 14]]


def test_no_more_documents_are_taken_than_are_needed() -> None:
    """A document that no sequence has room for is never asked for: it need not be tokenized."""

    def endless() -> Iterator[list[int]]:
        for number in range(3, 10**9):
            taken.append(number)
            yield [number] * 4

    taken: list[int] = []
    assert len(pack(endless(), [BOS], 5, samples=3)) == 3
    assert taken == [3, 4, 5]
