"""How much memory there is, and how much was used."""

from __future__ import annotations

import ctypes
import resource
import sys
from contextlib import suppress
from pathlib import Path

__all__ = ["available_memory", "give_back_freed_memory", "peak_rss", "reset_peak_rss"]

_M_MMAP_THRESHOLD = -3  # from malloc.h
_LARGE = 1 << 20  # bytes


def available_memory() -> int | None:
    """Bytes that can be allocated without swapping, by the machine and by the process's cgroup (v2).

    None where the system does not tell (no ``/proc``).
    """
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        machine = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    return min(machine, *_cgroup_rooms(), machine)


def give_back_freed_memory() -> None:
    """Let glibc return large blocks to the system as soon as they are freed; elsewhere nothing happens.

    Its default raises the threshold up to 32 MB with each block freed, and keeps what is below it in one heap per
    thread: whole models' worth of activations stay resident long after they are gone. A setting of the whole
    process, for whoever owns it to make.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)


def peak_rss() -> int:
    """The process's largest resident set since it began or since :func:`reset_peak_rss`, in bytes."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_rss() -> None:
    """Begin a new measurement with :func:`peak_rss`; where the system cannot (not Linux), the old one goes on."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _cgroup_rooms() -> list[int]:
    """What each cgroup above the process still leaves it."""
    try:
        own = Path("/proc/self/cgroup").read_text().split("::", 1)[1].splitlines()[0]
    except (OSError, IndexError):
        return []
    rooms, root = [], Path("/sys/fs/cgroup")
    directory = root / own.lstrip("/")
    while directory.is_relative_to(root):
        try:
            limit = (directory / "memory.max").read_text().strip()
            if limit != "max":
                statistics = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
                used = int((directory / "memory.current").read_text())
                # Cached file pages are given up under pressure.
                rooms.append(int(limit) - used + int(statistics.get("inactive_file", 0)))
        except (OSError, ValueError):
            pass  # not every level of the tree has a memory controller
        directory = directory.parent
    return rooms
