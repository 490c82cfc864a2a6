"""A large file from its public origin onto the disk: resumed after a cut, never mixed of two versions.

Guarantees: when `fetch` returns, the file is as long as the origin said and on the disk for good; when it raises,
what has come so far is kept for the next call. For addresses from the operator's lists, not from callers: those go
through `server.outbound`. Knows no models.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from hiresfix import __version__
from hiresfix.errors import FetchError, Unreachable, WeightsError
from hiresfix.models import weight_files

Report = Callable[[int, int | None], None]

_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_SPARE = 64 << 20
"""Bytes left free on the disk."""
_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})", re.ASCII)
PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds before trying again after attempts that brought nothing; one that brought something starts anew."""


def fetch(url: str, part: Path, *, trusted: bool, report: Report) -> None:
    """Fill `part` with what `url` gives. `trusted`: a hash will tell a mixture, so resuming needs no version.

    `report(there, total)` may raise to stop. Raises Unreachable where trying again can help, FetchError for an answer
    that will stay, WeightsError if the disk has no room, OSError.
    """
    fruitless = 0
    with httpx.Client(follow_redirects=True, timeout=_TIMEOUT, headers=_HEADERS) as client:
        while True:
            before = _size(part)
            try:
                return _go_on(client, url, part, trusted, report)
            except (httpx.TransportError, Unreachable) as error:
                fruitless = fruitless + 1 if _size(part) == before else 0
                if fruitless > len(PAUSES) or (
                    isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) and not before
                ):
                    raise _unreachable(url, error) from error
                time.sleep(PAUSES[max(0, fruitless - 1)])
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise FetchError(f"{url} cannot be fetched: {error}. Check the address in the list.") from error


# Compressed on the way, the lengths would not be the file's.
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": f"hiresfix/{__version__}"}


def _go_on(client: httpx.Client, url: str, part: Path, trusted: bool, report: Report) -> None:
    version = _Version.read(part)
    there = _size(part)
    if there and there == version.total and version.etag:
        return
    headers = {}
    if there and (version.etag or trusted):
        headers = {"Range": f"bytes={there}-"} | ({"If-Range": version.etag} if version.etag else {})
    with client.stream("GET", url, headers=headers) as response:
        changed = response.status_code == 206 and version.etag and _etag(response) not in (None, version.etag)
        if response.status_code == 416 or changed:  # the part is longer than the file, or of another version
            part.unlink()
            raise Unreachable(f"{url} has changed. Fetch it anew.")
        _check(response, url)
        there, total = _span(response, there)
        _check_room(part, total - there if total is not None else 0)
        _Version(part=part, etag=_etag(response), total=total).write()
        with part.open("ab") as file:
            file.truncate(there)
            for chunk in response.iter_raw():
                file.write(chunk)
                there += len(chunk)
                report(there, total)
            file.flush()
            os.fsync(file.fileno())
    if total not in (None, there):
        raise Unreachable(f"{url} ended early. Try again.")


def forget(part: Path) -> None:
    """Delete what is noted about a part that is needed no more."""
    _Version.read(part).delete()


def _span(response: httpx.Response, there: int) -> tuple[int, int | None]:
    """Where the body goes on and how long the file will be; from the beginning unless it says otherwise."""
    match = _RANGE.fullmatch(response.headers.get("content-range", ""))
    if response.status_code == 206 and match and int(match[1]) == there:
        return there, int(match[2])
    if response.status_code == 206:
        raise FetchError(f"{response.url.host} sent another part than asked for. Delete the .part file and try again.")
    length = response.headers.get("content-length", "")
    return 0, int(length) if length.isdecimal() else None


def _check(response: httpx.Response, url: str) -> None:
    status = response.status_code
    if status in (401, 403):
        raise FetchError(
            f"{url} wants an account ({status}). Fetch it with a browser, then: hiresfix models add FILE --name NAME"
        )
    if status == 429 or status >= 500:
        raise Unreachable(f"{url} answers {status} just now. Try again later.")
    if status not in (200, 206):
        raise FetchError(f"{url} answers {status}: the file is not there any more. Look at the origin's page.")
    if response.headers.get("content-type", "").startswith("text/html"):
        raise FetchError(f"{url} sends a page instead of a file. Open it in a browser to see what it wants.")


def _check_room(part: Path, more: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if free < more + _SPARE:
        raise WeightsError(
            f"{part.parent} has {free / 1e9:.2f} GB free and {more / 1e9:.2f} GB are to come. "
            "Free some space, or set HIRESFIX_HOME to a larger disk."
        )


def _unreachable(url: str, error: Exception) -> Unreachable:
    if isinstance(error, Unreachable):
        return error
    return Unreachable(
        f"{httpx.URL(url).host} cannot be reached ({type(error).__name__}). Check the connection and run the same "
        f"command again: it goes on where it stopped. Without a connection: fetch {url} elsewhere, then "
        "`hiresfix models add FILE --name NAME`."
    )


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _etag(response: httpx.Response) -> str | None:
    """Only a strong one says that the bytes are the same."""
    etag = response.headers.get("etag")
    return None if etag is None or etag.startswith("W/") else str(etag)


class _Version:
    """Which version of the file the part is of, noted beside it."""

    def __init__(self, *, part: Path, etag: str | None, total: int | None) -> None:
        self._path = part.with_name(f".{part.name}.etag")
        self.etag = etag
        self.total = total

    @classmethod
    def read(cls, part: Path) -> _Version:
        version = cls(part=part, etag=None, total=None)
        try:
            noted = json.loads(version._path.read_text())
            version.etag, version.total = noted["etag"], noted["total"]
        except (OSError, ValueError, LookupError, TypeError):
            pass  # none noted: the part cannot be trusted to be of any version
        return version

    def write(self) -> None:
        weight_files.write(self._path, {"etag": self.etag, "total": self.total})

    def delete(self) -> None:
        self._path.unlink(missing_ok=True)
