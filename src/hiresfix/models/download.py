"""Download of a large file from its public origin: resumed after an interruption, never mixing two versions.

Guarantees: when `fetch` returns, the file has the length the origin announced and is synced to disk; when it raises,
the part received so far is kept for the next call. For URLs from the operator's lists only; URLs from callers go
through `server.guarded_http`. This module knows no models.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path

import httpx

from hiresfix import __version__
from hiresfix.errors import FetchError, Unreachable, WeightsError
from hiresfix.models import weight_files
from hiresfix.models.weight_files import OnTransfer

_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
# With compression, the lengths would not be those of the file.
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": f"hiresfix/{__version__}"}
_MIN_FREE_BYTES = 64 << 20
"""Space left free on the disk."""
_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})", re.ASCII)
RETRY_PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each retry after attempts without progress; an attempt that received bytes resets the count."""


def fetch(url: str, part: Path, *, trusted: bool, report: OnTransfer) -> None:
    """Download `url` into `part`, resuming what is there.

    Args:
        url: address of the file.
        part: file to fill; kept when the download fails.
        trusted: a hash will detect mixed versions, so resuming does not need an ETag.
        report: called after every chunk; may raise to stop.

    Raises:
        Unreachable: trying again can help.
        FetchError: the origin's answer will not change.
        WeightsError: the disk has not enough space.
        OSError: the disk refused.
    """
    attempts_without_progress = 0
    with httpx.Client(follow_redirects=True, timeout=_TIMEOUT, headers=_HEADERS) as client:
        while True:
            before = _size(part)
            try:
                return _resume(client, url, part, trusted=trusted, report=report)
            except (httpx.TransportError, Unreachable) as error:
                attempts_without_progress = attempts_without_progress + 1 if _size(part) == before else 0
                if attempts_without_progress > len(RETRY_PAUSES) or (
                    isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) and not before
                ):
                    raise _unreachable(url, error) from error
                time.sleep(RETRY_PAUSES[max(0, attempts_without_progress - 1)])
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise FetchError(f"{url} cannot be fetched: {error}. Check the address in the list.") from error


def _resume(client: httpx.Client, url: str, part: Path, *, trusted: bool, report: OnTransfer) -> None:
    version = _Version.read(part)
    received = _size(part)
    if received and received == version.total and version.etag:
        return
    headers = {}
    if received and (version.etag or trusted):
        headers = {"Range": f"bytes={received}-"} | ({"If-Range": version.etag} if version.etag else {})
    with client.stream("GET", url, headers=headers) as response:
        changed = response.status_code == 206 and version.etag and _strong_etag(response) not in (None, version.etag)
        if response.status_code == 416 or changed:  # the part is longer than the file, or of another version
            part.unlink()
            raise Unreachable(f"{url} has changed. Fetch it again.")
        _check_response(response, url)
        received, total = _start_and_total(response, received)
        _check_space(part, total - received if total is not None else 0)
        _Version(part=part, etag=_strong_etag(response), total=total).write()
        with part.open("ab") as file:
            file.truncate(received)
            for chunk in response.iter_raw():
                file.write(chunk)
                received += len(chunk)
                report(received, total)
            file.flush()
            os.fsync(file.fileno())
    if total not in (None, received):
        raise Unreachable(f"{url} ended early. Try again.")


def forget_version(part: Path) -> None:
    """Delete the note about the version of a part that is complete or no longer needed."""
    _Version.read(part).delete()


def _start_and_total(response: httpx.Response, received: int) -> tuple[int, int | None]:
    """Return the offset where the body starts, and the length of the file if the response states it."""
    match = _RANGE.fullmatch(response.headers.get("content-range", ""))
    if response.status_code == 206 and match and int(match[1]) == received:
        return received, int(match[2])
    if response.status_code == 206:
        raise FetchError(f"{response.url.host} sent another part than requested. Delete the .part file and try again.")
    length = response.headers.get("content-length", "")
    return 0, int(length) if length.isdecimal() else None


def _check_response(response: httpx.Response, url: str) -> None:
    status = response.status_code
    if status in (401, 403):
        raise FetchError(
            f"{url} requires an account ({status}). Download it with a browser, "
            "then run: hiresfix models add FILE --name NAME"
        )
    if status == 429 or status >= 500:
        raise Unreachable(f"{url} answers {status}. Try again later.")
    if status not in (200, 206):
        raise FetchError(f"{url} answers {status}: the file is no longer there. Check the origin's page.")
    if response.headers.get("content-type", "").startswith("text/html"):
        raise FetchError(f"{url} sends a web page instead of a file. Open it in a browser to see what it asks for.")


def _check_space(part: Path, missing: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if free < missing + _MIN_FREE_BYTES:
        raise WeightsError(
            f"{part.parent} has {free / 1e9:.2f} GB free, but {missing / 1e9:.2f} GB are missing. "
            "Free some space, or set HIRESFIX_HOME to a larger disk."
        )


def _unreachable(url: str, error: Exception) -> Unreachable:
    if isinstance(error, Unreachable):
        return error
    return Unreachable(
        f"{httpx.URL(url).host} cannot be reached ({type(error).__name__}). Check the connection and run the same "
        f"command again: it goes on where it stopped. Without a connection, download {url} on another machine, then "
        "run `hiresfix models add FILE --name NAME`."
    )


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _strong_etag(response: httpx.Response) -> str | None:
    """Return the ETag if it is strong; a weak one does not promise identical bytes."""
    etag = response.headers.get("etag")
    return None if etag is None or etag.startswith("W/") else str(etag)


class _Version:
    """Version of the file that a part belongs to, stored in a hidden file next to it."""

    def __init__(self, *, part: Path, etag: str | None, total: int | None) -> None:
        self._path = part.with_name(f".{part.name}.etag")
        self.etag = etag
        self.total = total

    @classmethod
    def read(cls, part: Path) -> _Version:
        version = cls(part=part, etag=None, total=None)
        try:
            stored = json.loads(version._path.read_text())
            version.etag, version.total = stored["etag"], stored["total"]
        except (OSError, ValueError, LookupError, TypeError):
            pass  # without a note the part may be of any version
        return version

    def write(self) -> None:
        weight_files.write_json(self._path, {"etag": self.etag, "total": self.total})

    def delete(self) -> None:
        self._path.unlink(missing_ok=True)
