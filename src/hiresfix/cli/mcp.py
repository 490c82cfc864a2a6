"""`hiresfix mcp`: upscaling on a server for agents, over the Model Context Protocol."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def mcp(
    http: Annotated[bool, typer.Option("--http", help="Streamable HTTP at /mcp instead of standard input.")] = False,
    host: Annotated[str, typer.Option(help="Address to listen on; only with --http.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on; only with --http.")] = 8765,
    folder: Annotated[
        Path | None,
        typer.Option(help="The only folder agents may read and write. With --http the default is the current one."),
    ] = None,
) -> None:
    """Offer the tools upscale, job_status, cancel_job and list_models to agents.

    Uses the server at HIRESFIX_URL with HIRESFIX_API_KEY. With --http, agents must send the token in
    HIRESFIX_MCP_TOKEN; it is required unless the server listens on this machine only.
    """
    from hiresfix.errors import ConfigurationError

    if folder is not None and not folder.is_dir():
        raise typer.BadParameter(f"{folder} is not a folder.", param_hint="--folder")
    token = os.environ.get("HIRESFIX_MCP_TOKEN", "")
    if http and host not in LOOPBACK and not token:
        raise ConfigurationError(
            f"Everybody who can reach {host} could spend your credits. Set HIRESFIX_MCP_TOKEN, or listen on 127.0.0.1."
        )
    from hiresfix.client import AsyncClient
    from hiresfix.mcp import BearerTokenMiddleware, build

    if not http:
        build(AsyncClient(), folder=folder).run("stdio")
        return
    import uvicorn

    app = build(AsyncClient(), folder=folder or Path.cwd()).streamable_http_app(host=host)
    typer.echo(f"MCP server on http://{host}:{port}/mcp", err=True)
    uvicorn.run(BearerTokenMiddleware(app, token) if token else app, host=host, port=port, log_level="warning")
