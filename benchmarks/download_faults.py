"""Does every download survive whatever befalls its requests?

A Hub on loopback plays faults drawn by chance on all that it is asked, to files that come in one piece and to such as
come in several, four at a time. The exit code is 1 if a download fails or ends with other bytes.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from common import parser, publish

sys.path.insert(0, str(Path(__file__).parent.parent))  # the misbehaving Hub is one of the tests' helpers

from llamaconv.hub import part
from tests.hub.misbehaving import Kind
from tests.hub.schedules import MODEL, Survived, survive_all


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, default=200, metavar="N", help="how many schedules of faults")
    options.add_argument("--first", type=int, default=0, metavar="N", help="the first seed")
    chosen = options.parse_args()
    logging.disable(logging.WARNING)  # thousands of retries
    columns, wrong = {}, []
    for name, piece in (("files in one piece", part.PIECE), ("in several", 30_000)):
        part.PIECE = piece
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            survived = list(survive_all(range(chosen.first, chosen.first + chosen.seeds), Path(folder)))
        columns[name] = figures(survived) | {"seconds": time.perf_counter() - began}
        wrong += [str(one.seed) for one in survived if not one.right]
    labels = next(iter(columns.values()))
    rows = [{"figure": label, **{name: column[label] for name, column in columns.items()}} for label in labels]
    publish(rows, chosen.json)
    if wrong:
        raise SystemExit(f"wrong bytes with these seeds: {', '.join(wrong)}")


def figures(survived: Sequence[Survived]) -> dict[str, float]:
    """Of all downloads together."""
    needed = sum(map(len, MODEL.values())) * len(survived)
    kinds: Counter[Kind] = sum((one.kinds for one in survived), Counter())
    return {
        "seeds": len(survived),
        "with the right bytes": sum(one.right for one in survived),
        "files": len(MODEL) * len(survived),
        "bytes": needed,
        "bytes fetched / needed": sum(one.fetched for one in survived) / needed,
        "faults": kinds.total(),
        **{f"- {kind.value}": kinds[kind] for kind in Kind},
        "retries": sum(one.result.retries for one in survived),
        "retries that the faults ask for": sum(one.retries_due for one in survived),
        "mismatches": sum(one.result.mismatches for one in survived),
        "mismatches among the faults": sum(one.mismatches_due for one in survived),
    }


if __name__ == "__main__":
    main()
