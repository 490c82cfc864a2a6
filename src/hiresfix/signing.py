"""Webhook signatures: HMAC-SHA256 over the exact body bytes, keyed by the digest of the API key.

The sender needs only the stored digest, never the plaintext key; a receiver makes the digest from the key it
has. This module knows neither bodies nor how they travel.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Literal, TypeAlias

KeyMode: TypeAlias = Literal["raw", "hex"]
"""How the digest becomes the HMAC key: its 32 bytes, or its 64 lowercase hex characters as ASCII."""

SIGNATURE_HEADER = "X-Webhook-Signature"
_PREFIX = "sha256="


def digest_api_key(api_key: str) -> bytes:
    """The 32 bytes that stand for an API key at rest; they sign webhooks, so they are a secret too."""
    return hashlib.sha256(api_key.encode()).digest()


def sign(body: bytes, key_digest: bytes, mode: KeyMode = "raw") -> str:
    """The value of `X-Webhook-Signature`: `sha256=` and 64 lowercase hex digits.

    `key_digest` is `digest_api_key` of the key that submitted the job; raises ValueError unless it has 32 bytes.
    """
    if len(key_digest) != hashlib.sha256().digest_size:
        raise ValueError(f"The key digest has {len(key_digest)} bytes, not 32. Pass digest_api_key(api_key).")
    key = key_digest if mode == "raw" else key_digest.hex().encode("ascii")
    return _PREFIX + hmac.new(key, body, hashlib.sha256).hexdigest()


def verify(body: bytes, signature: str | None, key_digest: bytes, mode: KeyMode = "raw") -> bool:
    """Whether `signature`, the header as received (None if it is missing), belongs to these bytes.

    Takes the same time for every wrong value of the same length.
    """
    if signature is None:
        return False
    return hmac.compare_digest(sign(body, key_digest, mode).encode(), signature.encode(errors="replace"))


TEAM_PREFIX = "whsec_"
TOLERANCE = 300.0
"""Seconds that a Standard Webhooks signature may be away from now."""


def verify_standard(
    body: bytes, secret: str, *, delivery: str | None, timestamp: str | None, signatures: str | None, now: float
) -> bool:
    """Whether one of the `webhook-signature`s belongs to this delivery, time and body, and is of these minutes.

    secret: `whsec_` and base64. now: unix seconds. Source: the specification at standardwebhooks.com. Raises ValueError
    for a secret that is none.
    """
    if delivery is None or timestamp is None or signatures is None:
        return False
    if not timestamp.isascii() or not timestamp.isdigit() or abs(now - int(timestamp)) > TOLERANCE:
        return False
    key = base64.b64decode(secret.removeprefix(TEAM_PREFIX), validate=True)
    told = hmac.new(key, f"{delivery}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    expected = b"v1," + base64.b64encode(told)
    return any(hmac.compare_digest(expected, one.encode(errors="replace")) for one in signatures.split())
