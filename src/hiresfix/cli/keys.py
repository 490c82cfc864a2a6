"""`hiresfix keys` and `login-link`: API keys, and links that log in a browser. Works while the server runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from hiresfix.cli.operator_session import in_transaction, operator, print_table, timestamp

if TYPE_CHECKING:
    from hiresfix.server.accounts.authentication import ApiKey
    from hiresfix.server.database.pool import Tx

keys = typer.Typer(no_args_is_help=True, help="Manage API keys.")

KeyName = Annotated[str, typer.Argument(metavar="KEY", help="Id, name or prefix of the key.")]


class SigningMode(StrEnum):
    """Values of `signing.KeyMode`, as choices of the command line."""

    RAW = "raw"
    HEX = "hex"


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="Name of the key, for example its purpose.")],
    user: Annotated[
        str | None, typer.Option(help="Id or e-mail address of the user. Default: the first owner.")
    ] = None,
) -> None:
    """Create a key and print nothing but the key on standard output. It is not shown again."""
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
    """List all keys, without their secrets."""
    from hiresfix.server.accounts import authentication

    rows = [
        (str(key.id), key.name, f"{key.prefix}…", key.email, key.team_name, _state(key), key.signing_mode,
         "" if key.monthly_budget is None else str(key.monthly_budget), timestamp(key.created_at),
         timestamp(key.last_used_at) or "never")
        for key in in_transaction(authentication.list_keys)
    ]  # fmt: skip
    print_table(("id", "name", "key", "user", "team", "state", "signs", "monthly budget", "created", "last used"), rows)


def _state(key: ApiKey) -> str:
    if key.revoked_at:
        return "revoked"
    if key.expires_at and key.expires_at <= datetime.now(UTC):
        return "expired"
    return "active" if key.active else "suspended"


@keys.command("rename")
def rename_key(
    key: KeyName, name: Annotated[str, typer.Argument(help="Name of the key, for example its purpose.")]
) -> None:
    """Change a key's name."""
    from hiresfix.server.accounts import api_keys

    changed = _with_key(key, lambda tx, row: api_keys.rename(tx, row, name, actor=operator()))
    typer.echo(f"Renamed {changed.name} ({changed.id}) to {name}.")


@keys.command("suspend")
def suspend_key(key: KeyName) -> None:
    """Refuse a key (403) until it is resumed."""
    from hiresfix.server.accounts import api_keys

    changed = _with_key(key, lambda tx, row: api_keys.suspend(tx, row, actor=operator()))
    typer.echo(f"Suspended {changed.name} ({changed.id}).")


@keys.command("resume")
def resume_key(key: KeyName) -> None:
    """Accept a suspended key again."""
    from hiresfix.server.accounts import api_keys

    changed = _with_key(key, lambda tx, row: api_keys.resume(tx, row, actor=operator()))
    typer.echo(f"Resumed {changed.name} ({changed.id}).")


@keys.command("revoke")
def revoke_key(key: KeyName) -> None:
    """Revoke a key at once, for good. Its jobs go on, and their webhooks are still signed with it."""
    from hiresfix.server.accounts import api_keys

    changed = _with_key(key, lambda tx, row: api_keys.revoke(tx, row, actor=operator()))
    typer.echo(f"Revoked {changed.name} ({changed.id}).")


@keys.command("signing")
def sign_as(
    key: KeyName,
    mode: Annotated[
        SigningMode,
        typer.Argument(help="Form of the key's SHA-256 digest that receivers use: raw bytes or hexadecimal text."),
    ],
) -> None:
    """Sign the key's webhooks with the raw bytes of its digest (default) or with their hexadecimal text."""
    from hiresfix.server.accounts import api_keys

    changed = _with_key(key, lambda tx, row: api_keys.set_signing_mode(tx, row, mode.value, actor=operator()))
    typer.echo(f"Webhooks of {changed.name} ({changed.id}) are signed in {mode} mode.")


@keys.command("budget")
def set_budget(
    key: KeyName,
    credits: Annotated[
        str, typer.Argument(metavar="N|none", help="Credits per calendar month (UTC), or none for no limit.")
    ],
) -> None:
    """Limit what a key may spend per month. A refund counts for the month of its charge."""
    from hiresfix.server.accounts import api_keys

    if credits != "none" and not (credits.isascii() and credits.isdigit()):
        raise typer.BadParameter(f"{credits!r} is not a whole number of credits, nor none.", param_hint="N|none")
    monthly = None if credits == "none" else int(credits)
    changed = _with_key(key, lambda tx, row: api_keys.set_budget(tx, row, monthly, actor=operator()))
    limit = "all credits of its team" if monthly is None else f"{monthly} credits per month"
    typer.echo(f"{changed.name} ({changed.id}) may spend {limit}.")


LinkUser = Annotated[str | None, typer.Option(help="Id or e-mail address of the user. Default: the first owner.")]
Minutes = Annotated[float, typer.Option(min=1, max=24 * 60, help="How long the link works.")]


def login_link(user: LinkUser = None, minutes: Minutes = 15.0) -> None:
    """Print a link that logs a browser in to the studio, once. The browser gets an API key for 30 days."""
    from hiresfix.server.accounts import authentication, login_links, teams
    from hiresfix.server.settings import load_settings

    async def create(tx: Tx) -> str:
        owner = await teams.find_user(tx, user or str(await authentication.first_owner(tx)))
        return await login_links.create(tx, owner.id, valid_for=timedelta(minutes=minutes), actor=operator())

    typer.echo(login_links.url(load_settings().public_url, in_transaction(create)))


def sign_in(user: LinkUser = None, minutes: Minutes = 15.0) -> None:
    """Print a login link; old name of `hiresfix login-link`."""
    typer.echo("`hiresfix signin` is now `hiresfix login-link`. Use the new name.", err=True)
    login_link(user, minutes)


def _with_key(name: str, change: Callable[[Tx, ApiKey], Awaitable[None]]) -> ApiKey:
    from hiresfix.server.accounts import authentication

    async def work(tx: Tx) -> ApiKey:
        row = await authentication.find_key(tx, name)
        await change(tx, row)
        return row

    return in_transaction(work)
