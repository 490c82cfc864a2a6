"""The caller's pictures: fetched or handed in, looked at and kept, before any credit moves.

Guarantees: what is stored decodes completely and its enlargement stays within the limits; a refusal leaves
nothing behind. The worker reads the stored bytes and never fetches again: a job copies what it was given, an upload
too, so that no job needs an upload once it is accepted. This module owns the table of uploads.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import LiteralString
from uuid import UUID

from hiresfix import images
from hiresfix.errors import Expired, NotFound, QuotaExceeded
from hiresfix.images import Header, Limits
from hiresfix.recipe import Recipe
from hiresfix.server import guarded_http
from hiresfix.server.accounts.authentication import Caller
from hiresfix.server.database import query
from hiresfix.server.database.pool import Database, Tx
from hiresfix.server.guarded_http import Policy
from hiresfix.server.sandbox.client import Sandbox
from hiresfix.server.settings import Settings
from hiresfix.server.storage import Storage

SOURCES = "sources/"
UPLOADS = "uploads/"
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
"""Of every media type that `images.read_header` tells."""
GRACE = timedelta(minutes=10)
"""After its end an upload is not served any more, but a submission that found it in time can still read it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """A picture that passed: its bytes, and width and height as it is seen (orientation applied)."""

    data: bytes
    header: Header

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def limits(settings: Settings) -> Limits:
    return Limits(
        max_bytes=settings.max_image_bytes,
        max_input_megapixels=settings.max_input_megapixels,
        max_output_megapixels=settings.max_output_megapixels,
    )


def policy(settings: Settings) -> Policy:
    """The outbound guard's settings, for fetching pictures and for delivering webhooks."""
    return Policy(
        allow_private=settings.allow_private_addresses,
        max_bytes=settings.max_image_bytes,
        ports=frozenset(settings.outbound_ports),
        proxy=settings.outbound_proxy,
    )


def store(settings: Settings, database: Database) -> Storage:
    """Where this service's files are; a folder becomes it only as long as no job and no upload was ever accepted."""

    async def is_new() -> bool:
        async with database.transaction() as tx:
            return bool(
                await query.value(tx, "select not exists (select from jobs) and not exists (select from uploads)")
            )

    return Storage.open(settings.storage_location, is_new=is_new)


async def fetch(url: str, settings: Settings) -> bytes:
    """The bytes behind a caller's URL; raises FetchError."""
    return await guarded_http.fetch(url, policy(settings))


async def probe(data: bytes, quarantine: Sandbox, *, whose: Caller) -> Probed:
    """Header first, then every pixel once, so that a truncated file is refused now and not by the worker.

    Raises PictureError. Whether its enlargement is too large is another parameter's fault: see the checks below.
    """
    return Probed(data=data, header=await asyncio.to_thread(quarantine.probe, data, whose=whose.user))


def check_output(source: Header, recipe: Recipe, settings: Settings) -> None:
    """Raises PictureError if the enlargement would exceed the operator's limit."""
    images.check_output(source, recipe.scale, limits(settings))


def check_format(source: Header, recipe: Recipe, settings: Settings) -> None:
    """Raises PictureError if the output format cannot hold the enlargement."""
    images.check_format(source.width * recipe.scale, source.height * recipe.scale, recipe.output_format)


def source_key(job: UUID) -> str:
    """Sources are kept per job, not shared by content: deleting one can then never take another job's input."""
    return f"{SOURCES}{job}"


async def keep(storage: Storage, job: UUID, probed: Probed) -> str:
    """Store the picture for `job`; returns its key."""
    key = source_key(job)
    await storage.put(key, probed.data, probed.header.media_type)
    return key


# Uploads --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A picture handed in, served and usable until `expires_at`; `key` is where the store has it."""

    id: UUID
    key: str
    extension: str
    media_type: str
    sha256: str
    bytes: int
    width: int | None
    """As the picture is seen; None in a row of a release that did not note it."""
    height: int | None
    several: bool | None
    expires_at: datetime
    expired: bool


def recognised(upload: Upload, data: bytes) -> Probed | None:
    """`data` without another look at it, if it is what was looked at when the upload was handed in."""
    if upload.width is None or upload.height is None or hashlib.sha256(data).hexdigest() != upload.sha256:
        return None
    several = bool(upload.several)
    header = Header(media_type=upload.media_type, width=upload.width, height=upload.height, several=several)
    return Probed(data=data, header=header)


_SELECT: LiteralString = """
    select id, key, extension, media_type, sha256, bytes, width, height, several, expires_at,
    expires_at <= now() as expired from uploads
"""


def upload_key(upload: UUID) -> str:
    return f"{UPLOADS}{upload}"


def fingerprint(data: bytes) -> bytes:
    """What an Idempotency-Key of an upload stands for: the file, however it was sent."""
    return hashlib.sha256(data).digest()


async def room_for(tx: Tx, caller: Caller, size: int, *, quota: int) -> None:
    """Raises QuotaExceeded if the user's living uploads and `size` bytes more would pass the quota."""
    kept = await query.value(
        tx,
        "select coalesce(sum(bytes), 0)::bigint from uploads where user_id = %(user)s and expires_at > now()",
        user=caller.user,
    )
    if kept + size > quota:
        raise QuotaExceeded(
            f"Your uploads would take {kept + size} bytes; the quota is {quota}. Wait until earlier ones have expired."
        )


async def record(tx: Tx, new: UUID, caller: Caller, probed: Probed, *, quota: int, lifetime: timedelta) -> Upload:
    """Insert the row of a picture that is in the store. Raises QuotaExceeded: of uploads that race, too."""
    await query.execute(tx, "select 1 from users where id = %(user)s for no key update", user=caller.user)
    await room_for(tx, caller, len(probed.data), quota=quota)
    await query.execute(
        tx,
        "insert into uploads (id, user_id, key, extension, media_type, sha256, bytes, width, height, several,"
        " expires_at) values (%(id)s, %(user)s, %(key)s, %(extension)s, %(media_type)s, %(sha256)s, %(bytes)s,"
        " %(width)s, %(height)s, %(several)s, now() + %(lifetime)s)",
        id=new,
        user=caller.user,
        key=upload_key(new),
        extension=EXTENSIONS[probed.header.media_type],
        media_type=probed.header.media_type,
        sha256=probed.sha256,
        bytes=len(probed.data),
        width=probed.header.width,
        height=probed.header.height,
        several=probed.header.several,
        lifetime=lifetime,
    )
    return await get(tx, new)


async def get(tx: Tx, upload: UUID) -> Upload:
    """Raises NotFound for an unknown one and Expired for one whose time is up."""
    found = await query.one(tx, Upload, _SELECT + " where id = %(upload)s", upload=upload)
    if found is None:
        raise NotFound("The upload does not exist or has expired. Upload the picture again.")
    if found.expired:
        raise Expired("The upload has expired. Upload the picture again.")
    return found


async def overdue(tx: Tx, *, after: Upload | None) -> list[Upload]:
    """Up to 1000 uploads past their time and grace, the oldest first, from the one that follows `after`."""
    return await query.every(
        tx,
        Upload,
        _SELECT + " where expires_at < now() - %(grace)s and (%(at)s::timestamptz is null"
        " or (expires_at, id) > (%(at)s, %(id)s)) order by expires_at, id limit 1000",
        grace=GRACE,
        at=after.expires_at if after else None,
        id=after.id if after else None,
    )


async def forget(tx: Tx, upload: UUID) -> None:
    """Drop the row, and with it the idempotency key that stood for it."""
    await query.execute(tx, "delete from uploads where id = %(upload)s", upload=upload)
