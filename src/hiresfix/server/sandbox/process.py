"""Sandboxed decoding process: `python -m hiresfix.server.sandbox.process LIMITS`, started by `sandbox.client`.

Standard input is a Unix socket. Every message on it is one byte with one to three descriptors: where to answer, the
image's bytes and, if its pixels are wanted, a file for them. This process has imported the decoders and never reads an
image itself: it forks a child for each, so that no image can change the memory that another is decoded in.

If the image's bytes are not among the descriptors, they come through the first one, and the child may stay for more
images; `idle_processes` makes sure that they are the same user's. The child stays as long as images are small, sound,
quickly decoded and soon followed by another, and for `REUSE_SECONDS` at most; its answers say whether it stays.

A child has limits of address space, CPU time and elapsed time. It writes no core dump and no file beyond the requested
pixels, has no environment worth stealing (the parent chose it), and is not root where the parent was. An answer is one
line of JSON; if a child ends without one, this process answers for it. When the socket closes, everything ends.
System calls are not filtered: a decoder that is taken over can still do what its user may.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import AvifImagePlugin, Image

from hiresfix import images
from hiresfix.errors import ImageError
from hiresfix.files import write_all
from hiresfix.images import DecodedImage, ImageLimits
from hiresfix.units import MEGAPIXEL

NOBODY = 65_534
"""The user and group that own nothing, on every Linux."""
MAX_THREADS = 4
"""Threads of a decoder; AVIF's would start one per core, each with a stack that counts as address space."""
MAX_DESCRIPTORS = 64
METADATA_BYTES = 8 * 1024 * 1024
"""More than profile, EXIF and XMP of a `DecodedImage` can take together."""
BLOBS = ("icc", "exif", "xmp")

IDLE_SECONDS = 10.0
"""How long a child waits for another image of the same user."""
REUSE_SECONDS = 60.0
REUSE_CPU_SECONDS = 1.0
"""CPU time of all images of a child; the rest of its limit is enough for one more image."""
SMALL_BYTES = 2 * 1024 * 1024
SMALL_PIXELS = 2 * 1024 * 1024
"""A child exits after a larger image, which returns its memory."""
LENGTH = struct.Struct(">I")
"""Length in front of an image's bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxLimits:
    """Limits of decoding one image.

    `memory`: bytes of address space beyond what this process has anyway. `processor_seconds`, `wall_seconds`: whole
    seconds until the child is killed.
    """

    image_limits: ImageLimits
    memory: int
    processor_seconds: int
    wall_seconds: int

    def to_json(self) -> str:
        """Return the limits as a command-line argument."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> SandboxLimits:
        """Read the limits from a command-line argument."""
        values = json.loads(text)
        return cls(**{**values, "image_limits": ImageLimits(**values["image_limits"])})

    @property
    def pixel_bytes(self) -> int:
        """Largest size of a `DecodedImage`: four channels of 16 bit, and its metadata."""
        return int(self.image_limits.max_input_megapixels * MEGAPIXEL) * 8 + METADATA_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class _Child:
    answer: socket.socket
    deadline: float


