"""Webhook receiver with Django, in one file.

    HIRESFIX_API_KEY=afk_... DJANGO_SECRET_KEY=... python webhooks_django.py runserver 9000

Your own project needs only `hook` and its line in `urlpatterns`.
"""

from __future__ import annotations

import os
import sys

from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

import hiresfix
from hiresfix.client import BadSignature

if not settings.configured:
    settings.configure(
        SECRET_KEY=os.environ.get("DJANGO_SECRET_KEY", "only for trying it out"),
        ROOT_URLCONF=__name__,
        ALLOWED_HOSTS=["*"],
    )

finished: dict[str, tuple[str, ...]] = {}
"""Result URLs by job id. Use a database table instead; the same event may arrive twice."""


@csrf_exempt  # type: ignore[untyped-decorator] # Django has no types of its own
@require_POST  # type: ignore[untyped-decorator] # as above
def hook(request: HttpRequest) -> HttpResponse:
    # Verify the raw body: parsed and serialised again it would not match the signature.
    try:
        event = hiresfix.verify_webhook(request.body, request.headers, os.environ["HIRESFIX_API_KEY"])
    except BadSignature:
        return HttpResponse(status=400)
    if event.event == "completed":
        finished[event.job.id] = event.job.images
    return HttpResponse(status=204)


urlpatterns = [path("hook", hook)]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
