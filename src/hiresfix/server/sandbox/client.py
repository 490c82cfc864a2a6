"""Sandbox for decoding untrusted images, in short-lived processes with limits of their own.

    with Sandbox(limits) as sandbox:
        header = sandbox.probe(data)       # decodes every pixel once, returns no pixels
        image = sandbox.decode(data)

A call returns an image, raises ImageError (`DecodingAborted` if the decoding process crashed, needed too much memory or
took too long), or Unavailable if this machine cannot start a process. The calling process neither parses the bytes nor
allocates what their header claims, and nothing stays behind: bytes and pixels travel in anonymous files, which vanish
with their last descriptor. Calls may come from any thread and run in parallel. A process decodes one image or, if the
caller is known, small images of one user in quick succession: never images of two users. `sandbox.process` is the other
side and says what a decoding process may do.
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
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import numpy as np
import structlog

from hiresfix import images, messages
from hiresfix.errors import ImageError, Unavailable
from hiresfix.files import write_all
from hiresfix.images import DecodedImage, ImageHeader, ImageLimits, PixelArray
from hiresfix.messages import TEMPLATES, Message
from hiresfix.server.platform import metrics
from hiresfix.server.sandbox.idle_processes import IdleProcesses
from hiresfix.server.sandbox.process import BLOBS, LENGTH, METADATA_BYTES, SMALL_BYTES, SandboxLimits
from hiresfix.units import MEGAPIXEL

log = structlog.get_logger(__name__)

BYTES_PER_PIXEL = 32
"""Measured: 16 bit RGBA and premultiplied RGBA take 20, WebP 18, everything else up to 17; the file comes on top."""
BASE_BYTES = 256 * 1024 * 1024
CPU_SECONDS = 30
WALL_SECONDS = 30
EXIT_SECONDS = 2.0
GRACE_SECONDS = 5.0
"""How long the fork server may take to report a killed child before it counts as dead itself."""
MAX_ANSWER_BYTES = 256 * 1024
MODULE = "hiresfix.server.sandbox.process"

ABORTED: Mapping[str, Message] = {
    "crashed": messages.DECODING_CRASHED(),
    "out_of_memory": messages.DECODING_OUT_OF_MEMORY(),
    "timed_out": messages.DECODING_TOO_SLOW(),
}
"""Message by the reason that a process was stopped for."""

# The only environment variables that a decoding process gets: how to find its libraries.
_ENVIRONMENT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL")
# Libraries that start a thread per core would do so in every child; a second malloc arena costs 64 MiB of addresses.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


class DecodingAborted(ImageError):
    """The decoding process crashed or was stopped at a limit."""


class Sandbox:
    """Decodes images within `limits`; a context manager. The process behind it starts with the first image."""

    def __init__(
        self,
        limits: ImageLimits,
        *,
        memory: int | None = None,
        processor_seconds: int = CPU_SECONDS,
        wall_seconds: int = WALL_SECONDS,
    ) -> None:
        """Set the limits of each image.

        Args:
            limits: Largest file and image.
            memory: Bytes that decoding may take; by default enough for the largest image.
            processor_seconds: CPU time.
            wall_seconds: Elapsed time.
        """
        self.limits = limits
        max_pixels = int(limits.max_input_megapixels * MEGAPIXEL)
        self.sandbox_limits = SandboxLimits(
            image_limits=limits,
            memory=memory or BASE_BYTES + BYTES_PER_PIXEL * max_pixels,
            processor_seconds=processor_seconds,
            wall_seconds=wall_seconds,
        )
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._idle = IdleProcesses()

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
        """End the process and its children; a later call starts another."""
        self._idle.close()
        with self._lock:
            self._end()

    def probe(self, data: bytes, *, user: UUID | None = None) -> ImageHeader:
        """Return format and upright size of an image that decodes completely.

        `user` is the user who sent it: the process may have decoded earlier images of this user, and may be kept for
        the next. None: a process for this image alone.
        """
        is_small = len(data) <= SMALL_BYTES
        answer = self._ask_idle(data, user) if user and is_small else self._ask(data, None)
        with _checked_answer():
            return ImageHeader(**answer["header"])

    def decode(self, data: bytes) -> DecodedImage:
        """Return the upright image; see `hiresfix.images.decode`."""
        with _anonymous_file() as pixels:
            answer = self._ask(data, pixels)
            with _checked_answer():
                return _read_image(answer["image"], pixels, self.limits)

    def _ask(self, data: bytes, pixels: int | None) -> dict[str, Any]:
        with _anonymous_file() as source:
            write_all(source, data)
            for _ in range(2):
                os.lseek(source, 0, os.SEEK_SET)
                line = self._request([source] if pixels is None else [source, pixels])
                if line:  # else the process was killed from outside, which is not the image's fault
                    return _outcome(line)
                self._wait_for_exit()
        metrics.SANDBOX_IMAGES.labels("process_killed").inc()
        raise Unavailable

    def _ask_idle(self, data: bytes, user: UUID) -> dict[str, Any]:
        """Like `_ask`, for a small image, in an idle process of this user if there is one."""
        for _ in range(3):  # an idle process may just have exited, and the next be killed from outside
            idle = self._idle.take(user)
            connection = idle or self._new_process()
            stays = False
            try:
                line = self._request_at(connection, data)
                answer = _outcome(line) if line else None
                stays = answer is not None and answer.get("stays") is True
            finally:
                if not stays:
                    connection.close()
            if answer is not None:
                if stays:
                    self._idle.put(user, connection)
                return answer
            if idle is None:
                self._wait_for_exit()
        metrics.SANDBOX_IMAGES.labels("process_killed").inc()
        raise Unavailable

    def _new_process(self) -> socket.socket:
        """Start a process that takes images through the returned socket."""
        ours, theirs = socket.socketpair()
        ours.settimeout(self.sandbox_limits.wall_seconds + GRACE_SECONDS)
        with theirs:
            try:
                self._start_child(theirs)
            except Unavailable:
                ours.close()
                raise
        return ours

    def _start_child(self, theirs: socket.socket, *files: int) -> None:
        """Ask for a child process at the other end; without a fork server the socket just closes."""
        with self._lock, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self._started(), [b"\0"], [theirs.fileno(), *files])

    def _request_at(self, connection: socket.socket, data: bytes) -> bytes:
        try:
            connection.sendall(LENGTH.pack(len(data)) + data)
            return _read_line(connection)
        except TimeoutError:
            log.error("sandbox.timed_out")
            self.close()
        except (BrokenPipeError, ConnectionResetError):
            pass
        return b""

    def _wait_for_exit(self) -> None:
        """Wait until a killed process has exited, so that it is not asked again."""
        with self._lock, contextlib.suppress(subprocess.TimeoutExpired):
            if self._process is not None:
                self._process.wait(EXIT_SECONDS)

    def _request(self, descriptors: list[int]) -> bytes:
        """Return one line of answer, or b"" if the process is gone."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                self._start_child(theirs, *descriptors)
            ours.settimeout(self.sandbox_limits.wall_seconds + GRACE_SECONDS)
            try:
                return _read_line(ours)
            except TimeoutError:
                log.error("sandbox.timed_out")
                self.close()
                return b""

    def _started(self) -> socket.socket:
        """Return the control socket of a running fork server. Call it with the lock held."""
        if self._process is not None and self._process.poll() is None and self._control is not None:
            return self._control
        self._end()
        ours, theirs = socket.socketpair()
        inherited = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        environment = {**inherited, **_ONE_THREAD, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [
                        sys.executable,
                        "-P",
                        "-s",
                        "-m",
                        MODULE,
                        self.sandbox_limits.to_json(),
                    ],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    env=environment,
                    cwd="/",
                )
            except OSError as error:
                ours.close()
                log.error("sandbox.not_started", reason=error.strerror)
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
    with _checked_answer():
        answer = json.loads(line, parse_constant=_reject_constant)
        if "rejected" in answer:
            message = _message(answer["rejected"])
            metrics.SANDBOX_IMAGES.labels("rejected").inc()
            raise ImageError(message)
        if answer.get("stopped") == "no_process":
            metrics.SANDBOX_IMAGES.labels("no_process").inc()
            raise Unavailable
        if "stopped" in answer:
            log.warning("sandbox.stopped", **answer)
            message = ABORTED[answer["stopped"]]
            metrics.SANDBOX_IMAGES.labels(answer["stopped"]).inc()
            raise DecodingAborted(message)
    assert isinstance(answer, dict)
    metrics.SANDBOX_IMAGES.labels("ok").inc()
    return answer


