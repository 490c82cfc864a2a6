"""Command line of hiresfix.

Every command imports what it needs when it runs: `--help` is instant, and an installation without the server or the
engine still has the other commands. Exit codes are listed in `hiresfix.cli.exit_codes`.
"""

from __future__ import annotations

import sys

import typer

from hiresfix import __version__
from hiresfix.cli import accounts, admin, doctor, exit_codes, keys, mcp, models, server, upscale, webhooks
from hiresfix.errors import HiresfixError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Upscale images and invent plausible detail: on this machine, or as a service with a job API.",
)
app.command("upscale", epilog=exit_codes.EPILOG)(upscale.upscale)
app.command("serve")(server.serve)
app.command("worker")(server.worker)
app.command("workers")(admin.workers)
app.command("api", hidden=True)(server.api)
app.command("migrate")(server.migrate)
app.command("login-link")(keys.login_link)
app.command("signin", hidden=True)(keys.sign_in)
app.command("mcp")(mcp.mcp)
app.command("doctor")(doctor.doctor)
app.add_typer(accounts.teams, name="teams")
app.add_typer(accounts.users, name="users")
app.add_typer(keys.keys, name="keys")
app.add_typer(accounts.invites, name="invites")
app.add_typer(accounts.audit, name="audit")
app.add_typer(admin.credits, name="credits")
app.add_typer(admin.jobs, name="jobs")
app.add_typer(webhooks.webhooks, name="webhooks")
app.add_typer(models.models, name="models")


@app.command()
def version() -> None:
    """Print the version of hiresfix."""
    typer.echo(__version__)


_EXTRA_OF = {
    "torch": "engine",
    "diffusers": "engine",
    "transformers": "engine",
    "safetensors": "engine",
    "PIL": "engine",
    "numpy": "engine",
    "fastapi": "server",
    "uvicorn": "server",
    "psycopg": "server",
    "pydantic": "server",
    "pydantic_settings": "server",
    "structlog": "server",
    "alembic": "server",
    "obstore": "server",
    "procrastinate": "server",
    "standardwebhooks": "server",
    "email_validator": "server",
    "mcp": "mcp",
}


def main() -> None:
    """Run the command line. Print an expected error as one line that says what to do."""
    try:
        app()
    except HiresfixError as error:
        _fail(str(error), exit_codes.code_of(error))
    except ModuleNotFoundError as error:
        extra = _EXTRA_OF.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        _fail(f"This command needs the extra {extra!r}. Install it with: pip install 'hiresfix[{extra}]'")
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)
        sys.exit(exit_codes.INTERRUPTED)


def _fail(message: str, code: int = exit_codes.FAILED) -> None:
    typer.secho(message, fg=typer.colors.RED, err=True)
    sys.exit(code)
