"""Where pictures are: URLs and data URIs as clients send them, and the addresses of our own results.

Decides by form alone. Whether a host may be reached is for the outbound guard, which resolves it; whether the
bytes are a picture is for `hiresfix.images`.
"""

from __future__ import annotations

import binascii
import re
import string
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from hiresfix.errors import PictureError
from hiresfix.recipe import OutputFormat
from hiresfix.wire.problems import Wrong

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


def canonical_url(value: Any, *, expected: str = "Expected an http(s) URL") -> str:
    """An absolute http(s) URL as one writes it: trimmed, blanks as %20, otherwise untouched.

    Raises Wrong: `expected` for what is no such URL, and its own words for a host or port that cannot be, a
    user name or password, control characters or more than MAX_URL characters.
    """
    if not isinstance(value, str):
        raise Wrong(expected)
    url = value.strip().replace(" ", "%20")
    if len(url) > MAX_URL:
        raise Wrong(f"Must be at most {MAX_URL} characters")
    if _CONTROL.search(url):
        raise Wrong("Must not contain control characters")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port  # reading the port checks it
    except ValueError as error:
        raise Wrong("Must have a valid host and port") from error
    if parts.scheme not in _DEFAULT_PORTS:
        raise Wrong(expected)
    if "@" in parts.netloc:
        raise Wrong("Must not contain a user name or password")
    if not _HOST.fullmatch(host):
        raise Wrong("Must have a valid host and port")
    return url


def canonical_picture(value: Any) -> str:
    """A picture's http(s) URL, or its data URI as `data:image/<type>;base64,<padded standard base64>`.

    In data URIs whitespace, the URL-safe alphabet, missing padding and further media type parameters are
    tolerated, so equal bytes of one type give equal text. Raises Wrong.
    """
    expected = "Expected an http(s) URL or data:image/...;base64,..."
    if not isinstance(value, str):
        raise Wrong(expected)
    text = value.strip()
    if text[:5].lower() != "data:":
        return canonical_url(text, expected=expected)
    head = _DATA_HEAD.match(text, 0, _MAX_HEAD)
    if head is None:
        raise Wrong(expected)
    return f"data:{head[1].lower()};base64,{_canonical_base64(text[head.end() :])}"


def _canonical_base64(payload: str) -> str:
    try:
        symbols = payload.encode("ascii").translate(_FROM_URL_SAFE, _WHITESPACE)
    except UnicodeEncodeError as error:
        raise Wrong("The data URI holds characters that are not base64") from error
    if not symbols:
        raise Wrong("The data URI holds no picture")
    if not symbols.endswith(b"="):
        symbols += b"=" * (-len(symbols) % 4)
    padding = symbols.translate(None, _BASE64)
    if len(symbols) % 4 or padding not in (b"", b"=", b"==") or not symbols.endswith(padding):
        raise Wrong("The data URI is damaged: its base64 does not decode")
    return symbols.decode()


def data_uri(image: str, *, max_bytes: int | None = None) -> bytes | None:
    """The picture's bytes out of a canonical data URI; None if `image` is a URL.

    Raises PictureError, before decoding, for more than `max_bytes`, and for base64 that does not decode.
    """
    if not image.startswith("data:"):
        return None
    payload = image.partition(",")[2]
    size = _decoded_size(payload)
    if max_bytes is not None and size > max_bytes:
        raise PictureError(f"The picture has {size} bytes; the limit is {max_bytes}. Send a smaller file.")
    try:
        return binascii.a2b_base64(payload, strict_mode=True)
    except ValueError as error:
        raise PictureError("The data URI is damaged: its base64 does not decode. Encode the file again.") from error


def placeholder(image: str) -> str:
    """A URL as it is; a data URI with its size in place of its payload, as `Job.input` shows it."""
    head, comma, payload = image.partition(",")
    return f"{head},<{_decoded_size(payload)} bytes>" if head.startswith("data:") and comma else image


def _decoded_size(base64: str) -> int:
    return len(base64) * 3 // 4 - base64[-2:].count("=")


def result_name(job_id: UUID, extension: str) -> str:
    """What a job's result is called when it is saved."""
    return f"{job_id}-1.{extension}"


def result_path(job_id: UUID, extension: str) -> str:
    """Where a job's result is served, below the public URL."""
    return f"/files/images/{result_name(job_id, extension)}"


def parse_result_path(path: str) -> tuple[UUID, OutputFormat] | None:
    """Job and format of a path that `result_path` makes; None for any other."""
    found = _RESULT_PATH.fullmatch(path)
    return (UUID(found[1]), OutputFormat(found[2])) if found else None


def upload_path(upload_id: UUID, extension: str) -> str:
    """Where an upload is served, below the public URL."""
    return f"/files/uploads/{upload_id}.{extension}"


def parse_upload_path(path: str) -> tuple[UUID, str] | None:
    """Upload and extension of a path that `upload_path` makes; None for any other."""
    found = _UPLOAD_PATH.fullmatch(path)
    return (UUID(found[1]), found[2]) if found else None


def own_upload(url: str, public_url: str) -> UUID | None:
    """The upload this URL of ours names, whatever its query; None for every other URL."""
    origin = _origin(url)
    if origin is None or origin != _origin(public_url):
        return None
    found = parse_upload_path(urlsplit(url).path)
    return found[0] if found else None


def own_result(url: str, public_url: str) -> UUID | None:
    """The job whose result this URL of ours names, whatever its query; None for every other URL."""
    origin = _origin(url)
    if origin is None or origin != _origin(public_url):
        return None
    found = parse_result_path(urlsplit(url).path)
    return found[0] if found else None


def _origin(url: str) -> tuple[str, str, int] | None:
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return None
    if port is None or parts.hostname is None or "@" in parts.netloc:
        return None
    return parts.scheme, parts.hostname, port