def _reject_constant(name: str) -> Any:
    """Refuse NaN and infinities: Python reads them, but no database column of JSON takes them."""
    raise ValueError(f"{name} is not JSON")


def _message(rejected: dict[str, Any]) -> str:
    """Return the message of a rejected image; raise ValueError or KeyError if it is not one of ours."""
    reason, text = rejected["reason"], str(rejected["message"])
    if reason is None:
        return text
    message = TEMPLATES[reason](**rejected["params"])
    if message != text:
        raise ValueError("a message that does not match its reason")
    return message


@contextlib.contextmanager
def _checked_answer() -> Iterator[None]:
    """Turn errors in reading an answer into DecodingAborted: the image took over or broke the process."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, EOFError) as error:
        log.warning("sandbox.invalid_answer", reason=repr(error)[:200])
        metrics.SANDBOX_IMAGES.labels("invalid_answer").inc()
        raise DecodingAborted(ABORTED["crashed"]) from error


def _read_image(answer: dict[str, Any], pixels: int, limits: ImageLimits) -> DecodedImage:
    width, height, bits = int(answer["width"]), int(answer["height"]), int(answer["bits"])
    images.check_input(width, height, limits)
    kind: type[np.uint8 | np.uint16] = np.uint8 if {8: True, 16: False}[bits] else np.uint16
    os.lseek(pixels, 0, os.SEEK_SET)
    rgb = _read_samples(pixels, (height, width, 3), kind)
    alpha = _read_samples(pixels, (height, width), kind) if answer["alpha"] else None
    blobs = {name: _read_blob(pixels, answer["blobs"][name]) for name in BLOBS}
    dpi, tables = answer["dpi"], answer["quantisation"]
    return DecodedImage(
        rgb=rgb,
        alpha=alpha,
        grey=bool(answer["grey"]),
        dpi=None if dpi is None else (float(dpi[0]), float(dpi[1])),
        quantisation=None if tables is None else tuple(tuple(int(step) for step in table) for table in tables),
        notes=tuple(str(note) for note in answer["notes"]),
        icc=blobs["icc"],
        exif=blobs["exif"],
        xmp=blobs["xmp"],
    )


def _read_samples(descriptor: int, shape: tuple[int, ...], kind: type[np.uint8 | np.uint16]) -> PixelArray:
    # Copied, not mapped: reading mapped memory whose file is truncated would kill this process.
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
    while not line.endswith(b"\n") and len(line) < MAX_ANSWER_BYTES:
        received = source.recv(65_536)
        if not received:
            break
        line += received
    return line


@contextlib.contextmanager
def _anonymous_file() -> Iterator[int]:
    """Open a file without a name, in memory if the system can (Linux), else on disk."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("image")
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    else:
        with tempfile.TemporaryFile() as file:
            yield file.fileno()
