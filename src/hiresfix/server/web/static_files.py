"""Styles, scripts and images of the pages: held in memory, compressed once, cached by browsers forever.

Every address contains a hash over all files, `/static/<hash>/css/site.css`, so that modules can import each other by
relative address and are never stale. An address with another hash, from a page older than an upgrade, returns the
current file and must not be cached.
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
CACHED_FOREVER = "public, max-age=31536000, immutable"
_COMPRESSIBLE = ("text/", "application/json", "application/ld+json", "application/xml", "image/svg+xml")
_TYPES = {".js": "text/javascript", ".svg": "image/svg+xml", ".webp": "image/webp", ".webmanifest": "application/json"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """Content that is ready to send; `compressed` is its gzip, None if that saves nothing."""

    content: bytes
    compressed: bytes | None
    media_type: str
    etag: str


@cache
def assets() -> Mapping[str, Asset]:
    """Return all files by path below the folder ("css/site.css")."""
    files = sorted(path for path in FOLDER.rglob("*") if path.is_file())
    return {path.relative_to(FOLDER).as_posix(): _asset(path) for path in files}


@cache
def fingerprint() -> str:
    parts = (f"{path} {asset.etag}\n" for path, asset in assets().items())
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:12]


def static_url(path: str) -> str:
    """Return the address of a file; raises KeyError for one that does not exist."""
    assets()[path]
    return f"/static/{fingerprint()}/{path}"


async def serve(request: Request) -> Response:
    """Serve `/static/{fingerprint}/{path}`."""
    asset = assets().get(request.path_params["path"])
    if asset is None:
        raise HTTPException(404)
    is_current = request.path_params["fingerprint"] == fingerprint()
    return respond(request, asset, {"Cache-Control": CACHED_FOREVER if is_current else "no-cache"})


async def favicon(request: Request) -> Response:
    """Serve `/favicon.ico`, for clients that do not read the page."""
    return respond(request, assets()["img/icon.svg"], {"Cache-Control": "public, max-age=86400"})


def respond(request: Request, asset: Asset, headers: Mapping[str, str], *, status: int = 200) -> Response:
    """Return the content, compressed if the client accepts it, or 304 if the client has it already."""
    all_headers = {"ETag": asset.etag, "Vary": "Accept-Encoding", **headers}
    if "Vary" in headers:
        all_headers["Vary"] = f"Accept-Encoding, {headers['Vary']}"
    if status == 200 and asset.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=all_headers)
    body = asset.content
    if asset.compressed is not None and "gzip" in request.headers.get("accept-encoding", ""):
        body, all_headers = asset.compressed, {**all_headers, "Content-Encoding": "gzip"}
    return Response(body, status_code=status, media_type=asset.media_type, headers=all_headers)


def make_asset(content: bytes, media_type: str, *, level: int = 6) -> Asset:
    """Return an asset with this content, compressed at the gzip `level`."""
    compressed = None
    if media_type.startswith(_COMPRESSIBLE) and len(content) > 1000:
        compressed = gzip.compress(content, level, mtime=0)
    # Weak, because both encodings share it.
    etag = f'W/"{hashlib.sha256(content).hexdigest()[:20]}"'
    return Asset(content=content, compressed=compressed, media_type=media_type, etag=etag)


def _asset(path: Path) -> Asset:
    media_type = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return make_asset(path.read_bytes(), media_type, level=9)
