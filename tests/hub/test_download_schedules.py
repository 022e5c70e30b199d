"""Downloads that meet faults drawn by chance on all their requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from llamaconv.hub import part
from tests.hub.misbehaving import Kind
from tests.hub.schedules import AMONG, Survived, survive_all


def require_every_kind(survived: Iterable[Survived]) -> None:
    """No kind of fault was left out."""
    kinds: Counter[Kind] = sum((one.kinds for one in survived), Counter())
    assert set(kinds) == {fault.kind for fault in AMONG} == set(Kind)
    assert min(kinds.values()) >= 5


def test_schedules(tmp_path: Path) -> None:
    """Whatever faults 200 seeds draw, each download ends with the right bytes and has counted them, one by one."""
    survived = list(survive_all(range(200), tmp_path))
    assert [one.seed for one in survived if not one.right] == []
    assert [(one.result.retries, one.result.mismatches) for one in survived] == [
        (one.retries_due, one.mismatches_due) for one in survived
    ]
    require_every_kind(survived)


def test_schedules_for_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So it is with files in several pieces, where one that is started over may save others their retries."""
    monkeypatch.setattr(part, "PIECE", 30_000)
    survived = list(survive_all(range(200, 240), tmp_path))
    assert [one.seed for one in survived if not one.right] == []
    for one in survived:
        assert one.result.mismatches <= one.mismatches_due
        assert one.result.retries <= one.retries_due
    require_every_kind(survived)
