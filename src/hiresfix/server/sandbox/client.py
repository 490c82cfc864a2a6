"""Strangers' pictures decoded where they can do no harm: in short-lived processes with bounds of their own.

    with Quarantine(limits) as quarantine:
        header = quarantine.probe(data)       # every pixel decoded once, nothing handed over
        picture = quarantine.decode(data)

Guarantees: a call returns a picture, raises PictureError (`DecoderStopped` where the decoder crashed, needed too much
memory or took too long), or Unavailable where this machine cannot start a process; the calling process neither parses
nor allocates what a stranger's header claims, and nothing stays behind in any of these cases: bytes and pixels travel
in anonymous files, which vanish with their last descriptor. Calls may come from any thread, and run beside each other.
A process decodes one picture or, where it is told whose they are, small ones of one person that follow each other
closely: never pictures of two. `sandbox.process` is the other side, and says what a decoding process may do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import numpy as np
import structlog

from hiresfix import images
from hiresfix.errors import PictureError, Unavailable
from hiresfix.images import DecodedImage, Header, Limits, Samples
from hiresfix.server.platform import metrics
from hiresfix.server.sandbox.idle_processes import Sittings
from hiresfix.server.sandbox.process import BLOBS, LENGTH, METADATA_BYTES, SMALL_BYTES, Terms

log = structlog.get_logger(__name__)

BYTES_PER_PIXEL = 32
"""Measured: 16 bit RGBA and premultiplied RGBA take 20, WebP 18, everything else up to 17; the file comes on top."""
BASE_BYTES = 256 * 1024 * 1024
PROCESSOR_SECONDS = 30
WALL_SECONDS = 30
ENDING_SECONDS = 2.0
GRACE_SECONDS = 5.0
"""How long a process that kills others may take to say so before it is taken for dead itself."""
MOST_ANSWER = 256 * 1024

STOPPED = {
    "crash": "The picture made its decoder crash: the file is damaged. Save it again as PNG or JPEG and retry.",
    "memory": "Decoding the picture takes more memory than is allowed. Save it as PNG or JPEG and retry.",
    "time": "Decoding the picture takes longer than is allowed. Save it as PNG or JPEG and retry.",
}

# What a decoding process may know of our environment: how to find its libraries, and nothing else.
_ENVIRONMENT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL")
# Libraries that start a thread a core would do so in every child; a second malloc arena costs 64 MiB of addresses.
_THRIFT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


class DecoderStopped(PictureError):
    """The decoder did not survive the picture, or was not allowed to go on."""


class Sandbox:
    """Decodes within `limits`; a context manager. The process behind it is started with the first picture.

    memory: bytes a picture may take while it is decoded; chosen after the largest picture allowed, by default.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        memory: int | None = None,
        processor_seconds: int = PROCESSOR_SECONDS,
        wall_seconds: int = WALL_SECONDS,
    ) -> None:
        self.limits = limits
        most = int(limits.max_input_megapixels * images.MEGAPIXEL)
        self.terms = Terms(
            limits=limits,
            memory=memory or BASE_BYTES + BYTES_PER_PIXEL * most,
            processor_seconds=processor_seconds,
            wall_seconds=wall_seconds,
        )
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._sittings = Sittings()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """End the process and what it decodes; a later call starts another."""
        self._sittings.close()
        with self._lock:
            self._end()

    def probe(self, data: bytes, *, whose: UUID | None = None) -> Header:
        """Format and upright size of a picture that decodes completely.

        whose: the person that handed it in; the process may have decoded pictures of that person's before, and may be
        kept for the next. None: a process for this picture alone.
        """
        small = len(data) <= SMALL_BYTES
        answer = self._ask_sitting(data, whose) if whose and small else self._ask(data, None)
        with _understood():
            return Header(**answer["header"])

    def decode(self, data: bytes) -> DecodedImage:
        """The picture, upright; see `hiresfix.images.decode`."""
        with _anonymous_file() as pixels:
            answer = self._ask(data, pixels)
            with _understood():
                return _take_over(answer["picture"], pixels, self.limits)

    def _ask(self, data: bytes, pixels: int | None) -> dict[str, Any]:
        with _anonymous_file() as source:
            _write(source, data)
            for _ in range(2):
                os.lseek(source, 0, os.SEEK_SET)
                line = self._converse([source] if pixels is None else [source, pixels])
                if line:  # else the process was killed from outside, which is not the picture's fault
                    return _outcome(line)
                self._wait_for_its_end()
        metrics.DECODED.labels("gone").inc()
        raise Unavailable

    def _ask_sitting(self, data: bytes, whose: UUID) -> dict[str, Any]:
        """As `_ask` for a small picture, of a process that this person's last one was decoded in if there is one."""
        for _ in range(3):  # one that waited may just have left, and the next be killed from outside
            waited = self._sittings.take(whose)
            desk = waited or self._seated()
            stays = False
            try:
                line = self._converse_at(desk, data)
                answer = _outcome(line) if line else None
                stays = answer is not None and answer.get("stays") is True
            finally:
                if not stays:
                    desk.close()
            if answer is not None:
                if stays:
                    self._sittings.put(whose, desk)
                return answer
            if waited is None:
                self._wait_for_its_end()
        metrics.DECODED.labels("gone").inc()
        raise Unavailable

    def _seated(self) -> socket.socket:
        """The socket of a new process that takes pictures through it."""
        ours, theirs = socket.socketpair()
        ours.settimeout(self.terms.wall_seconds + GRACE_SECONDS)
        with theirs:
            try:
                self._hand_out(theirs)
            except Unavailable:
                ours.close()
                raise
        return ours

    def _hand_out(self, theirs: socket.socket, *files: int) -> None:
        """Ask for a process at the other end; if nobody is left to make one, the socket's end will tell."""
        with self._lock, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self._started(), [b"\0"], [theirs.fileno(), *files])

    def _converse_at(self, desk: socket.socket, data: bytes) -> bytes:
        try:
            desk.sendall(LENGTH.pack(len(data)) + data)
            return _read_line(desk)
        except TimeoutError:
            log.error("quarantine.hung")
            self.close()
        except (BrokenPipeError, ConnectionResetError):
            pass
        return b""

    def _wait_for_its_end(self) -> None:
        """What was killed may look alive for a moment still, and would be asked again."""
        with self._lock, contextlib.suppress(subprocess.TimeoutExpired):
            if self._process is not None:
                self._process.wait(ENDING_SECONDS)

    def _converse(self, descriptors: list[int]) -> bytes:
        """One line of answer, or b"" if nobody is left to give one."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                self._hand_out(theirs, *descriptors)
            ours.settimeout(self.terms.wall_seconds + GRACE_SECONDS)
            try:
                return _read_line(ours)
            except TimeoutError:
                log.error("quarantine.hung")
                self.close()
                return b""

    def _started(self) -> socket.socket:
        """The control socket of a running process. Call it with the lock held."""
        if self._process is not None and self._process.poll() is None and self._control is not None:
            return self._control
        self._end()
        ours, theirs = socket.socketpair()
        kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        environment = {**kept, **_THRIFT, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-s", "-m", "hiresfix.server.sandbox.process", self.terms.to_json()],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    env=environment,
                    cwd="/",
                )
            except OSError as error:
                ours.close()
                log.error("quarantine.not_started", reason=error.strerror)
                raise Unavailable from error
        self._control = ours
        return ours

    def _end(self) -> None:
        control, process = self._control, self._process
        self._control = self._process = None
        if control is not None:
            control.close()
        if process is not None:
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _outcome(line: bytes) -> dict[str, Any]:
    with _understood():
        answer = json.loads(line)
        if "refused" in answer:
            metrics.DECODED.labels("refused").inc()
            raise PictureError(str(answer["refused"]))
        if answer.get("stopped") == "busy":
            metrics.DECODED.labels("busy").inc()
            raise Unavailable
        if "stopped" in answer:
            log.warning("quarantine.stopped", **answer)
            text = STOPPED[answer["stopped"]]
            metrics.DECODED.labels(answer["stopped"]).inc()
            raise DecoderStopped(text)
    assert isinstance(answer, dict)
    metrics.DECODED.labels("ok").inc()
    return answer


@contextlib.contextmanager
def _understood() -> Iterator[None]:
    """An answer that makes no sense comes from a process that the picture has taken over or upset."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, EOFError) as error:
        log.warning("quarantine.nonsense", reason=repr(error)[:200])
        metrics.DECODED.labels("nonsense").inc()
        raise DecoderStopped(STOPPED["crash"]) from error


