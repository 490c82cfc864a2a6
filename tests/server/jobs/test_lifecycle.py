"""Lifecycle of a job on a real PostgreSQL: claims, leases, tokens, settlement, expired leases, the ledger."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from uuid import uuid4

import psycopg
import pytest

from hiresfix import messages
from hiresfix.errors import Conflict, InsufficientCredits, NotFound, OverBudget, RateLimited, Unavailable
from hiresfix.server.accounts.authentication import Caller
from hiresfix.server.database import query, task_queue
from hiresfix.server.database.pool import Tx
from hiresfix.server.jobs import headroom, lifecycle, retention
from hiresfix.server.jobs.model import Failed, RejectedResult, Unsupported
from hiresfix.states import JobState
from tests.server.conftest import commit
from tests.server.job_steps import JobSteps, submission, success


async def test_submission_is_one_transaction(steps: JobSteps) -> None:
    async def fail_after(tx: Tx) -> None:
        await lifecycle.submit(tx, steps.queue, submission(steps.caller))
        raise RuntimeError("the process dies here")

    with pytest.raises(RuntimeError):
        await commit(steps.database, fail_after)
    assert (await steps.balance(), await steps.tasks(), await steps.count("select count(*) from jobs")) == (100, 0, 0)
    await steps.submit()
    assert (await steps.balance(), await steps.tasks()) == (97, 1)


async def test_submission_without_credits_changes_nothing(steps: JobSteps) -> None:
    with pytest.raises(InsufficientCredits) as caught:
        await steps.submit(cost=101)
    assert (caught.value.required, caught.value.available) == (101, 100)
    assert (await steps.balance(), await steps.tasks()) == (100, 0)


async def test_submissions_on_one_budget_wait_for_each_other(steps: JobSteps) -> None:
    await commit(steps.database, lambda tx: query.execute(tx, "update api_keys set monthly_budget = 5"))
    async with steps.database.transaction() as tx:
        await lifecycle.submit(tx, steps.queue, submission(steps.caller))
        other = asyncio.create_task(steps.submit())
        await asyncio.sleep(0.3)
        assert not other.done()
    with pytest.raises(OverBudget) as caught:
        await other
    assert (caught.value.budget, caught.value.spent, caught.value.required) == (5, 3, 3)


async def test_one_of_many_claims_wins(steps: JobSteps) -> None:
    job = await steps.submit()
    claims = await asyncio.gather(*(steps.claim_next() for _ in range(20)))
    assert sum(claim is not None for claim in claims) == 1
    assert (await steps.get(job)).attempt == 1


async def test_completed_job_has_result_and_is_charged(steps: JobSteps) -> None:
    job = await steps.submit()
    claim = await steps.claim(job)
    assert await steps.settle(claim, success(claim)) is JobState.COMPLETED
    done = await steps.get(job)
    assert (done.state, done.progress, done.width, done.height) == ("COMPLETED", 100, 8, 6)
    assert done.completed_at is not None
    assert await steps.balance() == 97


async def test_settlement_counts_once(steps: JobSteps) -> None:
    claim = await steps.claim(await steps.submit())
    assert await steps.settle(claim, success(claim)) is JobState.COMPLETED
    assert await steps.settle(claim, success(claim)) is None
    assert await steps.settle(claim, Failed(error="late", retryable=False)) is None
    assert (await steps.get(claim.id)).state == "COMPLETED"
    assert await steps.balance() == 97


async def test_permanent_failure_refunds_once(steps: JobSteps) -> None:
    claim = await steps.claim(await steps.submit())
    await steps.renew(claim, 50)
    assert await steps.settle(claim, Failed(error="The image is damaged.", retryable=False)) is JobState.FAILED
    assert await steps.settle(claim, Failed(error="again", retryable=False)) is None
    failed = await steps.get(claim.id)
    assert (failed.state, failed.progress, failed.error) == ("FAILED", 0, "The image is damaged.")
    assert await steps.balance() == 100
    assert await steps.count("select count(*) from ledger where kind = 'refund'") == 1


async def test_failed_job_keeps_reason_and_params(steps: JobSteps) -> None:
    claim = await steps.claim(await steps.submit())
    error = messages.PROMPT_TOO_LONG(chunks=9, tokens=75, limit=4)
    await steps.settle(claim, Failed(error=error, retryable=False))
    failed = await steps.get(claim.id)
    assert (failed.error, failed.error_reason, failed.error_params) == (error, error.reason, error.params)


@pytest.mark.parametrize("outcome", [RejectedResult, Unsupported])
async def test_every_failed_attempt_keeps_its_reason(
    steps: JobSteps, monkeypatch: pytest.MonkeyPatch, outcome: type[RejectedResult | Unsupported]
) -> None:
    monkeypatch.setattr(lifecycle, "MAX_UNSUPPORTED", timedelta(seconds=-1))
    claim = await steps.claim(await steps.submit(max_attempts=1))
    assert await steps.settle(claim, outcome(error=messages.JOB_RESULT_REJECTED())) is JobState.FAILED
    failed = await steps.get(claim.id)
    assert (failed.error_reason, failed.error_params) == ("job_result_rejected", {})


async def test_sentence_without_reason_has_none(steps: JobSteps) -> None:
    claim = await steps.claim(await steps.submit())
    await steps.settle(claim, Failed(error="It broke.", retryable=False))
    failed = await steps.get(claim.id)
    assert (failed.error, failed.error_message, failed.error_reason, failed.error_params) == (
        "It broke.", None, None, None,
    )  # fmt: skip


async def test_retryable_failure_is_hidden_while_attempts_remain(steps: JobSteps) -> None:
    job = await steps.submit(max_attempts=2)
    first = await steps.claim(job)
    assert await steps.settle(first, Failed(error="store away", retryable=True)) is JobState.QUEUED
    assert await steps.claim_next() is None
    waiting = await steps.get(job)
    assert (waiting.state, waiting.error) == ("QUEUED", None)
    assert await steps.count("select count(*) from procrastinate_jobs where scheduled_at > now()") == 1
    await steps.pass_time()
    second = await steps.claim(job)
    assert second.token != first.token
    assert await steps.settle(second, Failed(error="store away", retryable=True)) is JobState.FAILED
    assert await steps.balance() == 100


async def test_progress_never_decreases_across_attempts(steps: JobSteps) -> None:
    job = await steps.submit()
    claim = await steps.claim(job)
    for progress, seen in ((40, 40), (30, 40), (100, 99)):
        assert await steps.renew(claim, progress)
        assert (await steps.get(job)).progress == seen
    await steps.settle(claim, Failed(error="x", retryable=True))
    await steps.pass_time()
    again = await steps.claim(job)
    await steps.renew(again, 5)
    assert (await steps.get(job)).progress == 99


async def test_expired_lease_requeues_and_fences_late_worker(steps: JobSteps) -> None:
    job = await steps.submit()
    late = await steps.claim(job, lease=-1)
    assert await steps.requeue_expired() == 1
    assert await steps.tasks() == 2  # the first, which some worker had fetched in real life, and a fresh one
    assert not await steps.renew(late)
    assert await steps.settle(late, success(late)) is None
    assert (await steps.get(job)).state == "QUEUED"
    claim = await steps.claim(job)
    assert claim.attempt == 2
    assert await steps.settle(late, Failed(error="late", retryable=False)) is None
    assert await steps.settle(claim, success(claim)) is JobState.COMPLETED


async def test_valid_lease_is_not_requeued(steps: JobSteps) -> None:
    claim = await steps.claim(await steps.submit(), lease=60)
    assert await steps.requeue_expired() == 0
    assert await steps.renew(claim)


async def test_job_that_kills_workers_fails_with_refund(steps: JobSteps) -> None:
    job = await steps.submit(max_attempts=2)
    for _ in range(2):
        await steps.claim(job, lease=-1)
        await steps.requeue_expired()
    failed = await steps.get(job)
    assert (failed.state, failed.error) == ("FAILED", lifecycle.INTERRUPTED)
    assert (failed.error_reason, failed.error_params) == ("job_interrupted", {})
    assert await steps.balance() == 100
    assert await steps.claim_next() is None


async def test_concurrent_requeues_requeue_each_job_once(steps: JobSteps) -> None:
    for _ in range(5):
        await steps.claim(await steps.submit(), lease=-1)
    before = await steps.tasks()
    counts = await asyncio.gather(*(steps.requeue_expired() for _ in range(10)))
    assert sum(counts) == 5
    assert await steps.tasks() == before + 5


async def test_lost_task_is_replaced(steps: JobSteps) -> None:
    job = await steps.submit()
    await steps.count("with gone as (delete from procrastinate_jobs returning 1) select count(*) from gone")
    assert await steps.replace_lost_tasks() == 1
    assert await steps.replace_lost_tasks() == 0
    assert (await steps.claim(job)).attempt == 1


async def test_give_back_costs_no_attempt(steps: JobSteps) -> None:
    job = await steps.submit(max_attempts=1)
    claim = await steps.claim(job)
    assert await steps.give_back(claim)
    assert not await steps.give_back(claim)
    again = await steps.claim(job)
    assert again.attempt == 1
    assert await steps.settle(again, success(again)) is JobState.COMPLETED


@pytest.mark.parametrize("running", [False, True])
async def test_cancel_ends_refunds_and_announces(steps: JobSteps, running: bool) -> None:
    job = await steps.submit(hook="https://example.com/h")
    claim = await steps.claim(job) if running else None
    cancelled = await steps.cancel(job)
    assert (cancelled.state, cancelled.error, cancelled.progress) == ("CANCELLED", "Job was cancelled", 0)
    assert cancelled.error_message is None
    assert cancelled.completed_at is not None
    assert await steps.balance() == 100
    body = await commit(steps.database, lambda tx: query.value(tx, "select body from webhook_deliveries"))
    sent = json.loads(body)
    assert (sent["event"], sent["status"], sent["error"]) == ("failed", "CANCELLED", "Job was cancelled")
    assert sent["creditCost"] == 0
    if claim:
        assert not await steps.renew(claim)
        assert await steps.settle(claim, success(claim)) is None
    with pytest.raises(Conflict, match="CANCELLED already"):
        await steps.cancel(job)
    assert await steps.claim_next() is None
    assert await steps.balance() == 100


async def test_only_those_who_see_a_job_cancel_it(steps: JobSteps) -> None:
    job = await steps.submit()
    stranger = Caller(user=uuid4(), team=steps.caller.team, key=uuid4(), role="MEMBER")
    with pytest.raises(NotFound):
        await steps.cancel(job, caller=stranger)
    assert (await steps.get(job)).state == "QUEUED"
    head = Caller(user=uuid4(), team=steps.caller.team, key=uuid4(), role="ADMIN")
    assert (await steps.cancel(job, caller=head)).state == "CANCELLED"


async def test_full_queue_estimates_retry_after(steps: JobSteps) -> None:
    for _ in range(3):
        await steps.submit()

    async def ask(seconds: float | None, *, per_team: int = 3, in_total: int = 9) -> int:
        with pytest.raises((RateLimited, Unavailable)) as caught:
            await commit(
                steps.database,
                lambda tx: headroom.check(
                    tx, steps.caller, per_team=per_team, in_total=in_total, seconds_per_job=seconds
                ),
            )
        error = caught.value
        assert isinstance(error, RateLimited | Unavailable)
        assert isinstance(error, RateLimited) == (in_total == 9)
        return error.retry_after

    assert (await ask(None), await ask(45.2), await ask(0.1)) == (headroom.DEFAULT_RETRY_AFTER, 46, 1)
    for _ in range(2):
        await steps.claim_next()
        await steps.submit()
    assert await ask(45.2) == 23
    assert await ask(45.2, per_team=9, in_total=3) == 23
    await steps.count("with u as (update teams set max_queued_jobs = 4 returning 1) select 1")
    await commit(steps.database, lambda tx: headroom.check(tx, steps.caller, per_team=3, in_total=9))


async def test_lease_renewal_writes_no_index(steps: JobSteps) -> None:
    """Renewals happen every few seconds for every running job, and the table `jobs` has a dozen indexes."""
    claim = await steps.claim(await steps.submit())

    async def renew(tx: Tx) -> int:
        assert await lifecycle.renew(tx, claim, progress=50, lease_seconds=15)
        return int(await query.value(tx, "select pg_stat_get_xact_tuples_hot_updated('jobs'::regclass)"))

    assert await commit(steps.database, renew) == 1


async def test_end_of_job_is_announced_to_webhook(steps: JobSteps) -> None:
    done, failed = await steps.submit(hook="https://example.com/h"), await steps.submit(hook="https://example.com/h")
    claim = await steps.claim(done)
    assert (await steps.get(done)).webhook_status == "pending"
    await steps.settle(claim, success(claim))
    await steps.settle(await steps.claim(failed), Failed(error="no", retryable=False))
    assert await steps.count("select count(*) from webhook_deliveries where event = 'completed'") == 1
    assert await steps.count("select count(*) from webhook_deliveries where event = 'failed'") == 1
    assert await steps.tasks("webhooks.deliver") == 2
    assert (await steps.get(done)).webhook_status == "pending"


async def test_tasks_of_dead_workers_are_deleted(steps: JobSteps) -> None:
    await steps.submit()
    await steps.count(
        "with w as (insert into procrastinate_workers (last_heartbeat)"
        " values (now() - interval '1 hour') returning id),"
        " t as (update procrastinate_jobs set status = 'doing', worker_id = w.id from w returning 1)"
        " select count(*) from t"
    )
    assert await commit(steps.database, task_queue.delete_orphaned_tasks) == 1


async def test_only_user_and_team_leads_see_a_job(steps: JobSteps) -> None:
    job = await steps.submit()
    stranger, colleague = uuid4(), uuid4()
    for user, team, role, visible in (
        (steps.caller.user, steps.caller.team, "MEMBER", True),
        (colleague, steps.caller.team, "ADMIN", True),
        (colleague, steps.caller.team, "MEMBER", False),
        (stranger, uuid4(), "OWNER", False),
    ):
        caller = Caller(user=user, team=team, key=uuid4(), role=role)
        see = commit(steps.database, lambda tx, who=caller: lifecycle.get(tx, job, caller=who))  # type: ignore[misc] # mypy cannot type a lambda's default
        if visible:
            assert (await see).id == job
        else:
            with pytest.raises(NotFound):
                await see


@pytest.mark.parametrize("statement", ["update ledger set amount = 0", "delete from ledger", "truncate ledger"])
async def test_ledger_is_append_only(steps: JobSteps, statement: str) -> None:
    with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
        await commit(steps.database, lambda tx: tx.execute(statement.encode()))


async def test_purge_waits_for_retention(steps: JobSteps) -> None:
    claim = await steps.claim(await steps.submit())
    await steps.settle(claim, success(claim))
    for period, due in ((timedelta(days=1), 0), (timedelta(0), 1)):
        async with steps.database.transaction() as tx:
            assert len(await retention.expired_results(tx, retention=period)) == due
    await commit(steps.database, lambda tx: retention.mark_result_purged(tx, claim.id))
    assert (await steps.get(claim.id)).expired
    assert await commit(steps.database, lambda tx: retention.expired_results(tx, retention=timedelta(0))) == []
