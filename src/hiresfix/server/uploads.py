"""Input images: fetch or receive, check and store them before any credit is charged.

Guarantees: a stored image decodes completely, and its result stays within the limits. A refusal leaves nothing
behind. The worker reads the stored bytes and never fetches again. A job keeps a copy of its input, of an upload too,
so an accepted job needs no upload any more. This module owns the table of uploads.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import LiteralString
from uuid import UUID

from hiresfix import images, messages
from hiresfix.errors import Expired, NotFound, QuotaExceeded
from hiresfix.images import ImageHeader, ImageLimits
from hiresfix.recipe import Recipe
from hiresfix.server import guarded_http, storage_keys
from hiresfix.server.accounts.authentication import Caller
from hiresfix.server.database import query
from hiresfix.server.database.pool import Database, Tx
from hiresfix.server.guarded_http import HttpPolicy
from hiresfix.server.sandbox.client import Sandbox
from hiresfix.server.settings import Settings
from hiresfix.server.storage import Storage

EXTENSIONS = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/webp": "webp",
    "image/gif": "gif",
    "image/tiff": "tiff",
    "image/bmp": "bmp",
    "image/avif": "avif",
    "image/heic": "heic",
}
"""Extension of every media type that `images.read_header` returns."""
EXPIRY_GRACE = timedelta(minutes=10)
"""An expired upload is not served, but its file stays this long for a submission that looked it up in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedImage:
    """A checked image: its bytes, and its header with width and height as displayed (orientation applied)."""

    data: bytes
    header: ImageHeader

    @property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of the bytes."""
        return hashlib.sha256(self.data).hexdigest()


def image_limits(settings: Settings) -> ImageLimits:
    """Return the operator's limits for images."""
    return ImageLimits(
        max_bytes=settings.max_image_bytes,
        max_input_megapixels=settings.max_input_megapixels,
        max_output_megapixels=settings.max_output_megapixels,
    )


def http_policy(settings: Settings) -> HttpPolicy:
    """Return the settings of the guarded HTTP client, for fetching images and for delivering webhooks."""
    return HttpPolicy(
        allow_private=settings.allow_private_addresses,
        max_bytes=settings.max_image_bytes,
        ports=frozenset(settings.outbound_ports),
        proxy=settings.outbound_proxy,
    )


def open_storage(settings: Settings, database: Database) -> Storage:
    """Open this service's file store; an empty folder is accepted only before the first job and upload."""

    async def is_new() -> bool:
        async with database.transaction() as tx:
            return bool(
                await query.value(tx, "select not exists (select from jobs) and not exists (select from uploads)")
            )

    return Storage.open(settings.storage_location, is_new=is_new)


async def fetch(url: str, settings: Settings) -> bytes:
    """Return the bytes behind a caller's URL; raises FetchError."""
    return await guarded_http.fetch(url, http_policy(settings))


async def probe(data: bytes, sandbox: Sandbox, *, caller: Caller) -> ProbedImage:
    """Decode the image once, in the sandbox, so that a damaged file is refused now and not by the worker.

    Raises ImageError. `check_output` and `check_format` check the result: there another parameter is at fault.
    """
    return ProbedImage(data=data, header=await asyncio.to_thread(sandbox.probe, data, user=caller.user))


def check_output(source: ImageHeader, recipe: Recipe, settings: Settings) -> None:
    """Raise ImageError if the result would exceed the operator's limit."""
    images.check_output(source, recipe.scale, image_limits(settings))


def check_format(source: ImageHeader, recipe: Recipe, settings: Settings) -> None:
    """Raise ImageError if the output format cannot hold the result."""
    images.check_format(source.width * recipe.scale, source.height * recipe.scale, recipe.output_format)


async def store_source(storage: Storage, job: UUID, probed: ProbedImage) -> str:
    """Store the image for `job`; return its storage key."""
    key = storage_keys.source(job)
    await storage.put(key, probed.data, probed.header.media_type)
    return key


# Uploads --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadRecord:
    """An uploaded image, served and usable until `expires_at`; `key` is its storage key."""

    id: UUID
    key: str
    extension: str
    media_type: str
    sha256: str
    bytes: int
    width: int | None
    """As displayed; None in a row of a release that did not record it."""
    height: int | None
    several: bool | None
    expires_at: datetime
    expired: bool


