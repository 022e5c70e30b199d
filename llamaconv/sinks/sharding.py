"""Which tensor goes into which file: decided before any data is there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from llamaconv.tensors import TensorSpec

__all__ = ["Shard", "index", "index_filename", "shard"]


@dataclass(frozen=True)
class Shard:
    """One weight file.

    Attributes:
        filename: Its name, relative to the checkpoint's folder.
        specs: What it holds.
        prefix: What the tensors' names in the file lack: files of tensor-parallel ranks hold the same names.
    """

    filename: str
    specs: tuple[TensorSpec, ...]
    prefix: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of tensor data, without the header."""
        return sum(spec.nbytes for spec in self.specs)


def shard(
    specs: Iterable[TensorSpec], max_bytes: int, stem: str = "model", suffix: str = ".safetensors"
) -> tuple[Shard, ...]:
    """Cut ``specs`` into runs of at most ``max_bytes`` of data, in their order.

    The files are named as transformers names them: one is ``model.safetensors``, several are
    ``model-00001-of-00002.safetensors`` and so on; with torch files it is ``pytorch_model`` and ``.bin``.

    A larger tensor gets a file of its own. Unlike huggingface_hub, which goes on filling the file before it,
    the order is kept, so that whoever writes in that order finishes one file before the next.

    Raises:
        ValueError: Two specs share a name, or ``max_bytes`` is not positive.
    """
    if max_bytes <= 0:
        raise ValueError(f"max_bytes must be positive, not {max_bytes}")
    runs: list[list[TensorSpec]] = []
    names: set[str] = set()
    room = -1
    for spec in specs:
        if spec.name in names:
            raise ValueError(f"two tensors are called {spec.name!r}")
        names.add(spec.name)
        if not runs or spec.nbytes > room:
            runs.append([])
            room = max_bytes
        runs[-1].append(spec)
        room -= spec.nbytes
    if len(runs) == 1:
        return (Shard(f"{stem}{suffix}", tuple(runs[0])),)
    return tuple(
        Shard(f"{stem}-{number:05d}-of-{len(runs):05d}{suffix}", tuple(run)) for number, run in enumerate(runs, start=1)
    )


def index(shards: Sequence[Shard]) -> dict[str, Any]:
    """The content of the index.json of several shards, as transformers' ``save_pretrained`` writes it.

    ``total_size`` is in bytes; the weight map is sorted by tensor name. (``total_parameters``, which
    transformers 5 adds and nothing reads, is left out.)
    """
    weight_map = {spec.name: part.filename for part in shards for spec in part.specs}
    return {
        "metadata": {"total_size": sum(part.nbytes for part in shards)},
        "weight_map": dict(sorted(weight_map.items())),
    }


def index_filename(shards: Sequence[Shard]) -> str | None:
    """The name of the index.json that belongs to ``shards``; None for those that have none.

    Only files numbered by :func:`shard` have one: a single file has none, nor have those of tensor-parallel ranks.
    """
    numbered = re.fullmatch(r"(.+)-[0-9]+-of-[0-9]+(\.[a-z]+)", shards[0].filename) if shards else None
    return f"{numbered[1]}{numbered[2]}.index.json" if numbered else None
