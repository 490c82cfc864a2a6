"""`hiresfix keys`: API keys, handed out and taken back. Works beside a running server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from hiresfix.cli.operator_session import in_transaction, moment, operator, table

if TYPE_CHECKING:
    from hiresfix.server.accounts.authentication import Key
    from hiresfix.server.database.pool import Tx

keys = typer.Typer(no_args_is_help=True, help="API keys.")

KeyName = Annotated[str, typer.Argument(metavar="KEY", help="Its id, name or prefix.")]


class SigningMode(StrEnum):
    """`signing.KeyMode` as words of the command line."""

    RAW = "raw"
    HEX = "hex"


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    user: Annotated[str | None, typer.Option(help="Whose: an id or e-mail address; default: the first owner.")] = None,
) -> None:
    """Make a key and print it, alone, on standard output. It is never shown again."""
    from hiresfix.server.accounts import api_keys, authentication, teams
    from hiresfix.server.settings import load_settings

    async def create(tx: Tx) -> str:
        first = await authentication.bootstrap(tx, free_credits=load_settings().free_credits, key_name=name)
        if first and user is None:
            return first
        owner = await teams.find_user(tx, user or str(await authentication.first_owner(tx)))
        return await api_keys.issue(tx, owner.id, name, actor=operator())

    typer.echo(in_transaction(create))


@keys.command("list")
def list_keys() -> None:
    """Show all keys, without the keys themselves."""
    from hiresfix.server.accounts import authentication

    rows = [
        (str(key.id), key.name, f"{key.prefix}…", key.email, key.team_name, _state(key), key.signing_mode,
         "" if key.monthly_budget is None else str(key.monthly_budget), moment(key.created_at),
         moment(key.last_used_at) or "never")
        for key in in_transaction(authentication.keys)
    ]  # fmt: skip
    table(("id", "name", "key", "user", "team", "state", "signs", "monthly budget", "created", "last used"), rows)


def _state(key: Key) -> str:
    if key.revoked_at:
        return "revoked"
    if key.expires_at and key.expires_at <= datetime.now(UTC):
        return "expired"
    return "active" if key.active else "suspended"


@keys.command("rename")
def rename_key(key: KeyName, name: Annotated[str, typer.Argument(help="What the key is for.")]) -> None:
    """Change a key's name."""
    from hiresfix.server.accounts import api_keys

    found = _with_key(key, lambda tx, found: api_keys.rename(tx, found, name, actor=operator()))
    typer.echo(f"{found.name} ({found.id}) is called {name}.")


@keys.command("suspend")
def suspend_key(key: KeyName) -> None:
    """Refuse a key (403) until it is resumed."""
    from hiresfix.server.accounts import api_keys

    found = _with_key(key, lambda tx, found: api_keys.suspend(tx, found, actor=operator()))
    typer.echo(f"Suspended {found.name} ({found.id}).")


@keys.command("resume")
def resume_key(key: KeyName) -> None:
    """Let a suspended key in again."""
    from hiresfix.server.accounts import api_keys

    found = _with_key(key, lambda tx, found: api_keys.resume(tx, found, actor=operator()))
    typer.echo(f"Resumed {found.name} ({found.id}).")


@keys.command("revoke")
def revoke_key(key: KeyName) -> None:
    """Revoke a key at once. Jobs it submitted go on, and their webhooks are still signed with it."""
    from hiresfix.server.accounts import api_keys

    found = _with_key(key, lambda tx, found: api_keys.revoke(tx, found, actor=operator()))
    typer.echo(f"Revoked {found.name} ({found.id}).")


@keys.command("signing")
def sign_as(
    key: KeyName, mode: Annotated[SigningMode, typer.Argument(help="What receivers make of the key's SHA-256.")]
) -> None:
    """Sign the key's webhooks with its digest's raw bytes (default) or with their hexadecimal text."""
    from hiresfix.server.accounts import api_keys

    found = _with_key(key, lambda tx, found: api_keys.sign_as(tx, found, mode.value, actor=operator()))
    typer.echo(f"Webhooks of {found.name} ({found.id}) are signed in {mode} mode.")


@keys.command("budget")
def set_budget(
    key: KeyName,
    credits: Annotated[str, typer.Argument(metavar="N|none", help="Whole credits a calendar month (UTC).")],
) -> None:
    """Bound what a key may spend in a month. Refunds give back to the month of their charge."""
    from hiresfix.server.accounts import api_keys

    if credits != "none" and not (credits.isascii() and credits.isdigit()):
        raise typer.BadParameter(f"{credits!r} is neither whole credits nor none.", param_hint="N|none")
    monthly = None if credits == "none" else int(credits)
    found = _with_key(key, lambda tx, found: api_keys.set_budget(tx, found, monthly, actor=operator()))
    may = "as much as its team has" if monthly is None else f"{monthly} credits a month"
    typer.echo(f"{found.name} ({found.id}) may spend {may}.")


def sign_in(
    user: Annotated[str | None, typer.Option(help="Whose: an id or e-mail address; default: the first owner.")] = None,
    minutes: Annotated[float, typer.Option(min=1, max=24 * 60, help="How long the link works.")] = 15.0,
) -> None:
    """Print a link that signs a browser in to the studio, once. Whoever opens it gets a key that lasts 30 days."""
    from hiresfix.server.accounts import authentication, login_links, teams
    from hiresfix.server.settings import load_settings

    async def offer(tx: Tx) -> str:
        who = await teams.find_user(tx, user or str(await authentication.first_owner(tx)))
        return await login_links.offer(tx, who.id, valid_for=timedelta(minutes=minutes), actor=operator())

    typer.echo(login_links.link(load_settings().public_url, in_transaction(offer)))


def _with_key(wanted: str, change: Callable[[Tx, Key], Awaitable[None]]) -> Key:
    from hiresfix.server.accounts import authentication

    async def work(tx: Tx) -> Key:
        found = await authentication.find_key(tx, wanted)
        await change(tx, found)
        return found

    return in_transaction(work)
