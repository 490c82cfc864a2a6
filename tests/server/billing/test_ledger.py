"""The ledger, and the operator commands that change it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import UUID, uuid4

import pytest
from typer.testing import CliRunner, Result

from hiresfix import cli
from hiresfix.cli.operator_session import operator
from hiresfix.errors import InsufficientCredits, NotFound
from hiresfix.server.billing import ledger
from hiresfix.server.database.pool import Database
from tests.server.conftest import Api, commit

Hiresfix = Callable[..., Result]


@pytest.fixture
def hiresfix(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Hiresfix:
    monkeypatch.setenv("HIRESFIX_DATABASE_URL", database_url)
    return lambda *words: CliRunner().invoke(cli.app, list(words))


def test_adjustment_never_goes_below_zero(api: Api, hiresfix: Hiresfix) -> None:
    assert hiresfix("credits", "adjust", "-40", "--reason", "double grant").stdout == "60\n"
    assert hiresfix("credits", "adjust", "5").stdout == "65\n"
    refused = hiresfix("credits", "adjust", "-66")
    assert refused.exit_code == 2
    assert "only 65 credits" in refused.stderr
    assert hiresfix("credits", "adjust", "0").exit_code == 2
    assert api.balance == 65
    assert api.value("select reason from ledger where amount = -40") == "double grant"


def test_operator_refund_counts_once(api: Api, photo: str, hiresfix: Hiresfix) -> None:
    job = api.submit({"image": photo}).json()["jobId"]
    assert hiresfix("credits", "refund", job, "--reason", "seams").stdout == f"Refunded {job}.\n"
    assert hiresfix("credits", "refund", job).stdout == f"{job} was already refunded.\n"
    assert api.balance == 100
    assert api.value("select actor || ': ' || reason from ledger where kind = 'refund'") == f"{operator()}: seams"
    missing = hiresfix("credits", "refund", str(uuid4()))
    assert isinstance(missing.exception, NotFound)
    assert "hiresfix jobs list" in missing.exception.message


def test_budget_is_set_shown_and_removed(api: Api, photo: str, hiresfix: Hiresfix) -> None:
    assert "test" in hiresfix("keys", "budget", "test", "5").stdout
    assert [api.submit({"image": photo}).status_code for _ in range(2)] == [202, 403]
    assert "monthly budget" in hiresfix("keys", "list").stdout
    assert "all credits of its team" in hiresfix("keys", "budget", "test", "none").stdout
    assert api.submit({"image": photo}).status_code == 202
    for wrong in ("-1", "1.5", "all"):
        assert hiresfix("keys", "budget", "test", "--", wrong).exit_code == 2
    assert isinstance(hiresfix("keys", "budget", "nobody", "5").exception, NotFound)


async def test_racing_refunds_count_once(api: Api, photo: str, database: Database) -> None:
    job = UUID(api.submit({"image": photo}).json()["jobId"])

    async def refund() -> bool:
        return await commit(database, lambda tx: ledger.refund_by_hand(tx, job, actor="test", reason="test"))

    assert sorted(await asyncio.gather(*(refund() for _ in range(8)))) == [False] * 7 + [True]
    assert api.balance == 100


async def test_insufficient_credits_leave_transaction_usable(api: Api, database: Database) -> None:
    team = api.value("select id from teams")
    async with database.transaction() as tx:
        with pytest.raises(InsufficientCredits):
            await ledger.adjust(tx, team, -101, actor="test", reason="test")
        assert await ledger.adjust(tx, team, -100, actor="test", reason="test") == 0
    assert api.balance == 0
