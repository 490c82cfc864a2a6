"""A short `make chaos`: workers frozen and killed, the API killed, the database stopped, and nothing lost.

Afterwards the test breaks everything that the checks look at, to show that every check can fail.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest

from tests.chaos import checks, faults, scenario
from tests.chaos.checks import Checks
from tests.chaos.clients import CallerRecord
from tests.chaos.environment import Environment
from tests.chaos.faults import FaultKind


@pytest.mark.timeout(1200)
def test_nothing_is_lost_and_every_check_can_fail(home: Path) -> None:
    plan = faults.short(seed=1)
    passed: list[str] = []

    def break_and_check(service: Environment, record: CallerRecord) -> None:
        break_everything(service, record)
        results = Checks(service, record).run(
            submitted=len(record.accepted), stuck=checks.unfinished(service.database.url)
        )
        passed.extend(check.name for check in results if not check.problems)

    result = scenario.run(plan, home, lambda accepted, unfinished, active: None, after_checks=break_and_check)
    assert [f"{check.name}: {check.problems}" for check in result.checks if check.problems] == []
    # The faults really happened.
    for kind in (FaultKind.FREEZE_BEFORE_SETTLEMENT, FaultKind.HUNT_JOB, FaultKind.KILL_API_BEFORE_ANSWER):
        assert result.faults.done[kind] == 1
    assert result.callers.replayed >= 1
    assert result.costs.lost_to_kills >= 1
    assert result.costs.states["FAILED"] >= 1
    assert result.costs.lost_to_freezes >= 1
    assert result.starts["api"] >= 2
    assert passed == []


def break_everything(service: Environment, record: CallerRecord) -> None:
    """Break every promise once, so that every check must fail."""
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
    with psycopg.connect(service.database.url) as connection:
        (_, key), (forgotten, _), (reopened, _), (refunded, _) = connection.execute(completed).fetchall()
        connection.execute(reopen, [reopened])
        connection.execute(refund, [refunded])
    results = service.disk.folder / "results"
    os.truncate(service.disk.folder / key, 50)
    (results / "unrecorded").write_bytes(b"")
    record.accepted = {key: accepted for key, accepted in record.accepted.items() if accepted.job != str(forgotten)}
    record.errors.append("GET /v2/jobs/…: 500")
    service.receiver.received.pop()
    victim = service.workers[0]
    assert victim.process is not None
    victim.signal(signal.SIGKILL)
    victim.process.wait()
