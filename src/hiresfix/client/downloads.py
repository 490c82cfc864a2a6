"""Download of a result, to memory or to a file, as a flow without I/O.

Guarantees: a file gets its name only when all of it has arrived. A download that was cut is resumed if the server sends
an entity tag and ranges (RFC 9110, 14); otherwise it starts again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from hiresfix.client.effects import Close, ConnectionLost, Flow, Open, Read, Request, ResponseHead, Run
from hiresfix.client.errors import ServerUnreachable
from hiresfix.client.failures import error_of, retry_after
from hiresfix.client.flows import read_body
from hiresfix.client.retry import RETRYABLE_STATUSES, Attempts, RetryPolicy
from hiresfix.client.values import Job
from hiresfix.errors import Expired, HiresfixError, NotFound
from hiresfix.files import FORMAT_OF_SUFFIX, SUFFIXES, PartFile, require_writable

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})", re.ASCII)


def result_url(job: Job) -> str:
    """Return the URL of the result. Raises NotFound for a job without a result, Expired for a deleted one."""
    if job.expired:
        raise Expired(f"The result of job {job.id} was deleted after its retention time. Submit the image again.")
    if not job.images:
        raise NotFound(f"Job {job.id} has no result ({job.status}). Wait until it is over.")
    return job.images[0]


def download(retry: RetryPolicy, job: Job) -> Flow[bytes]:
    """Return the bytes of the result."""
    pieces: list[bytes] = []
    yield from _fetch(retry, result_url(job), restart=pieces.clear, write=pieces.append)
    return b"".join(pieces)


def require_suffix(job: Job, path: Path) -> None:
    """Raise ValueError if `path` has the suffix of another format than the result's URL."""
    suffix = Path(urlsplit(result_url(job)).path).suffix.lower()
    result_format, path_suffix = FORMAT_OF_SUFFIX.get(suffix), path.suffix.lower()
    if result_format and path_suffix in SUFFIXES and FORMAT_OF_SUFFIX.get(path_suffix) != result_format:
        raise ValueError(
            f"The result is a {result_format} file. Name it {path.stem}{suffix}, or ask for another output_format."
        )


def save(retry: RetryPolicy, job: Job, path: Path) -> Flow[Path]:
    """Save the result at `path`, or under the job's id if `path` is a folder; completely or not at all.

    Raises ValueError for the suffix of another format.
    """
    url = result_url(job)
    require_suffix(job, path)
    is_folder: bool = yield Run(work=path.is_dir)
    target = path / (job.id + Path(urlsplit(url).path).suffix) if is_folder else path
    part = PartFile(target)

    def restart() -> None:
        part.abandon()
        part.open()

    try:
        yield from _fetch(retry, url, restart=restart, write=part.write)
        yield Run(work=part.finish)
    finally:
        part.abandon()
    return target


def check_writable(path: Path) -> Flow[None]:
    """Raise OSError if nothing can be written to `path`, before a job is paid for."""
    yield Run(work=partial(require_writable, path))


@dataclass(slots=True)
class _PartialDownload:
    """Bytes that have arrived so far; `etag` names the version of the file, if the server sent it."""

    length: int = 0
    total: int | None = None
    etag: str = ""

    @classmethod
    def start(cls, head: ResponseHead) -> _PartialDownload:
        length, etag = head.headers.get("content-length", ""), head.headers.get("etag", "")
        encoded = "content-encoding" in head.headers  # then the length is that of the encoded bytes
        total = int(length) if length.isdigit() and not encoded else None
        return cls(total=total, etag=etag if etag.startswith('"') and total else "")  # a weak tag promises no bytes

    @property
    def resume_headers(self) -> dict[str, str]:
        """Headers that ask for the missing bytes of the same version of the file."""
        return {"Range": f"bytes={self.length}-", "If-Range": self.etag} if self.length and self.etag else {}

    def is_resumed_by(self, head: ResponseHead) -> bool:
        """Return True if the answer holds the missing bytes, False if it is the whole file.

        Raises ConnectionLost if it is another part than the one that was asked for.
        """
        if head.status != 206:
            return False
        content_range = _CONTENT_RANGE.fullmatch(head.headers.get("content-range", ""))
        same_version = head.headers.get("etag", self.etag) == self.etag
        expected = (self.length, self.total)
        if not (
            self.resume_headers
            and same_version
            and content_range
            and (int(content_range[1]), int(content_range[2])) == expected
        ):
            self.etag = ""  # the next attempt asks for the whole file
            raise ConnectionLost("the server sent another part than was asked for")
        return True


def _fetch(
    retry: RetryPolicy, url: str, *, restart: Callable[[], None], write: Callable[[bytes], object]
) -> Flow[None]:
    """Fetch a whole file: each attempt resumes where the last one was cut, or starts over after `restart`.

    Attempts that bring new bytes do not count. The API key is not sent.
    """
    attempts, file, longest = Attempts.start(retry), _PartialDownload(), 0
    while True:
        try:
            head: ResponseHead = yield Open(
                request=Request(method="GET", url=url, headers=file.resume_headers, authenticated=False)
            )
            if head.status < 400:
                if not file.is_resumed_by(head):
                    file = _PartialDownload.start(head)
                    yield Run(work=restart)
                return (yield from _read_file(file, write))
            error: HiresfixError = error_of(head, (yield from read_body()))
            retryable = head.status in (416, 429) or head.status in RETRYABLE_STATUSES
            pause = retry_after(head.headers)
            if head.status == 416:  # the file has changed and is shorter now
                file = _PartialDownload()
        except ConnectionLost as lost:
            host = urlsplit(url).netloc or "the server"
            error = ServerUnreachable(f"The result could not be fetched from {host}: {lost}. Try again.")
            retryable, pause = True, None
        if file.length > longest:
            attempts.restart()
            longest = file.length
        yield from attempts.backoff(error, retryable=retryable, retry_after=pause)


def _read_file(file: _PartialDownload, write: Callable[[bytes], object]) -> Flow[None]:
    """Read the open answer to its end. Raises ConnectionLost if the file does not have the announced length."""
    while piece := (yield Read()):
        yield Run(work=partial(write, piece))
        file.length += len(piece)
    yield Close()
    if file.total is not None and file.total != file.length:
        raise ConnectionLost(f"only {file.length} of {file.total} bytes arrived")
    if not file.length:
        raise ConnectionLost("the file is empty")
