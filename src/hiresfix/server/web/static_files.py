"""Styles, scripts and pictures of the pages: held in memory, compressed once, cached by browsers for good.

Every address holds a hash over all files, `/static/<hash>/css/site.css`, so that modules can import each other by
relative address and still never be stale. Under another hash, which a page from before an upgrade asks for, the
present file is given and not to be kept.
"""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

FOLDER = Path(__file__).parent / "static"
FOREVER = "public, max-age=31536000, immutable"
_COMPRESSIBLE = ("text/", "application/json", "application/ld+json", "application/xml", "image/svg+xml")
_TYPES = {".js": "text/javascript", ".svg": "image/svg+xml", ".webp": "image/webp", ".webmanifest": "application/json"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """`packed` is the gzip of `content`, None where that saves nothing."""

    content: bytes
    packed: bytes | None
    media_type: str
    etag: str


@cache
def assets() -> Mapping[str, Asset]:
    """By path below the folder, "css/site.css"."""
    files = sorted(path for path in FOLDER.rglob("*") if path.is_file())
    return {path.relative_to(FOLDER).as_posix(): _asset(path) for path in files}


@cache
def fingerprint() -> str:
    parts = (f"{path} {asset.etag}\n" for path, asset in assets().items())
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:12]


def address(path: str) -> str:
    """Where a file is served; raises KeyError for one that does not exist."""
    assets()[path]
    return f"/static/{fingerprint()}/{path}"


async def serve(request: Request) -> Response:
    """`/static/{fingerprint}/{path}`."""
    asset = assets().get(request.path_params["path"])
    if asset is None:
        raise HTTPException(404)
    current = request.path_params["fingerprint"] == fingerprint()
    return respond(request, asset, {"Cache-Control": FOREVER if current else "no-cache"})


async def favicon(request: Request) -> Response:
    """For those who ask without having read the page."""
    return respond(request, assets()["img/icon.svg"], {"Cache-Control": "public, max-age=86400"})


def respond(request: Request, asset: Asset, headers: Mapping[str, str], *, status: int = 200) -> Response:
    """The content, compressed if that is understood, or 304 if it is known already."""
    sent = {"ETag": asset.etag, "Vary": "Accept-Encoding", **headers}
    if "Vary" in headers:
        sent["Vary"] = f"Accept-Encoding, {headers['Vary']}"
    if status == 200 and asset.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=sent)
    body = asset.content
    if asset.packed is not None and "gzip" in request.headers.get("accept-encoding", ""):
        body, sent = asset.packed, {**sent, "Content-Encoding": "gzip"}
    return Response(body, status_code=status, media_type=asset.media_type, headers=sent)


def made(content: bytes, media_type: str, *, level: int = 6) -> Asset:
    """An asset of this content."""
    packed = None
    if media_type.startswith(_COMPRESSIBLE) and len(content) > 1000:
        packed = gzip.compress(content, level, mtime=0)
    # Weak: the same for both encodings.
    etag = f'W/"{hashlib.sha256(content).hexdigest()[:20]}"'
    return Asset(content=content, packed=packed, media_type=media_type, etag=etag)


def _asset(path: Path) -> Asset:
    kind = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return made(path.read_bytes(), kind, level=9)
