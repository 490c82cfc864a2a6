"""Uploads on the wire: the request to fetch an image by its URL, and the Upload object."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from hiresfix import messages
from hiresfix.wire.json_body import known_fields
from hiresfix.wire.locations import canonical_url, upload_path
from hiresfix.wire.problems import InvalidValue
from hiresfix.wire.render import timestamp


def parse_upload_url(body: bytes, content_type: str | None) -> str:
    """Return the URL of an image that the server should fetch. Raises InvalidRequest."""
    problems, fields = known_fields(body, content_type, known=("url",))
    url = problems.catch("url", _url, fields.get("url"))
    problems.raise_if_any()
    return url or ""


def _url(value: Any) -> str:
    if value is None:
        raise InvalidValue(messages.REQUIRED())
    return canonical_url(value)


class UploadView(Protocol):
    """Fields of an upload that rendering reads."""

    @property
    def id(self) -> UUID: ...
    @property
    def extension(self) -> str: ...
    @property
    def media_type(self) -> str: ...
    @property
    def bytes(self) -> int: ...
    @property
    def expires_at(self) -> datetime: ...


def upload(view: UploadView, *, public_url: str) -> dict[str, Any]:
    """Return the Upload object."""
    return {
        "id": str(view.id),
        "url": public_url.rstrip("/") + upload_path(view.id, view.extension),
        "kind": "image",
        "contentType": view.media_type,
        "byteSize": view.bytes,
        "expiresAt": timestamp(view.expires_at),
    }
