"""Webhook signatures against the contract's test vectors (15.2)."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from hiresfix.webhook_signing import KeyMode, digest_api_key, sign, verify

API_KEY = "afk_" + "0" * 40
BODY = b'{"event":"completed","jobId":"b2c3d4e5-f6a7-8901-bcde-f23456789012","status":"COMPLETED"}'
VECTORS: dict[KeyMode, str] = {
    "raw": "sha256=3cd5438ae83f181e2980732cd32f5c902a5501406e74c123a373e3019d231bfb",
    "hex": "sha256=2f213dd1b4caf25a869694ec123eaf64878267630bc1eabadf7af7fa08203fe6",
}


@pytest.mark.parametrize(("mode", "header"), VECTORS.items())
def test_signatures_match_contract_vectors(mode: KeyMode, header: str) -> None:
    assert sign(BODY, digest_api_key(API_KEY), mode) == header
    assert verify(BODY, header, digest_api_key(API_KEY), mode)


def test_raw_mode_is_the_default() -> None:
    digest = digest_api_key(API_KEY)
    assert sign(BODY, digest) == VECTORS["raw"]
    assert verify(BODY, VECTORS["raw"], digest)
    assert not verify(BODY, VECTORS["hex"], digest)


def test_hex_mode_uses_hex_digest_as_key() -> None:
    key = hashlib.sha256(API_KEY.encode()).hexdigest()
    expected = "sha256=" + hmac.new(key.encode(), BODY, "sha256").hexdigest()
    assert sign(BODY, digest_api_key(API_KEY), "hex") == expected


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        "",
        "sha256=",
        VECTORS["raw"].removeprefix("sha256="),
        VECTORS["raw"].upper(),
        VECTORS["raw"] + " ",
        f"{VECTORS['raw']},{VECTORS['hex']}",
        "sha256=" + "0" * 64,
        "sha256=" + "é" * 64,
        "\ud800",
    ],
)
def test_wrong_signature_header_is_rejected(wrong: str | None) -> None:
    assert not verify(BODY, wrong, digest_api_key(API_KEY))


def test_changed_byte_or_other_key_is_rejected() -> None:
    header = sign(BODY, digest_api_key(API_KEY))
    assert not verify(BODY.replace(b"COMPLETED", b"COMPLETEE"), header, digest_api_key(API_KEY))
    assert not verify(BODY, header, digest_api_key(API_KEY[:-1] + "1"))


def test_plaintext_key_instead_of_digest_raises() -> None:
    with pytest.raises(ValueError, match="digest_api_key"):
        sign(BODY, API_KEY.encode())
