"""Tensors whose bytes lie in files, as readers find them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from tempfile import mkdtemp

from torch import Tensor

from llamaconv.extents import Extent
from llamaconv.sinks.in_place import InPlaceWriter
from llamaconv.sinks.safetensors import PT_METADATA, safetensors_skeleton
from llamaconv.sinks.torch_zip import torch_skeleton
from llamaconv.tensors import TensorSpec
from tests.sources.files import bits


class SafetensorsWriter(InPlaceWriter):
    """One safetensors file."""

    def __init__(
        self, path: Path, specs: Sequence[TensorSpec], metadata: Mapping[str, str] | None = PT_METADATA
    ) -> None:
        super().__init__(path, specs, safetensors_skeleton(specs, metadata))


class TorchZipWriter(InPlaceWriter):
    """One file of torch."""

    def __init__(self, path: Path, specs: Sequence[TensorSpec]) -> None:
        super().__init__(path, specs, torch_skeleton(specs))


def specs_of(tensors: Mapping[str, Tensor]) -> list[TensorSpec]:
    """What there is to announce of them."""
    return [TensorSpec.of(name, tensor) for name, tensor in tensors.items()]


def extent_of(path: Path, offset: int, nbytes: int) -> Extent:
    """A run of bytes in a file as it is now."""
    info = path.stat()
    return Extent(path, offset, nbytes, (info.st_size, info.st_mtime_ns))


def scattered(folder: Path, tensor: Tensor, random: Random) -> list[Extent]:
    """The tensor's bytes in up to three runs, each behind some others in one of two files in a new folder."""
    data, runs = bits(tensor), list[tuple[Path, int, int]]()
    files = [Path(mkdtemp(dir=folder)) / name for name in "ab"]
    while data:
        nbytes = len(data) if len(runs) == 2 else random.randint(1, len(data))
        path = random.choice(files)
        with path.open("ab") as file:
            file.write(random.randbytes(random.randint(0, 9)))
            runs.append((path, file.tell(), nbytes))
            file.write(data[:nbytes])
        data = data[nbytes:]
    return [extent_of(*run) for run in runs]
