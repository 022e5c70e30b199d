"""Room booking for a marine field station, backed by an interval treap.

The station rents out wet labs, a dive locker and one much-loved seminar room.
Every reservation is a half-open span ``[start, end)`` of minutes since the
season opened, so a seminar ending at 600 never collides with one that begins
at 600. The warden asks two things all day long: "who is in there at noon?"
and "can I squeeze the ferret-badger people in on Thursday?" Both reduce to
overlap queries, which a plain sorted list answers slowly once a few long
bookings stretch across many short ones.

A treap was picked over a red-black tree for the usual reason: rotations fit
on one screen, and random priorities make the expected depth logarithmic
without any case analysis.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Iterator, Optional


class Clash(ValueError):
    """Raised when a new booking would intersect an accepted one."""

    def __init__(self, wanted: "Span", holder: "Span") -> None:
        super().__init__(f"{wanted} runs into {holder}")
        self.wanted, self.holder = wanted, holder


@dataclass(frozen=True, order=True)
class Span:
    start: int
    end: int
    party: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.end <= self.start:
            raise ValueError(f"empty or backwards span: {self.start}..{self.end}")

    def touches(self, lo: int, hi: int) -> bool:
        return self.start < hi and lo < self.end

    def __str__(self) -> str:
        clock = lambda m: f"d{m // 1440} {m % 1440 // 60:02d}:{m % 60:02d}"
        return f"{self.party or 'anonymous'} ({clock(self.start)} to {clock(self.end)})"


class _Knot:
    # ``reach`` caches the latest end anywhere beneath (and including) a knot.
    __slots__ = ("span", "heat", "left", "right", "reach")

    def __init__(self, span: Span, heat: float) -> None:
        self.span, self.heat = span, heat
        self.left: Optional[_Knot] = None
        self.right: Optional[_Knot] = None
        self.reach = span.end

    def refresh(self) -> "_Knot":
        self.reach = max(
            self.span.end,
            *(kid.reach for kid in (self.left, self.right) if kid is not None),
            -1,
        )
        return self


def _split(tree: Optional[_Knot], pivot: Span) -> tuple[Optional[_Knot], Optional[_Knot]]:
    """Cut ``tree`` into everything strictly below ``pivot`` and the rest."""
    if tree is None:
        return None, None
    if tree.span < pivot:
        middle, above = _split(tree.right, pivot)
        tree.right = middle
        return tree.refresh(), above
    below, middle = _split(tree.left, pivot)
    tree.left = middle
    return below, tree.refresh()


def _merge(a: Optional[_Knot], b: Optional[_Knot]) -> Optional[_Knot]:
    # Precondition: no key in ``a`` exceeds any key in ``b``.
    if a is None or b is None:
        return a or b
    if a.heat > b.heat:
        a.right = _merge(a.right, b)
        return a.refresh()
    b.left = _merge(a, b.left)
    return b.refresh()


class Room:
    """One bookable space. Iterating yields its spans in chronological order."""

    def __init__(self, name: str, *, seed: int | None = None) -> None:
        self.name = name
        self._root: Optional[_Knot] = None
        self._dice = random.Random(seed)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Span]:
        trail, here = [], self._root
        while trail or here:
            while here:
                trail.append(here)
                here = here.left
            here = trail.pop()
            yield here.span
            here = here.right

    def overlapping(self, lo: int, hi: int) -> Iterator[Span]:
        """Lazily yield bookings meeting ``[lo, hi)``, earliest first."""

        def walk(knot: Optional[_Knot]) -> Iterator[Span]:
            if knot is None or knot.reach <= lo:
                return  # nothing down here lasts long enough to matter
            yield from walk(knot.left)
            if knot.span.touches(lo, hi):
                yield knot.span
            if knot.span.start < hi:
                yield from walk(knot.right)

        return walk(self._root)

    def reserve(self, span: Span, *, shared: bool = False) -> None:
        # Shared spaces (the dive locker, mostly) accept overlapping parties.
        if not shared:
            rival = next(self.overlapping(span.start, span.end), None)
            if rival is not None:
                raise Clash(span, rival)
        low, high = _split(self._root, span)
        fresh = _Knot(span, self._dice.random())
        self._root = _merge(_merge(low, fresh), high)
        self._count += 1

    def cancel(self, span: Span) -> bool:
        """Drop one booking with these exact bounds; report whether one existed."""
        low, rest = _split(self._root, span)
        target, high = _split(rest, Span(span.start, span.end + 1))
        found = target is not None
        if found:
            # Several shared bookings may have equal bounds: remove only the top.
            target = _merge(target.left, target.right)
            self._count -= 1
        self._root = _merge(low, _merge(target, high))
        return found

    def first_gap(self, need: int, after: int, before: int) -> Optional[int]:
        """Earliest minute at which ``need`` free minutes fit, or ``None``."""
        cursor = after
        for busy in self.overlapping(after, before):
            if busy.start - cursor >= need:
                break
            cursor = max(cursor, busy.end)
        return cursor if before - cursor >= need else None


if __name__ == "__main__":
    lab = Room("Wet lab B", seed=7)
    lab.reserve(Span(540, 660, "barnacle census"))
    lab.reserve(Span(720, 1020, "limpet homing"))
    try:
        lab.reserve(Span(650, 700, "school visit"))
    except Clash as trouble:
        print("refused:", trouble)
        slot = lab.first_gap(50, 650, 1440)
        assert slot == 660
        lab.reserve(Span(slot, slot + 50, "school visit"))
    print(*lab, sep="\n")
    assert lab.cancel(Span(540, 660)) and len(lab) == 2