class _ForkServer:
    """Forks children and tracks them until they are reaped."""

    def __init__(self, control: socket.socket, limits: SandboxLimits) -> None:
        self._control = control
        self._limits = limits
        self._children: dict[int, _Child] = {}
        # A dying child wakes `select`: the handler does nothing, the byte in the pipe does.
        self._woken, waker = os.pipe()
        for end in (self._woken, waker):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> None:
        """Run until the other end of the control socket is closed."""
        while True:
            ready, _, _ = select.select([self._control.fileno(), self._woken], [], [], self._timeout())
            if self._woken in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._woken, 4096)
            self._kill_overdue()
            self._reap()
            if self._control.fileno() in ready and not self._fork():
                break
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)

    def _timeout(self) -> float | None:
        deadlines = [child.deadline for child in self._children.values()]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _kill_overdue(self) -> None:
        for pid, child in self._children.items():
            if time.monotonic() >= child.deadline:
                os.kill(pid, signal.SIGKILL)  # not yet reaped, so the pid is still this child's

    def _reap(self) -> None:
        """Reap children that ended, and answer for those that crashed or were killed."""
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            child = self._children.pop(pid)
            if status:
                is_late = time.monotonic() >= child.deadline or os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGALRM)
                _send(child.answer, {"stopped": "timed_out" if is_late else "crashed", "status": status})
            child.answer.close()

    def _fork(self) -> bool:
        """Fork a child for the next image; return False when the socket is closed."""
        message, descriptors, _, _ = socket.recv_fds(self._control, 1, 3)
        if not message:
            return False
        answer, *files = descriptors
        answering = socket.socket(fileno=answer)
        deadline = time.monotonic() + self._limits.wall_seconds + (0.0 if files else REUSE_SECONDS + IDLE_SECONDS)
        # Computed before the fork: every page that a child touches is copied.
        resource_limits = _resource_limits(self._limits, writes=len(files) > 1)
        try:
            pid = os.fork()
        except OSError:
            _send(answering, {"stopped": "no_process"})
            answering.close()
        else:
            if pid == 0:
                self._run_child(answering, files, resource_limits)
            self._children[pid] = _Child(answer=answering, deadline=deadline)
        for descriptor in files:
            os.close(descriptor)
        return True

    def _run_child(self, answer: socket.socket, files: list[int], resource_limits: ResourceLimits) -> None:
        """Decode in the child process; never return."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._control.close()
            for child in self._children.values():
                child.answer.close()
            _confine(resource_limits)
            if files:
                _limit_time(self._limits)
                answer.sendall(_line(_decode_file(*files, limits=self._limits.image_limits)))
            else:
                _decode_series(answer, self._limits)
            status = 0
        finally:
            # After any exception, skip the cleanup of a process that handled untrusted bytes.
            os._exit(status)


def _send(answer: socket.socket, content: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the client may be gone
        answer.send(_line(content), socket.MSG_DONTWAIT)


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"


ResourceLimits = tuple[tuple[int, int], ...]
"""Resources of the system, and how much of each a child may take."""


def _resource_limits(limits: SandboxLimits, *, writes: bool) -> ResourceLimits:
    return (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, limits.pixel_bytes if writes else 0),
        (resource.RLIMIT_NOFILE, MAX_DESCRIPTORS),
        (resource.RLIMIT_CPU, limits.processor_seconds),
        (resource.RLIMIT_AS, _address_space() + limits.memory),
    )


def _confine(resource_limits: ResourceLimits) -> None:
    for kind, limit in resource_limits:
        with contextlib.suppress(ValueError):  # the machine's own limit is lower already
            resource.setrlimit(kind, (limit, limit))
    if os.geteuid() == 0:
        with contextlib.suppress(PermissionError):  # a container may forbid changing the user
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)


def _address_space() -> int:
    """Return the bytes this process has mapped; 0 without /proc."""
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:  # noqa: PTH123 - runs for every image: no path objects
            pages = int(file.read().split()[0])
    except OSError:
        return 0
    return pages * resource.getpagesize()


def _limit_time(limits: SandboxLimits) -> None:
    """Set an alarm for the current image, in case the fork server is gone."""
    signal.alarm(limits.wall_seconds + 1)


def _decode_series(connection: socket.socket, limits: SandboxLimits) -> None:
    """Probe one user's images until no more come, or one was not small, sound and quickly decoded."""
    until = time.monotonic() + REUSE_SECONDS
    connection.settimeout(IDLE_SECONDS)
    while (data := _receive_image(connection)) is not None:
        _limit_time(limits)
        answer = _decode(data, None, limits=limits.image_limits)
        header = answer.get("header")
        stays = (
            header is not None
            and header["width"] * header["height"] <= SMALL_PIXELS
            and time.process_time() < REUSE_CPU_SECONDS
            and time.monotonic() < until
        )
        connection.sendall(_line({**answer, "stays": stays}))
        if not stays:
            return
        signal.alarm(0)


def _receive_image(connection: socket.socket) -> bytes | None:
    """Return the next image; None if there is none."""
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        if head := _receive_exactly(connection, LENGTH.size):
            return _receive_exactly(connection, *LENGTH.unpack(head))
    return None


def _receive_exactly(connection: socket.socket, size: int) -> bytes | None:
    content = bytearray()
    while len(content) < size:
        received = connection.recv(size - len(content))
        if not received:
            return None
        content += received
    return bytes(content)


def _decode_file(source: int, pixels: int | None = None, *, limits: ImageLimits) -> dict[str, Any]:
    try:
        with open(source, "rb", buffering=0) as file:
            data = file.read()
    except MemoryError:
        return {"stopped": "out_of_memory"}
    return _decode(data, pixels, limits=limits)


def _decode(data: bytes, pixels: int | None, *, limits: ImageLimits) -> dict[str, Any]:
    """Return the answer to an image. `pixels`: the file for its pixels, None if they are not wanted."""
    try:
        header = images.read_header(data, limits)
        image = images.decode(data, limits)
    except ImageError as error:
        if isinstance(error.__cause__, MemoryError):
            return {"stopped": "out_of_memory"}
        return {"rejected": {"message": error.message, "reason": error.reason, "params": dict(error.params)}}
    except MemoryError:
        return {"stopped": "out_of_memory"}
    if pixels is None:
        return {"header": asdict(header)}
    return {"image": _write_image(image, pixels)}


def _write_image(image: DecodedImage, pixels: int) -> dict[str, Any]:
    """Write pixels and metadata one after the other; return what is needed to read them."""
    blobs = {name: getattr(image, name) for name in BLOBS}
    arrays = [image.rgb] if image.alpha is None else [image.rgb, image.alpha]
    with open(pixels, "wb", buffering=0) as file:
        for array in arrays:
            write_all(file.fileno(), np.ascontiguousarray(array).data.cast("B"))
        for blob in blobs.values():
            write_all(file.fileno(), memoryview(blob or b""))
    return {
        "width": image.width,
        "height": image.height,
        "bits": 8 * image.rgb.dtype.itemsize,
        "alpha": image.alpha is not None,
        "grey": image.grey,
        "dpi": image.dpi,
        "quantisation": image.quantisation,
        "notes": image.notes,
        "blobs": {name: None if blob is None else len(blob) for name, blob in blobs.items()},
    }


def _import_decoders() -> None:
    """Import everything that opening an image needs, because a confined child may not be able to."""
    Image.init()
    AvifImagePlugin.DEFAULT_MAX_THREADS = min(MAX_THREADS, os.cpu_count() or 1)


def main() -> None:
    """Run the fork server on standard input."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the process ends with its client, which may be draining
    limits = SandboxLimits.from_json(sys.argv[1])
    _import_decoders()
    gc.freeze()  # a garbage collection in a child would copy every page it touches
    _ForkServer(socket.socket(fileno=0), limits).run()


if __name__ == "__main__":
    main()
