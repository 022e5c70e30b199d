"""How fast is ``convert``, beside the tools that do the same?

Fresh processes that read files from the page cache, on models of two sizes: the slope between the two is what a
gigabyte costs, without anybody's start-up. The contestants of a round take turns, and the best of several rounds
counts, because whatever else a machine does only ever adds to a time.

- other shards: a conversion in which no byte changes, against ``cp``.
- to litgpt: against litgpt's own converter.
- torch files to safetensors: against loading and saving with transformers.

What we publish is on the disk and hashed, what the others leave is neither: with ``sync -f`` behind them, they do the
first as well.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from common import Measured, alone, parser, publish
from convert_common import convert, random_llama, size_of

HERE = Path(__file__).parent
OURS = "llamaconv"
Run = Callable[[Path, Path], Measured]


@dataclass(frozen=True)
class Contestant:
    """A tool that makes ``out`` of ``source``.

    Attributes:
        contest: What it does.
        tool: By what.
        source: Which form of the model it reads.
        run: The process.
        runs: What came of it, by the model's number.
    """

    contest: str
    tool: str
    source: str
    run: Run
    runs: dict[int, list[Measured]] = field(default_factory=dict)

    def slope(self, sizes: Sequence[float], of: Callable[[Sequence[float]], float] = min) -> float:
        """Seconds per gigabyte."""
        small, large = (of([run.seconds for run in self.runs[index]]) for index in (0, 1))
        return (large - small) / (sizes[1] - sizes[0])

    @property
    def peak(self) -> int:
        """Bytes, with the larger model."""
        return max(run.peak_rss for run in self.runs[1])


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--layers", type=int, nargs=2, default=[1, 8], help="of the smaller and the larger model")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--litgpt", default=HERE.parent / ".venv-litgpt/bin/python", metavar="PYTHON")
    options.add_argument("--folder", type=Path, help="where 15 GB are free; default as TMPDIR says")
    chosen = options.parse_args()
    if shutil.which(chosen.litgpt) is None:
        raise SystemExit(f"no litgpt at {chosen.litgpt}: make interop installs it, --litgpt names another")
    contestants = _contestants(str(chosen.litgpt))
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        folder, sizes = Path(name), []
        for index, layers in enumerate(chosen.layers):
            hub = random_llama(folder / f"hub-{index}", layers)
            convert(hub, folder / f"torch-{index}", "--to", "hf", "--format", "torch")
            sizes.append(size_of(hub) / 1e9)
        for _ in range(chosen.rounds):
            for index in range(2):
                for contestant in contestants:
                    source, out = folder / f"{contestant.source}-{index}", folder / "out"
                    _settle(source)
                    contestant.runs.setdefault(index, []).append(contestant.run(source, out))
                    shutil.rmtree(out)
    publish([_row(one, contestants, sizes) for one in contestants], chosen.json)


def _contestants(litgpt: str) -> list[Contestant]:
    shards, to_litgpt, from_torch = "other shards", "to litgpt", "torch files to safetensors"
    copy, transformers = ("cp", "-r"), (sys.executable, HERE / "transformers_peer.py")
    return [
        Contestant(shards, OURS, "hub", _ours("--to", "hf", "--max-shard-size", "1GB")),
        Contestant(shards, "cp", "hub", partial(alone, *copy)),
        Contestant(shards, "cp, sync -f", "hub", _synced(*copy)),
        Contestant(to_litgpt, OURS, "hub", _ours("--to", "litgpt")),
        Contestant(to_litgpt, "litgpt", "hub", partial(_in_litgpt, litgpt)),
        Contestant(from_torch, OURS, "torch", _ours("--to", "hf")),
        Contestant(from_torch, "transformers", "torch", partial(alone, *transformers)),
        Contestant(from_torch, "transformers, sync -f", "torch", _synced(*transformers)),
    ]


def _ours(*arguments: str) -> Run:
    return lambda source, out: convert(source, out, *arguments)


def _synced(*command: str | Path) -> Run:
    """A command that is given the source and the output, and then the output on the disk."""
    return lambda source, out: alone("sh", "-c", '"$@" && sync -f "$0"', out, *command, source, out)


def _in_litgpt(python: str, source: Path, out: Path) -> Measured:
    """It writes into the folder that it reads."""
    out.mkdir()
    for path in source.iterdir():
        (out / path.name).symlink_to(path.resolve())
    return alone(python, HERE / "litgpt_peer.py", out)


def _settle(source: Path) -> None:
    """Files in the page cache, and nothing on its way to the disk."""
    os.sync()
    for path in source.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 20):
                pass


def _row(one: Contestant, contestants: Sequence[Contestant], sizes: Sequence[float]) -> dict[str, Any]:
    ours = next(other for other in contestants if other.contest == one.contest and other.tool == OURS)
    seconds = [[run.seconds for run in one.runs[index]] for index in (0, 1)]
    return {
        "contest": one.contest,
        "tool": one.tool,
        **{f"s for {size:.2f} GB": min(times) for size, times in zip(sizes, seconds, strict=True)},
        "worst/best": max(seconds[1]) / min(seconds[1]),
        "s/GB": one.slope(sizes),
        "s/GB of medians": one.slope(sizes, statistics.median),
        "time, ours to this": ours.slope(sizes) / one.slope(sizes),
        "peak MB": one.peak / 1e6,
        "memory, ours to this": ours.peak / one.peak,
    }


if __name__ == "__main__":
    main()
