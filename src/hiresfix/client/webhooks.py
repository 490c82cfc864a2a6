"""Verification of webhooks for those who receive them.

Works with any framework: pass the request's body as it arrived, before anything parsed it, and its headers. Understands
both signatures: by the API key that submitted the job (`X-Webhook-Signature`), and by the team's secret after Standard
Webhooks (`webhook-signature`), which also protects against replays.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from hiresfix import webhook_signing
from hiresfix.client.errors import BadSignature, UnexpectedAnswer
from hiresfix.client.values import WebhookEvent


class Headers(Protocol):
    """Headers of a request in any framework: a dict or something like one."""

    def items(self) -> Iterable[tuple[str, str]]: ...


def verify_webhook(
    payload: bytes | str,
    headers: Headers,
    secret: str | Sequence[str],
    *,
    clock: Callable[[], float] = time.time,
) -> WebhookEvent:
    """Return the event of a webhook whose signature is valid.

    Args:
        payload: the exact bytes of the body.
        headers: the request's headers; names in any case.
        secret: an API key (afk_…), a team's secret (whsec_…), or several of them.
        clock: seconds since the epoch; injectable for tests.

    Raises:
        BadSignature: no valid signature, or a team's signature older than five minutes. Answer 400.
        UnexpectedAnswer: the signed body is not an event.
        ValueError: there is no secret.
    """
    secrets = [secret] if isinstance(secret, str) else list(secret)
    if not secrets or not all(secrets):
        raise ValueError("There is no secret to verify with. Pass the API key, or the team's whsec_ secret.")
    body = payload.encode() if isinstance(payload, str) else bytes(payload)
    lower_headers = {str(name).lower(): str(value) for name, value in headers.items()}
    if not any(_is_signed(body, lower_headers, one, clock) for one in secrets):
        raise BadSignature(
            "The webhook's signature is missing, too old or made with another secret. Check that you pass the body "
            "as it arrived, and the secret of the API key or team that submitted the job."
        )
    try:
        return WebhookEvent.read(json.loads(body))
    except ValueError as error:
        raise UnexpectedAnswer("The webhook's body is not JSON.") from error


def _is_signed(body: bytes, headers: Mapping[str, str], secret: str, clock: Callable[[], float]) -> bool:
    if secret.startswith(webhook_signing.TEAM_PREFIX):
        return webhook_signing.verify_standard(
            body,
            secret,
            delivery=headers.get("webhook-id"),
            timestamp=headers.get("webhook-timestamp"),
            signatures=headers.get("webhook-signature"),
            now=clock(),
        )
    digest = webhook_signing.digest_api_key(secret)
    signature = headers.get(webhook_signing.SIGNATURE_HEADER.lower())
    modes: tuple[webhook_signing.KeyMode, ...] = ("raw", "hex")
    return any(webhook_signing.verify(body, signature, digest, mode) for mode in modes)