def probed_upload(upload: UploadRecord, data: bytes) -> ProbedImage | None:
    """Return the image without decoding it again; None if `data` is not the file that was checked on upload."""
    if upload.width is None or upload.height is None or hashlib.sha256(data).hexdigest() != upload.sha256:
        return None
    several = bool(upload.several)
    header = ImageHeader(media_type=upload.media_type, width=upload.width, height=upload.height, several=several)
    return ProbedImage(data=data, header=header)


_SELECT: LiteralString = """
    select id, key, extension, media_type, sha256, bytes, width, height, several, expires_at,
    expires_at <= now() as expired from uploads
"""


def fingerprint(data: bytes) -> bytes:
    """Return the fingerprint of an upload for its Idempotency-Key: the file's hash, however it was sent."""
    return hashlib.sha256(data).digest()


async def require_quota(tx: Tx, caller: Caller, size: int, *, quota: int) -> None:
    """Raise QuotaExceeded if the user's unexpired uploads and `size` bytes more would exceed the quota."""
    used = await query.value(
        tx,
        "select coalesce(sum(bytes), 0)::bigint from uploads where user_id = %(user)s and expires_at > now()",
        user=caller.user,
    )
    if used + size > quota:
        raise QuotaExceeded(messages.UPLOAD_QUOTA(size=used + size, quota=quota))


async def record(
    tx: Tx, upload_id: UUID, caller: Caller, probed: ProbedImage, *, quota: int, lifetime: timedelta
) -> UploadRecord:
    """Insert the row of a stored image. Raises QuotaExceeded, also for uploads that race.

    Args:
        tx: Transaction of the upload.
        upload_id: Id of the upload.
        caller: User that the upload counts for.
        probed: The image.
        quota: Bytes that the user's unexpired uploads may take together.
        lifetime: Time until the upload expires.
    """
    await query.execute(tx, "select 1 from users where id = %(user)s for no key update", user=caller.user)
    await require_quota(tx, caller, len(probed.data), quota=quota)
    await query.execute(
        tx,
        "insert into uploads (id, user_id, key, extension, media_type, sha256, bytes, width, height, several,"
        " expires_at) values (%(id)s, %(user)s, %(key)s, %(extension)s, %(media_type)s, %(sha256)s, %(bytes)s,"
        " %(width)s, %(height)s, %(several)s, now() + %(lifetime)s)",
        id=upload_id,
        user=caller.user,
        key=storage_keys.upload(upload_id),
        extension=EXTENSIONS[probed.header.media_type],
        media_type=probed.header.media_type,
        sha256=probed.sha256,
        bytes=len(probed.data),
        width=probed.header.width,
        height=probed.header.height,
        several=probed.header.several,
        lifetime=lifetime,
    )
    return await get(tx, upload_id)


async def get(tx: Tx, upload_id: UUID) -> UploadRecord:
    """Return the upload; raises NotFound for an unknown id and Expired."""
    upload = await query.one(tx, UploadRecord, _SELECT + " where id = %(id)s", id=upload_id)
    if upload is None:
        raise NotFound(messages.UPLOAD_NOT_FOUND())
    if upload.expired:
        raise Expired(messages.UPLOAD_EXPIRED())
    return upload


async def list_expired(tx: Tx, *, after: UploadRecord | None) -> list[UploadRecord]:
    """Return up to 1000 uploads whose expiry and grace have passed, oldest first, starting behind `after`."""
    return await query.every(
        tx,
        UploadRecord,
        _SELECT + " where expires_at < now() - %(grace)s and (%(at)s::timestamptz is null"
        " or (expires_at, id) > (%(at)s, %(id)s)) order by expires_at, id limit 1000",
        grace=EXPIRY_GRACE,
        at=after.expires_at if after else None,
        id=after.id if after else None,
    )


async def delete(tx: Tx, upload: UUID) -> None:
    """Delete the row, and with it its idempotency key."""
    await query.execute(tx, "delete from uploads where id = %(upload)s", upload=upload)
