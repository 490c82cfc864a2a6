"""For receivers of webhooks: whether one is from the server it says it is from, and what it tells.

Works with any framework: hand over the body as it came, before anybody parsed it, and the request's headers. Both
signatures are understood: by the API key that submitted the job (`X-Webhook-Signature`), and by the team's secret after
Standard Webhooks (`webhook-signature`), which also refuses what was recorded and is played again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from hiresfix import signing
from hiresfix.client.errors import BadSignature, UnexpectedAnswer
from hiresfix.client.values import WebhookEvent


class Headers(Protocol):
    """A request's headers, as every framework has them: a dict, or something like one."""

    def items(self) -> Iterable[tuple[str, str]]: ...


def verify_webhook(
    payload: bytes | str,
    headers: Headers,
    secret: str | Sequence[str],
    *,
    clock: Callable[[], float] = time.time,
) -> WebhookEvent:
    """What the webhook tells, if it is signed with `secret`: an API key (afk_…), a team's secret (whsec_…), or several.

    payload: the body's exact bytes. headers: names in any case. Raises BadSignature, also for a team's
    signature that is more than five minutes old; answer 400 then. Raises ValueError without a secret.
    """
    secrets = [secret] if isinstance(secret, str) else list(secret)
    if not secrets or not all(secrets):
        raise ValueError("There is no secret to verify with. Pass the API key, or the team's whsec_ secret.")
    body = payload.encode() if isinstance(payload, str) else bytes(payload)
    found = {str(name).lower(): str(value) for name, value in headers.items()}
    if not any(_signed(body, found, one, clock) for one in secrets):
        raise BadSignature(
            "The webhook's signature is missing, too old or not made with this secret. Check that the body is passed "
            "as it came and that the secret is the one of whoever submitted the job."
        )
    try:
        return WebhookEvent.read(json.loads(body))
    except ValueError as error:
        raise UnexpectedAnswer("The webhook's body is no JSON.") from error


def _signed(body: bytes, headers: Mapping[str, str], secret: str, clock: Callable[[], float]) -> bool:
    if secret.startswith(signing.TEAM_PREFIX):
        return signing.verify_standard(
            body,
            secret,
            delivery=headers.get("webhook-id"),
            timestamp=headers.get("webhook-timestamp"),
            signatures=headers.get("webhook-signature"),
            now=clock(),
        )
    digest = signing.digest_api_key(secret)
    signature = headers.get(signing.SIGNATURE_HEADER.lower())
    modes: tuple[signing.KeyMode, ...] = ("raw", "hex")
    return any(signing.verify(body, signature, digest, mode) for mode in modes)
