from __future__ import annotations

import threading
import time

import pytest
import torch

from llamaconv.model.workers import Workers


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_come_in_the_items_order(count: int) -> None:
    """Whoever is done first."""
    with Workers(count) as crew:
        assert crew.map(lambda item: (time.sleep(0.01 * (item % 2)), item)[1], range(7)) == list(range(7))
        assert crew.map(str, []) == []


def test_an_item_s_place_decides_its_thread() -> None:
    """Item i goes to worker i modulo their number, in every call: suspended forwards stay with their thread."""
    with Workers(3) as crew:
        first = crew.map(lambda _: threading.current_thread().name, range(7))
        assert first == [f"llamaconv-{index % 3}_0" for index in range(7)]
        assert crew.map(lambda _: threading.current_thread().name, range(7)) == first


def test_workers_run_at_the_same_time() -> None:
    """Two that wait for each other both arrive."""
    meeting = threading.Barrier(2, timeout=10)
    with Workers(2) as crew:
        assert sorted(crew.map(lambda _: meeting.wait(), range(2))) == [0, 1]


def test_each_worker_has_one_core_and_no_gradients() -> None:
    """Torch runs single-threaded in inference mode on the workers; outside, all is as it was before."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with Workers(2) as crew:
            inside = crew.map(lambda _: (torch.get_num_threads(), torch.is_inference_mode_enabled()), range(2))
            assert inside == [(1, True), (1, True)]
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        assert not torch.is_inference_mode_enabled()
    finally:
        torch.set_num_threads(before)


def test_the_first_error_in_the_items_order_is_raised() -> None:
    """Not the one that happens first; and the crew works on."""

    def work(item: int) -> int:
        if item == 1:
            time.sleep(0.05)
        if item:
            raise ValueError(f"item {item}")
        return item

    with Workers(3) as crew:
        with pytest.raises(ValueError, match=r"^item 1$"):
            crew.map(work, range(5))
        assert crew.map(work, [0, 0]) == [0, 0]


def test_what_has_not_begun_when_an_error_is_raised_is_not_begun() -> None:
    """A long queue does not delay the news."""
    done: list[int] = []

    def work(item: int) -> None:
        if item == 0:
            raise ValueError
        time.sleep(0.01)
        done.append(item)

    with Workers(1) as crew, pytest.raises(ValueError, match=r"^$"):
        crew.map(work, range(1000))
    assert len(done) < 500
