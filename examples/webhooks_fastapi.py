"""Webhook receiver with FastAPI.

HIRESFIX_API_KEY=afk_... uvicorn webhooks_fastapi:app --port 9000
"""

from __future__ import annotations

import os

from fastapi import FastAPI, Request, Response

import hiresfix
from hiresfix.client import BadSignature

app = FastAPI()
finished: dict[str, tuple[str, ...]] = {}
"""Result URLs by job id. Use a database table instead; the same event may arrive twice."""


@app.post("/hook")
async def hook(request: Request) -> Response:
    # Verify the raw body: parsed and serialised again it would not match the signature.
    try:
        event = hiresfix.verify_webhook(await request.body(), request.headers, os.environ["HIRESFIX_API_KEY"])
    except BadSignature:
        return Response(status_code=400)
    if event.event == "completed":
        finished[event.job.id] = event.job.images
    return Response(status_code=204)
