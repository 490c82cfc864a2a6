"""Fetching a result: by its link, to memory or to a file, as a flow without I/O.

Guarantees: a result is under its name only when all of it has come. One that was cut is gone on with where the server
says which file it is and sends parts of it (RFC 9110, 14), and begun anew where it does not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from hiresfix.client.effects import Close, Do, Flow, Head, Lost, Open, Read, Request
from hiresfix.client.errors import ServerUnreachable
from hiresfix.client.failures import error_of, retry_after
from hiresfix.client.flows import REPEATED, Attempts, Terms, rest
from hiresfix.client.values import Job
from hiresfix.errors import Expired, HiresfixError, NotFound
from hiresfix.files import FORMAT_OF_SUFFIX, SUFFIXES, PartFile, require_writable


def picture_url(job: Job, number: int = 0) -> str:
    """Raises NotFound for a job without a result, Expired where it is deleted."""
    if job.expired:
        raise Expired(f"The result of job {job.id} is deleted: its time is over. Submit the picture again.")
    if len(job.images) <= number:
        raise NotFound(f"Job {job.id} has no result ({job.status}). Wait for its end first.")
    return job.images[number]


def download(terms: Terms, job: Job) -> Flow[bytes]:
    """The result's bytes."""
    pieces: list[bytes] = []
    yield from _fetch(terms, picture_url(job), restart=pieces.clear, take=pieces.append)
    return b"".join(pieces)


def require_suffix(job: Job, path: Path) -> None:
    """Raises ValueError if `path` has the suffix of another format than the result's, as far as its URL tells."""
    made = Path(urlsplit(picture_url(job)).path).suffix.lower()
    found, wanted = FORMAT_OF_SUFFIX.get(made), path.suffix.lower()
    if found and wanted in SUFFIXES and FORMAT_OF_SUFFIX.get(wanted) != found:
        raise ValueError(f"The result is a {found} file. Name it {path.stem}{made}, or ask for another output_format.")


def save(terms: Terms, job: Job, path: Path) -> Flow[Path]:
    """The result as a file: `path`, or under the job's id in the folder `path`. Never half of one.

    Raises ValueError for the suffix of another format.
    """
    url = picture_url(job)
    require_suffix(job, path)
    into_folder: bool = yield Do(work=path.is_dir)
    target = path / (job.id + Path(urlsplit(url).path).suffix) if into_folder else path
    part = PartFile(target)

    def restart() -> None:
        part.abandon()
        part.open()

    try:
        yield from _fetch(terms, url, restart=restart, take=part.write)
        yield Do(work=part.finish)
    finally:
        part.abandon()
    return target


def writable(path: Path) -> Flow[None]:
    """Raises OSError if nothing can be written to `path`: before anything is paid for."""
    yield Do(work=partial(require_writable, path))


@dataclass(slots=True)
class _Download:
    """How much of a file has come, in bytes; `version` names the file they are of, as far as a server told it."""

    length: int = 0
    total: int | None = None
    version: str = ""

    @property
    def wanted(self) -> dict[str, str]:
        """The headers that ask for what is missing, if it is still the same file."""
        return {"Range": f"bytes={self.length}-", "If-Range": self.version} if self.length and self.version else {}

    def goes_on(self, head: Head) -> bool:
        """Whether the answer is what is missing; it is the file from its beginning if not. Raises Lost if neither."""
        if head.status != 206:
            return False
        part = _PART.fullmatch(head.headers.get("content-range", ""))
        same = head.headers.get("etag", self.version) == self.version
        if not (self.wanted and same and part and (int(part[1]), int(part[2])) == (self.length, self.total)):
            self.version = ""  # all of it, the next time
            raise Lost("another part of it came than was asked for")
        return True


def _begun(head: Head) -> _Download:
    told, tag = head.headers.get("content-length", ""), head.headers.get("etag", "")
    encoded = "content-encoding" in head.headers  # then it is the length of something else
    total = int(told) if told.isdigit() and not encoded else None
    return _Download(total=total, version=tag if tag.startswith('"') and total else "")  # W/"..." promises no bytes


_PART = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})", re.ASCII)


def _fetch(terms: Terms, url: str, *, restart: Callable[[], None], take: Callable[[bytes], object]) -> Flow[None]:
    """All of a file: each attempt goes on where the one before was cut, or begins anew after `restart`.

    Attempts that bring something do not count. The key is not shown to whoever serves it.
    """
    attempts, file, most = Attempts.of(terms), _Download(), 0
    while True:
        try:
            head: Head = yield Open(request=Request(method="GET", url=url, headers=file.wanted, keyed=False))
            if head.status < 400:
                if not file.goes_on(head):
                    file = _begun(head)
                    yield Do(work=restart)
                return (yield from _all(file, take))
            error: HiresfixError = error_of(head, (yield from rest()))
            again, asked = head.status in (416, 429) or head.status in REPEATED, retry_after(head.headers)
            if head.status == 416:  # what is there is another file by now, and shorter
                file = _Download()
        except Lost as lost:
            error = ServerUnreachable(f"The result could not be fetched from {_host(url)}: {lost}. Try again.")
            again, asked = True, None
        if file.length > most:
            attempts.begin_anew()
            most = file.length
        yield from attempts.rest(error, again=again, asked=asked)


def _all(file: _Download, take: Callable[[bytes], object]) -> Flow[None]:
    """Raises Lost if the file is not as long as it was said to be."""
    while piece := (yield Read()):
        yield Do(work=partial(take, piece))
        file.length += len(piece)
    yield Close()
    if file.total is not None and file.total != file.length:
        raise Lost(f"{file.length} of {file.total} bytes came")
    if not file.length:
        raise Lost("an empty file came")


def _host(url: str) -> str:
    return urlsplit(url).netloc or "the server"
