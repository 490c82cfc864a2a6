"""Webhook signatures: HMAC-SHA256 over the exact body bytes, keyed by the digest of the API key.

The sender needs only the stored digest, never the plaintext key; the receiver computes the digest from its key.
This module knows nothing about the content or the transport of a body.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Literal, TypeAlias

KeyMode: TypeAlias = Literal["raw", "hex"]
"""Form of the digest as HMAC key: its 32 bytes, or its 64 lowercase hex characters as ASCII."""

SIGNATURE_HEADER = "X-Webhook-Signature"
_PREFIX = "sha256="


def digest_api_key(api_key: str) -> bytes:
    """Return the 32-byte SHA-256 digest that is stored for an API key.

    The digest signs webhooks, so it is a secret too.
    """
    return hashlib.sha256(api_key.encode()).digest()


def sign(body: bytes, key_digest: bytes, mode: KeyMode = "raw") -> str:
    """Return the value of `X-Webhook-Signature`: `sha256=` and 64 lowercase hex digits.

    Args:
        body: the exact bytes that are sent.
        key_digest: `digest_api_key` of the key that submitted the job.
        mode: form of the digest as HMAC key.

    Raises:
        ValueError: the digest does not have 32 bytes.
    """
    if len(key_digest) != hashlib.sha256().digest_size:
        raise ValueError(f"The key digest has {len(key_digest)} bytes, not 32. Pass digest_api_key(api_key).")
    key = key_digest if mode == "raw" else key_digest.hex().encode("ascii")
    return _PREFIX + hmac.new(key, body, hashlib.sha256).hexdigest()


def verify(body: bytes, signature: str | None, key_digest: bytes, mode: KeyMode = "raw") -> bool:
    """Return True if `signature`, the header as received (None if missing), matches the body.

    Takes the same time for every wrong value of the same length.
    """
    if signature is None:
        return False
    return hmac.compare_digest(sign(body, key_digest, mode).encode(), signature.encode(errors="replace"))


TEAM_PREFIX = "whsec_"
TOLERANCE = 300.0
"""Maximum difference in seconds between the timestamp of a Standard Webhooks signature and now."""


def verify_standard(
    body: bytes, secret: str, *, delivery: str | None, timestamp: str | None, signatures: str | None, now: float
) -> bool:
    """Return True if one of the Standard Webhooks signatures matches and the timestamp is within `TOLERANCE`.

    Source: the specification at standardwebhooks.com.

    Args:
        body: the exact bytes received.
        secret: `whsec_` and base64.
        delivery: header `webhook-id`; None if missing, as for the next two.
        timestamp: header `webhook-timestamp`.
        signatures: header `webhook-signature`, separated by spaces.
        now: unix time in seconds.

    Raises:
        ValueError: `secret` is not valid base64.
    """
    if delivery is None or timestamp is None or signatures is None:
        return False
    if not timestamp.isascii() or not timestamp.isdigit() or abs(now - int(timestamp)) > TOLERANCE:
        return False
    key = base64.b64decode(secret.removeprefix(TEAM_PREFIX), validate=True)
    digest = hmac.new(key, f"{delivery}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    expected = b"v1," + base64.b64encode(digest)
    return any(hmac.compare_digest(expected, one.encode(errors="replace")) for one in signatures.split())
