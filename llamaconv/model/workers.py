"""A fixed crew of threads that gives the same results at any size.

Work is cut into pieces whose size does not depend on the number of workers, and each piece runs on one core
(torch's own pool is held at one thread), so a sum is formed in the same order whoever forms it. Item ``i`` always goes
to worker ``i % count``: a suspended forward can only be resumed by the thread that started it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

import torch

__all__ = ["Workers"]

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """Context manager; inside it torch runs each operation on one thread, in inference mode on the workers."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._crew: list[ThreadPoolExecutor] = []
        self._threads_before = 0

    def __enter__(self) -> Workers:
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(1)
        self._crew = [
            ThreadPoolExecutor(1, f"llamaconv-{index}", initializer=_single_threaded) for index in range(self.count)
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._crew:
            worker.shutdown(wait=True, cancel_futures=True)
        self._crew = []
        torch.set_num_threads(self._threads_before)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """``[function(item) for item in items]``, item ``i`` on worker ``i % count``.

        The first error, in the items' order, is raised; what had not begun by then is not begun.
        """
        pending: list[Future[Result]] = [
            self._crew[index % self.count].submit(_in_inference_mode, function, item)
            for index, item in enumerate(items)
        ]
        try:
            return [future.result() for future in pending]
        finally:
            for future in pending:
                future.cancel()


def _single_threaded() -> None:
    torch.set_num_threads(1)


def _in_inference_mode(function: Callable[[Item], Result], item: Item) -> Result:
    with torch.inference_mode():
        return function(item)
