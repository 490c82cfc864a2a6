"""The caller's picture: fetched, looked at and kept, before any credit moves.

Guarantees: what is stored decodes completely and its enlargement stays within the limits; a refusal leaves
nothing behind. The worker reads the stored bytes and never fetches again.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from uuid import UUID

from hiresfix import images
from hiresfix.images import Header, Limits
from hiresfix.recipe import Recipe
from hiresfix.server import outbound
from hiresfix.server.config import Settings
from hiresfix.server.outbound import Policy
from hiresfix.server.quarantine import Quarantine
from hiresfix.server.storage import Storage

SOURCES = "sources/"


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
        proxy=settings.outbound_proxy,
    )


async def fetch(url: str, settings: Settings) -> bytes:
    """The bytes behind a caller's URL; raises FetchError."""
    return await outbound.fetch(url, policy(settings))


async def probe(data: bytes, quarantine: Quarantine) -> Probed:
    """Header first, then every pixel once, so that a truncated file is refused now and not by the worker.

    Raises PictureError. Whether its enlargement is too large is another parameter's fault: see the checks below.
    """
    return Probed(data=data, header=await asyncio.to_thread(quarantine.probe, data))


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
