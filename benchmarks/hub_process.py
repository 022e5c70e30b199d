"""A Hub on loopback in a process of its own: ``with serving(directory) as endpoint``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = "bench/model"


@contextmanager
def serving(directory: Path) -> Iterator[str]:
    """The endpoint of a Hub that has the files of ``directory`` as ``REPOSITORY``, all hashed beforehand."""
    command = (sys.executable, __file__, str(directory))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.communicate()


def main() -> None:
    from llamaconv.demo.hub import Hub
    from llamaconv.demo.repository import Repository

    repository = Repository.of_directory(REPOSITORY, Path(sys.argv[1]))
    repository.tree()
    with Hub([repository]) as hub:
        print(hub.endpoint, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
