"""A taste of `make chaos`: workers frozen and killed, the API killed, the database away, and nothing lost.

Afterwards everything is spoiled by hand that must not be spoiled: a verdict that cannot fail would say nothing.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest

from tests.chaos import faults, verdict
from tests.chaos.clients import Notes
from tests.chaos.faults import Kind
from tests.chaos.play import play
from tests.chaos.stage import Stage
from tests.chaos.verdict import Examination


@pytest.mark.timeout(1200)
def test_whatever_dies_nothing_is_lost_and_what_is_lost_would_be_seen(home: Path) -> None:
    plan = faults.short(seed=1)
    missed: list[str] = []

    def encore(on: Stage, notes: Notes) -> None:
        spoil(on, notes)
        again = Examination(on, notes)
        findings = again.findings(submitted=len(notes.promises), stuck=verdict.unfinished(on.database.url))
        missed.extend(finding.rule for finding in findings if not finding.wrong)

    outcome = play(plan, home, lambda accepted, unfinished, now: None, encore=encore)
    assert [f"{finding.rule}: {finding.wrong}" for finding in outcome.findings if finding.wrong] == []
    # And it was not for lack of trouble.
    for kind in (Kind.FREEZE_BEFORE_SETTLEMENT, Kind.HUNT_JOB, Kind.KILL_API_BEFORE_ANSWER):
        assert outcome.damage.done[kind] == 1
    assert outcome.notes.replayed >= 1
    assert outcome.figures.lost_to_kills >= 1
    assert outcome.figures.states["FAILED"] >= 1
    assert outcome.figures.lost_to_freezes >= 1
    assert outcome.lives["api"] >= 2
    assert missed == []


def spoil(on: Stage, notes: Notes) -> None:
    """Break every promise once."""
    completed: LiteralString = (
        "select id, result ->> 'key' from jobs where state = 'COMPLETED' order by completed_at limit 4"
    )
    reopen: LiteralString = (
        "update jobs set state = 'QUEUED', queued_at = now() + interval '1 day', completed_at = null, result = null"
        " where id = %s"
    )
    refund: LiteralString = (
        "insert into ledger (team_id, job_id, kind, amount, counterparty, actor, reason)"
        " select team_id, id, 'refund', cost, 'revenue', 'test', 'test' from jobs where id = %s"
    )
    with psycopg.connect(on.database.url) as connection:
        (_, key), (forgotten, _), (reopened, _), (refunded, _) = connection.execute(completed).fetchall()
        connection.execute(reopen, [reopened])
        connection.execute(refund, [refunded])
    results = on.disk.folder / "results"
    os.truncate(on.disk.folder / key, 50)
    (results / "nobodys").write_bytes(b"")
    notes.promises = {once: promise for once, promise in notes.promises.items() if promise.job != str(forgotten)}
    notes.broken.append("GET /v2/jobs/…: 500")
    on.receiver.received.pop()
    victim = on.workers[0]
    assert victim.process is not None
    victim.signal(signal.SIGKILL)
    victim.process.wait()
