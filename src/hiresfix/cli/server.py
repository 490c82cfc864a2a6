"""`hiresfix serve`, `worker`, `migrate`: processes of the service."""

from __future__ import annotations

from typing import Annotated

import typer

STARTUP_FAILURE = 3
"""Exit status of uvicorn's own command line for a failed start."""

Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every interface.")]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")]


def serve(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    processes: Annotated[
        int | None, typer.Option(min=1, help="API processes on this port. Default: HIRESFIX_API_PROCESSES.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Worker processes on this machine.")] = 1,
    no_worker: Annotated[
        bool, typer.Option("--no-worker", help="Start no worker; run `hiresfix worker` on other machines.")
    ] = False,
) -> None:
    """Run the service: API and workers. Uses the embedded PostgreSQL unless HIRESFIX_DATABASE_URL is set."""
    from hiresfix.server import supervisor
    from hiresfix.server.database import schema
    from hiresfix.server.platform import logging
    from hiresfix.server.settings import load_settings, warn_if_open, warn_of_former_names

    settings = load_settings()
    logging.configure(settings.log_level)
    warn_of_former_names()
    if "public_url" not in settings.model_fields_set:
        reachable = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104
        settings = settings.model_copy(update={"public_url": f"http://{reachable}:{port}"})
    warn_if_open(settings)
    supervisor.stop_on_signals()
    with supervisor.listen(host, port) as listening, supervisor.database(settings) as url:
        schema.migrate(url)
        key = _first_key(url, settings.free_credits)
        typer.echo(f"hiresfix is starting on {settings.public_url}", err=True)
        if key:  # on standard output: logs are kept, and must not hold the key
            typer.echo(f"API key of the new team (not shown again): {key}")
        if settings.login_link_minutes:
            link = _first_link(url, settings.public_url, settings.login_link_minutes)
            typer.echo(f"Open the studio (once, within {settings.login_link_minutes:g} minutes): {link}")
        children = supervisor.child_processes(
            settings, listening, processes=processes or settings.api_processes, workers=0 if no_worker else workers
        )
        supervisor.Supervisor(settings=settings, database_url=url, children=children).run()


def _first_key(url: str, free_credits: int) -> str | None:
    import asyncio

    from hiresfix.server.accounts import authentication
    from hiresfix.server.database.pool import Database

    async def bootstrap() -> str | None:
        async with Database(url, max_size=1) as database, database.transaction() as tx:
            return await authentication.bootstrap(tx, free_credits=free_credits, key_name="Default")

    return asyncio.run(bootstrap())


def _first_link(url: str, public_url: str, minutes: float) -> str:
    """Return a login link for the first owner."""
    import asyncio
    from datetime import timedelta

    from hiresfix.server.accounts import authentication, login_links
    from hiresfix.server.database.pool import Database

    async def create() -> str:
        async with Database(url, max_size=1) as database, database.transaction() as tx:
            owner = await authentication.first_owner(tx)
            return await login_links.create(tx, owner, valid_for=timedelta(minutes=minutes), actor="os:serve")

    return login_links.url(public_url, asyncio.run(create()))


def worker(
    devices: Annotated[
        str | None,
        typer.Option(
            help="One process per device: auto (all GPUs), cpu, or numbers of GPUs such as 0,1.", show_default=False
        ),
    ] = None,
) -> None:
    """Run a worker, or one per device. On SIGTERM it finishes its job, or returns it to the queue."""
    from hiresfix.server import supervisor
    from hiresfix.server.database import schema
    from hiresfix.server.platform import hardware, logging
    from hiresfix.server.settings import load_settings, warn_of_former_names

    settings = load_settings()
    logging.configure(settings.log_level)
    warn_of_former_names()
    supervisor.follow_supervisor()
    children = [] if devices is None else supervisor.worker_processes(hardware.devices(devices), settings)
    if children:
        supervisor.stop_on_signals()
    with supervisor.database(settings) as url:
        schema.require_schema(url)
        if children:
            supervisor.Supervisor(settings=settings, database_url=url, children=children).run()
            return
        from hiresfix.server.worker import process

        process.run(settings, database_url=url)


def api(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    fd: Annotated[int | None, typer.Option(hidden=True, help="Listening socket inherited from `serve`.")] = None,
) -> None:
    """Run one API process, as `serve` does."""
    import socket

    from hiresfix.server import supervisor
    from hiresfix.server.app import Server, create_app
    from hiresfix.server.database import schema
    from hiresfix.server.platform import logging
    from hiresfix.server.settings import load_settings, warn_of_former_names

    settings = load_settings()
    logging.configure(settings.log_level)
    warn_of_former_names()
    supervisor.follow_supervisor()
    with supervisor.database(settings) as url:
        schema.require_schema(url)
        app = create_app(settings, database_url=url)
        server = Server(app, host=host, port=port)
        server.run(sockets=None if fd is None else [socket.socket(fileno=fd)])
    if not server.started:
        raise typer.Exit(STARTUP_FAILURE)


def migrate() -> None:
    """Update the database schema to this release."""
    from hiresfix.server import supervisor
    from hiresfix.server.database import schema
    from hiresfix.server.settings import load_settings

    with supervisor.database(load_settings()) as url:
        before, after = schema.migrate(url)
    typer.echo(f"The schema is up to date ({after})." if before == after else f"Migrated from {before} to {after}.")
