"""`hiresfix serve`, `worker`, `migrate`: the service's processes."""

from __future__ import annotations

from typing import Annotated

import typer

STARTUP_FAILURE = 3
"""The exit status that uvicorn's own command line uses for it."""

Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every interface.")]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")]


def serve(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    processes: Annotated[
        int | None, typer.Option(min=1, help="API processes on this port; HIRESFIX_API_PROCESSES says it too.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Worker processes on this machine.")] = 1,
    no_worker: Annotated[bool, typer.Option("--no-worker", help="API only; run `hiresfix worker` elsewhere.")] = False,
) -> None:
    """Run the service: API and workers, on the embedded PostgreSQL unless HIRESFIX_DATABASE_URL names another."""
    from hiresfix.server import supervisor as serving
    from hiresfix.server.database import schema
    from hiresfix.server.platform import logging
    from hiresfix.server.settings import load_settings, warn_if_open

    settings = load_settings()
    logging.configure(settings.log_level)
    if "public_url" not in settings.model_fields_set:
        reachable = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104
        settings = settings.model_copy(update={"public_url": f"http://{reachable}:{port}"})
    warn_if_open(settings)
    serving.stop_on_signals()
    with serving.listen(host, port) as listening, serving.database(settings) as url:
        schema.migrate(url)
        key = _first_key(url, settings.free_credits)
        typer.echo(f"hiresfix is starting on {settings.public_url}", err=True)
        if key:  # on standard output, apart from the logs, which tend to be kept
            typer.echo(f"API key of the new team (shown only now): {key}")
        if settings.signin_minutes:
            link = _first_link(url, settings.public_url, settings.signin_minutes)
            typer.echo(f"Open the studio (once, within {settings.signin_minutes:g} minutes): {link}")
        children = serving.children(
            settings, listening, processes=processes or settings.api_processes, workers=0 if no_worker else workers
        )
        serving.Supervisor(settings=settings, database_url=url, children=children).run()


def _first_key(url: str, free_credits: int) -> str | None:
    import asyncio

    from hiresfix.server.accounts import authentication
    from hiresfix.server.database.pool import Database

    async def bootstrap() -> str | None:
        async with Database(url, max_size=1) as database, database.transaction() as tx:
            return await authentication.bootstrap(tx, free_credits=free_credits, key_name="Default")

    return asyncio.run(bootstrap())


def _first_link(url: str, public_url: str, minutes: float) -> str:
    """A sign-in link for the first owner, whoever looks at this terminal."""
    import asyncio
    from datetime import timedelta

    from hiresfix.server.accounts import authentication, login_links
    from hiresfix.server.database.pool import Database

    async def offer() -> str:
        async with Database(url, max_size=1) as database, database.transaction() as tx:
            owner = await authentication.first_owner(tx)
            return await login_links.offer(tx, owner, valid_for=timedelta(minutes=minutes), actor="os:serve")

    return login_links.link(public_url, asyncio.run(offer()))


def worker(
    devices: Annotated[
        str | None,
        typer.Option(
            help="A process for each: auto (every GPU there is), cpu, or numbers of GPUs: 0,1.", show_default=False
        ),
    ] = None,
) -> None:
    """Run a worker until SIGTERM, or one for each device; it then finishes its job, or gives it back."""
    from hiresfix.server import supervisor as serving
    from hiresfix.server.database import schema
    from hiresfix.server.platform import hardware, logging
    from hiresfix.server.settings import load_settings

    settings = load_settings()
    logging.configure(settings.log_level)
    serving.follow_supervisor()
    children = [] if devices is None else serving.workers_on(hardware.devices(devices), settings)
    if children:
        serving.stop_on_signals()
    with serving.database(settings) as url:
        schema.require_schema(url)
        if children:
            serving.Supervisor(settings=settings, database_url=url, children=children).run()
            return
        from hiresfix.server.worker import process as working

        working.run(settings, database_url=url)


def api(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    fd: Annotated[int | None, typer.Option(hidden=True, help="Listening socket inherited from `serve`.")] = None,
) -> None:
    """Run one API process (what `serve` starts)."""
    import socket

    from hiresfix.server import supervisor as serving
    from hiresfix.server.app import Server, create_app
    from hiresfix.server.database import schema
    from hiresfix.server.platform import logging
    from hiresfix.server.settings import load_settings

    settings = load_settings()
    logging.configure(settings.log_level)
    serving.follow_supervisor()
    with serving.database(settings) as url:
        schema.require_schema(url)
        app = create_app(settings, database_url=url)
        server = Server(app, host=host, port=port)
        server.run(sockets=None if fd is None else [socket.socket(fileno=fd)])
    if not server.started:
        raise typer.Exit(STARTUP_FAILURE)


def migrate() -> None:
    """Bring the database's schema to this release's version."""
    from hiresfix.server import supervisor as serving
    from hiresfix.server.database import schema
    from hiresfix.server.settings import load_settings

    with serving.database(load_settings()) as url:
        before, after = schema.migrate(url)
    typer.echo(f"The schema is up to date ({after})." if before == after else f"Migrated from {before} to {after}.")
