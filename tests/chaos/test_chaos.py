"""A taste of `make chaos`: a worker frozen, one killed, the API killed, the database away, and nothing lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import faults
from tests.chaos.faults import Kind
from tests.chaos.play import play


@pytest.mark.timeout(600)
def test_whatever_dies_nothing_is_lost(home: Path) -> None:
    plan = faults.short(seed=1)
    outcome = play(plan, home, lambda accepted, unfinished, now: None)
    assert [f"{finding.rule}: {finding.wrong}" for finding in outcome.findings if finding.wrong] == []
    # And it was not for lack of trouble.
    for kind in (Kind.FREEZE_WORKER, Kind.KILL_WORKER, Kind.KILL_API_BEFORE_ANSWER):
        assert outcome.damage.done[kind] == 1
    assert outcome.notes.replayed >= 1
    assert outcome.figures.lost_to_kills >= 1
    assert outcome.figures.lost_to_freezes >= 1
    assert outcome.lives["api"] >= 2
