"""Run a command, then print its largest resident set in bytes: ``python alone.py COMMAND ...``.

The system counts what a process was before it became the command: a process that is started by one with torch in it
seems to have had that much memory itself. This one has next to nothing.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    _, status, usage = os.wait4(os.spawnvp(os.P_NOWAIT, sys.argv[1], sys.argv[1:]), 0)
    print(usage.ru_maxrss * 1024)
    sys.exit(os.waitstatus_to_exitcode(status))
