"""What does SIGKILL cost a download?

A process downloads a file from a Hub on loopback, which kills it when it has sent so many bytes in all, at random
places; the next process goes on, and is killed in turn; the last one is left alone. One file is fetched front to back
and one in pieces, four at a time. A row is a kill:

- on record: bytes of the file whose arrival the part's table says, when the process died.
- gained: by this process alone.
- sent: bytes that the Hub had handed to this process's connections.
- sent twice: what of them was not on record, on its way or in a buffer, and so was sent again; 1 MiB at most.
- asked twice: bytes on record that the next process asked for; none.
- next begins: where the ranges begin that the next process asked for.

The exit code is 1 if a limit is exceeded, or if the file is not right in the end.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from common import parser, publish

sys.path.insert(0, str(Path(__file__).parent.parent))  # the Hub that kills is one of the tests' helpers

from tests.hub.killing import Killed, kill_and_resume

MOST_TWICE = 1 << 20


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--kills", type=int, default=20, help="of each file")
    options.add_argument("--size", type=int, default=64_000_003, help="bytes of a file")
    options.add_argument("--pieces", type=int, nargs="+", default=[1, 8], help="for each file, in how many it comes")
    options.add_argument("--rate", type=int, default=20_000_000, help="bytes a second for a connection")
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    rows: list[dict[str, Any]] = []
    for pieces in chosen.pieces:
        with tempfile.TemporaryDirectory() as folder:
            kills = kill_and_resume(
                Path(folder),
                size=chosen.size,
                piece=chosen.size // pieces,
                kills=chosen.kills,
                seed=chosen.seed,
                rate=chosen.rate,
            )
        rows += [_row(pieces, number, kill) for number, kill in enumerate(kills, start=1)]
    publish(rows, chosen.json)
    twice = [row["sent twice"] for row in rows]
    print(f"{len(rows)} kills; sent twice: {sum(twice) / len(twice):,.0f} bytes a kill, {max(twice):,} at most")
    if max(twice) > MOST_TWICE or any(row["asked twice"] for row in rows):
        sys.exit(1)


def _row(pieces: int, number: int, kill: Killed) -> dict[str, Any]:
    return {
        "pieces": pieces,
        "kill": number,
        "on record": kill.there,
        "gained": kill.gained,
        "sent": kill.sent,
        "sent twice": kill.twice,
        "asked twice": kill.again,
        "next begins": " ".join(map(str, kill.begins)),
    }


if __name__ == "__main__":
    main()
