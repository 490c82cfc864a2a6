"""Locations of images: URLs and data URIs as clients send them, and the addresses of our own files.

Decides by form alone. Whether a host may be reached is decided by the guarded HTTP client, which resolves it; whether
the bytes are an image, by `hiresfix.images`.
"""

from __future__ import annotations

import binascii
import re
import string
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from hiresfix import messages
from hiresfix.errors import ImageError
from hiresfix.messages import MessageTemplate
from hiresfix.recipe import OutputFormat
from hiresfix.wire.problems import InvalidValue

MAX_URL = 8192
"""Characters; signed storage URLs stay below 3000."""

_MAX_HEAD = 256
_HOST = re.compile(r"[\w.~-]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_DATA_HEAD = re.compile(r"data:(image/[\w.+-]+)(?:;[^,;]*)*;base64,", re.IGNORECASE | re.ASCII)
_BASE64 = (string.ascii_letters + string.digits + "+/").encode()
_FROM_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_WHITESPACE = b" \t\r\n\f\v"
_RESULT_PATH = re.compile(
    r"/files/images/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})-1\.(" + "|".join(OutputFormat) + ")", re.ASCII
)
_UPLOAD_PATH = re.compile(r"/files/uploads/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.([a-z]{3,4})", re.ASCII)
_DEFAULT_PORTS = {"http": 80, "https": 443}


def canonical_url(value: Any, *, expected: MessageTemplate = messages.EXPECTED_URL) -> str:
    """Return an absolute http(s) URL: trimmed, spaces as %20, otherwise untouched.

    Raises InvalidValue: `expected` for anything else, and messages of their own for an invalid host or port, a user
    name or password, control characters, and more than MAX_URL characters.
    """
    if not isinstance(value, str):
        raise InvalidValue(expected())
    url = value.strip().replace(" ", "%20")
    if len(url) > MAX_URL:
        raise InvalidValue(messages.AT_MOST_CHARACTERS(limit=MAX_URL))
    if _CONTROL.search(url):
        raise InvalidValue(messages.CONTROL_CHARACTERS())
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port  # reading the port checks it
    except ValueError as error:
        raise InvalidValue(messages.HOST_OR_PORT_INVALID()) from error
    if parts.scheme not in _DEFAULT_PORTS:
        raise InvalidValue(expected())
    if "@" in parts.netloc:
        raise InvalidValue(messages.CREDENTIALS_IN_URL())
    if not _HOST.fullmatch(host):
        raise InvalidValue(messages.HOST_OR_PORT_INVALID())
    return url


def canonical_image(value: Any) -> str:
    """Return an image's http(s) URL, or its data URI as `data:image/<type>;base64,<padded standard base64>`.

    In data URIs whitespace, the URL-safe alphabet, missing padding and further media type parameters are tolerated, so
    equal bytes of one type give equal text. Raises InvalidValue.
    """
    if not isinstance(value, str):
        raise InvalidValue(messages.EXPECTED_IMAGE_URL())
    text = value.strip()
    if text[:5].lower() != "data:":
        return canonical_url(text, expected=messages.EXPECTED_IMAGE_URL)
    head = _DATA_HEAD.match(text, 0, _MAX_HEAD)
    if head is None:
        raise InvalidValue(messages.EXPECTED_IMAGE_URL())
    return f"data:{head[1].lower()};base64,{_canonical_base64(text[head.end() :])}"


def _canonical_base64(payload: str) -> str:
    try:
        symbols = payload.encode("ascii").translate(_FROM_URL_SAFE, _WHITESPACE)
    except UnicodeEncodeError as error:
        raise InvalidValue(messages.DATA_URI_NOT_BASE64()) from error
    if not symbols:
        raise InvalidValue(messages.DATA_URI_EMPTY())
    if not symbols.endswith(b"="):
        symbols += b"=" * (-len(symbols) % 4)
    padding = symbols.translate(None, _BASE64)
    if len(symbols) % 4 or padding not in (b"", b"=", b"==") or not symbols.endswith(padding):
        raise InvalidValue(messages.DATA_URI_UNDECODABLE())
    return symbols.decode()


def data_uri(image: str, *, max_bytes: int | None = None) -> bytes | None:
    """Return the image's bytes from a canonical data URI; None if `image` is a URL.

    Raises ImageError for more than `max_bytes`, before decoding, and for base64 that does not decode.
    """
    if not image.startswith("data:"):
        return None
    payload = image.partition(",")[2]
    size = _decoded_size(payload)
    if max_bytes is not None and size > max_bytes:
        raise ImageError(messages.DATA_URI_TOO_LARGE(size=size, limit=max_bytes))
    try:
        return binascii.a2b_base64(payload, strict_mode=True)
    except ValueError as error:
        raise ImageError(messages.DATA_URI_DAMAGED()) from error


def placeholder(image: str) -> str:
    """Return the image's location as `Job.input` shows it: a data URI has its size in place of its payload."""
    head, comma, payload = image.partition(",")
    return f"{head},<{_decoded_size(payload)} bytes>" if head.startswith("data:") and comma else image


def _decoded_size(base64: str) -> int:
    return len(base64) * 3 // 4 - base64[-2:].count("=")


def result_name(job_id: UUID, extension: str) -> str:
    """Return the file name under which a job's result is saved."""
    return f"{job_id}-1.{extension}"


def result_path(job_id: UUID, extension: str) -> str:
    """Return the path of a job's result, below the public URL."""
    return f"/files/images/{result_name(job_id, extension)}"


def parse_result_path(path: str) -> tuple[UUID, OutputFormat] | None:
    """Return job and format of a path that `result_path` makes; None for any other."""
    match = _RESULT_PATH.fullmatch(path)
    return (UUID(match[1]), OutputFormat(match[2])) if match else None


def upload_path(upload_id: UUID, extension: str) -> str:
    """Return the path of an upload, below the public URL."""
    return f"/files/uploads/{upload_id}.{extension}"


def parse_upload_path(path: str) -> tuple[UUID, str] | None:
    """Return upload and extension of a path that `upload_path` makes; None for any other."""
    match = _UPLOAD_PATH.fullmatch(path)
    return (UUID(match[1]), match[2]) if match else None


def own_upload(url: str, public_url: str) -> UUID | None:
    """Return the upload that this URL of ours names, whatever its query; None for every other URL."""
    origin = _origin(url)
    if origin is None or origin != _origin(public_url):
        return None
    named = parse_upload_path(urlsplit(url).path)
    return named[0] if named else None


def own_result(url: str, public_url: str) -> UUID | None:
    """Return the job whose result this URL of ours names, whatever its query; None for every other URL."""
    origin = _origin(url)
    if origin is None or origin != _origin(public_url):
        return None
    named = parse_result_path(urlsplit(url).path)
    return named[0] if named else None


def _origin(url: str) -> tuple[str, str, int] | None:
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return None
    if port is None or parts.hostname is None or "@" in parts.netloc:
        return None
    return parts.scheme, parts.hostname, port