def _take_over(given: dict[str, Any], pixels: int, limits: Limits) -> DecodedImage:
    width, height, bits = int(given["width"]), int(given["height"]), int(given["bits"])
    images.check_input(width, height, limits)
    kind: type[np.uint8 | np.uint16] = np.uint8 if {8: True, 16: False}[bits] else np.uint16
    os.lseek(pixels, 0, os.SEEK_SET)
    rgb = _read_samples(pixels, (height, width, 3), kind)
    alpha = _read_samples(pixels, (height, width), kind) if given["alpha"] else None
    blobs = {name: _read_blob(pixels, given["blobs"][name]) for name in BLOBS}
    dpi, tables = given["dpi"], given["quantisation"]
    return DecodedImage(
        rgb=rgb,
        alpha=alpha,
        grey=bool(given["grey"]),
        dpi=None if dpi is None else (float(dpi[0]), float(dpi[1])),
        quantisation=None if tables is None else tuple(tuple(int(step) for step in table) for table in tables),
        notes=tuple(str(note) for note in given["notes"]),
        icc=blobs["icc"],
        exif=blobs["exif"],
        xmp=blobs["xmp"],
    )


def _read_samples(descriptor: int, shape: tuple[int, ...], kind: type[np.uint8 | np.uint16]) -> Samples:
    # Copied, not mapped: reading mapped memory that its maker cuts short would kill this process.
    samples = np.empty(shape, kind)
    _fill(descriptor, samples.data.cast("B"))
    return samples


def _read_blob(descriptor: int, size: int | None) -> bytes | None:
    if size is None:
        return None
    if not 0 <= size <= METADATA_BYTES:
        raise ValueError("metadata larger than it can be")
    content = bytearray(size)
    _fill(descriptor, memoryview(content))
    return bytes(content)


def _fill(descriptor: int, target: memoryview) -> None:
    while target:
        count = os.readv(descriptor, [target])
        if count == 0:
            raise EOFError("less than was announced")
        target = target[count:]


def _read_line(source: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) < MOST_ANSWER:
        received = source.recv(65_536)
        if not received:
            break
        line += received
    return line


@contextlib.contextmanager
def _anonymous_file() -> Iterator[int]:
    """A file without a name, in memory where the system can (Linux), else on disk."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("picture")
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    else:
        with tempfile.TemporaryFile() as file:
            yield file.fileno()


def _write(descriptor: int, data: bytes) -> None:
    content = memoryview(data)
    while content:
        content = content[os.write(descriptor, content) :]
