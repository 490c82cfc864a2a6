"""Webhook receiver with Flask.

HIRESFIX_API_KEY=afk_... flask --app webhooks_flask run --port 9000
"""

from __future__ import annotations

import os

from flask import Flask, Response, request

import hiresfix
from hiresfix.client import BadSignature

app = Flask(__name__)
finished: dict[str, tuple[str, ...]] = {}
"""Result URLs by job id. Use a database table instead; the same event may arrive twice."""


@app.post("/hook")
def hook() -> Response:
    # Verify the raw body: parsed and serialised again it would not match the signature.
    try:
        event = hiresfix.verify_webhook(request.get_data(), request.headers, os.environ["HIRESFIX_API_KEY"])
    except BadSignature:
        return Response(status=400)
    if event.event == "completed":
        finished[event.job.id] = event.job.images
    return Response(status=204)
