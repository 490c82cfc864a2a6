"""Operator commands for accounts and webhooks, run as typed, on a real database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hiresfix.cli import app
from hiresfix.errors import HiresfixError
from hiresfix.server.accounts import authentication
from hiresfix.server.database.pool import Database
from tests.server.job_steps import JobSteps, success

Run = Callable[..., str]


@pytest.fixture
def run(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command that must succeed; return its output without the final newline."""
    monkeypatch.setenv("HIRESFIX_DATABASE_URL", database_url)
    monkeypatch.setenv("HIRESFIX_HOME", str(tmp_path))
    monkeypatch.delenv("SUDO_USER", raising=False)

    def run(*words: object) -> str:
        result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout.rstrip("\n")

    return run


def status(database_url: str, key: str) -> str:
    """Return the role that the key authenticates as, or the error message."""

    async def ask() -> str:
        async with Database(database_url, max_size=1) as database, database.transaction() as tx:
            try:
                return (await authentication.authenticate(tx, key)).role
            except HiresfixError as error:
                return error.message

    return asyncio.run(ask())


def test_team_life_cycle(run: Run, database_url: str) -> None:
    run("keys", "create", "first")
    team = run("teams", "create", "Acme", "--grant", 50)
    user = run("users", "create", "Ann@example.com", "--team", "Acme", "--role", "OWNER", "--name", "Ann")
    key = run("keys", "create", "ci", "--user", "ann@EXAMPLE.com")
    assert status(database_url, key) == "OWNER"
    assert (run("credits", "balance", "--team", team), run("credits", "balance")) == ("50", "100")
    assert run("credits", "grant", 7, "--team", "Acme") == "57"
    run("teams", "set", "Acme", "--max-concurrent-jobs", 9, "--plan", "pro")
    assert "9" in run("teams", "list")
    for what, name in (("keys", "ci"), ("users", user), ("teams", team)):
        run(what, "suspend", name)
        assert status(database_url, key) == "API key is inactive"
        run(what, "resume", name)
        assert status(database_url, key) == "OWNER"
    run("keys", "rename", "ci", "nightly")
    assert "nightly" in run("keys", "list")
    with pytest.raises(HiresfixError, match="last owner"):
        run("users", "set-role", user, "MEMBER")
    run("keys", "revoke", "nightly")
    assert status(database_url, key) == "Invalid API key"
    log = run("audit", "list", "--subject", team)
    for action in ("team.create", "credits.grant", "team.change", "team.suspend", "team.resume"):
        assert action in log
    assert "os:" in log
    assert "Ann@example.com" in run("users", "list", "--team", "Acme")


def test_invalid_email_and_unknown_name_are_explained(run: Run) -> None:
    run("keys", "create", "first")
    refused = CliRunner().invoke(app, ["users", "create", "nobody", "--team", "Default"])
    assert refused.exit_code == 2
    assert "e-mail address" in refused.output
    with pytest.raises(HiresfixError, match="hiresfix teams list"):
        run("teams", "suspend", "Nowhere")


def test_invitation_is_listed_without_its_code(run: Run) -> None:
    code = run("invites", "create", "for Bob", "--days", 2)
    listed = run("invites", "list")
    assert code.startswith("inv_")
    assert code not in listed
    assert "for Bob" in listed


def test_secret_is_created_shown_and_rotated(run: Run) -> None:
    run("keys", "create", "first")
    secret = run("webhooks", "secret", "show")
    assert secret.startswith("whsec_")
    assert run("webhooks", "secret", "show", "--team", "Default") == secret
    new = run("webhooks", "secret", "rotate")
    assert new != secret
    log = run("audit", "list")
    assert secret not in log
    assert new not in log


def test_key_signing_mode_can_be_hex(run: Run) -> None:
    run("keys", "create", "first")
    run("keys", "signing", "first", "hex")
    assert "hex" in run("keys", "list")


async def make_failed_delivery(database_url: str) -> str:
    from hiresfix.server.database.task_queue import Queue
    from hiresfix.server.webhooks import events

    queue = Queue(database_url)
    async with Database(database_url, max_size=2) as database:
        async with database.transaction() as tx:
            key = await authentication.bootstrap(tx, free_credits=100, key_name="k")
        async with database.transaction() as tx:
            steps = JobSteps(database, queue, await authentication.authenticate(tx, key))
        claim = await steps.claim(await steps.submit(hook="https://dead.example/hook"))
        await steps.settle(claim, success(claim))
        async with database.transaction() as tx:
            (record,) = await events.newest(tx, limit=1)
            sent = await events.claim(tx, record.id)
            assert sent is not None
            outcome = events.DeliveryOutcome(status=410, excerpt="gone for good", milliseconds=12)
            await events.record(tx, queue, sent, outcome)
    return str(record.id)


def test_deliveries_are_listed_shown_redelivered_pruned(run: Run, database_url: str) -> None:
    delivery = asyncio.run(make_failed_delivery(database_url))
    for words in (("list",), ("list", "--state", "failed")):
        assert delivery in run("webhooks", *words)
    assert delivery not in run("webhooks", "list", "--state", "pending")
    shown = json.loads(run("webhooks", "show", delivery))
    assert (shown["state"], shown["attempts"][0]["status"], shown["attempts"][0]["answer"]) == (
        "FAILED", 410, "gone for good",
    )  # fmt: skip
    run("webhooks", "redeliver", delivery)
    assert delivery in run("webhooks", "list", "--state", "pending")
    assert "webhook.redeliver" in run("audit", "list", "--subject", delivery)
    assert run("webhooks", "prune", "--days", 0) == "0 rows deleted."
