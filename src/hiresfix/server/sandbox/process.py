"""Sandboxed decoding process: `python -m hiresfix.server.sandbox.process TERMS`, started by `sandbox.client`.

Standard input is a Unix socket. Every message on it is one byte with one to three descriptors: where to answer, the
picture's bytes and, if its pixels are wanted, a file for them. This process has imported the decoders and never
looks at a picture: it forks a child for each, so what one picture does to a child's memory, no other picture sees.

Where the picture's bytes are not among the descriptors, they come through the first, and the child may stay for
further ones: who asked sees to it that they are the same person's (`sittings`). It stays as long as pictures are small,
sound, quickly decoded and soon followed by another, and for `SITTING_SECONDS` at most; its answers say whether it does.

Guarantees for a child: bounded address space, processor and wall time, no core dump, no file it could fill beyond
the pixels asked for, no environment worth stealing (the parent chose it), and not root where the parent was. An
answer is one line of JSON; a child that ends without one is answered for. When the socket closes, everything ends.
What it does not do: forbid system calls. A decoder that is taken over can still do what its user may.
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
from hiresfix.errors import PictureError
from hiresfix.images import DecodedImage, Limits

NOBODY = 65_534
"""The user and group that own nothing, on every Linux."""
THREADS = 4
"""A decoder may start; AVIF's would start one a core, each with a stack that counts as address space."""
DESCRIPTORS = 64
METADATA_BYTES = 8 * 1024 * 1024
"""More than profile, EXIF and XMP of a `Picture` can have together."""
BLOBS = ("icc", "exif", "xmp")

STAY_SECONDS = 10.0
"""A child waits for another picture of the same person."""
SITTING_SECONDS = 60.0
SITTING_PROCESSOR_SECONDS = 1.0
"""Of all pictures together: what is left of the bounds is enough for one more."""
SMALL_BYTES = 2 * 1024 * 1024
SMALL_PIXELS = 2 * 1024 * 1024
"""Larger pictures end a sitting: what they took is given back with the process."""
LENGTH = struct.Struct(">I")
"""Goes before a picture's bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What every picture is decoded under. memory: bytes of address space beyond what this process has anyway;
    processor_seconds, wall_seconds: whole seconds until the child is killed.
    """

    limits: Limits
    memory: int
    processor_seconds: int
    wall_seconds: int

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Terms:
        values = json.loads(text)
        return cls(**{**values, "limits": Limits(**values["limits"])})

    @property
    def pixel_bytes(self) -> int:
        """The most a `Picture` can take: four channels of 16 bit, and its metadata."""
        return int(self.limits.max_input_megapixels * images.MEGAPIXEL) * 8 + METADATA_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class _Child:
    answer: socket.socket
    deadline: float


class _Forks:
    """The children at work, from fork to burial."""

    def __init__(self, control: socket.socket, terms: Terms) -> None:
        self._control = control
        self._terms = terms
        self._children: dict[int, _Child] = {}
        # A dying child wakes `select`: the handler does nothing, the byte in the pipe does.
        self._woken, waker = os.pipe()
        for end in (self._woken, waker):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> None:
        """Until the other end of the control socket is closed."""
        while True:
            ready, _, _ = select.select([self._control.fileno(), self._woken], [], [], self._patience())
            if self._woken in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._woken, 4096)
            self._end_overdue()
            self._bury()
            if self._control.fileno() in ready and not self._take():
                break
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)

    def _patience(self) -> float | None:
        deadlines = [child.deadline for child in self._children.values()]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _end_overdue(self) -> None:
        for pid, child in self._children.items():
            if time.monotonic() >= child.deadline:
                os.kill(pid, signal.SIGKILL)  # not yet waited for, so the number is still this child's

    def _bury(self) -> None:
        """Answer for children that ended without an answer."""
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            child = self._children.pop(pid)
            if status:
                late = time.monotonic() >= child.deadline or os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGALRM)
                _send(child.answer, {"stopped": "time" if late else "crash", "status": status})
            child.answer.close()

    def _take(self) -> bool:
        """Fork for the next picture; False when there will be none."""
        message, descriptors, _, _ = socket.recv_fds(self._control, 1, 3)
        if not message:
            return False
        answer, *files = descriptors
        answering = socket.socket(fileno=answer)
        deadline = time.monotonic() + self._terms.wall_seconds + (0.0 if files else SITTING_SECONDS + STAY_SECONDS)
        bounds = _bounds(self._terms, writes=len(files) > 1)  # here: a page that a child touches first is a page copied
        try:
            pid = os.fork()
        except OSError:
            _send(answering, {"stopped": "busy"})
            answering.close()
        else:
            if pid == 0:
                self._be_child(answering, files, bounds)
            self._children[pid] = _Child(answer=answering, deadline=deadline)
        for descriptor in files:
            os.close(descriptor)
        return True

    def _be_child(self, answer: socket.socket, files: list[int], bounds: Bounds) -> None:
        """In the child; never returns."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._control.close()
            for child in self._children.values():
                child.answer.close()
            _confine(bounds)
            if files:
                _limit_time(self._terms)
                answer.sendall(_line(_of_file(*files, limits=self._terms.limits)))
            else:
                _sit(answer, self._terms)
            status = 0
        finally:
            # Whatever was raised, no cleanup of a process that handled a stranger's bytes is worth running.
            os._exit(status)


def _send(answer: socket.socket, content: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # nobody may be listening any more
        answer.send(_line(content), socket.MSG_DONTWAIT)


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"


Bounds = tuple[tuple[int, int], ...]
"""Resources of the system and the most of each that a child may take."""


def _bounds(terms: Terms, *, writes: bool) -> Bounds:
    return (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, terms.pixel_bytes if writes else 0),
        (resource.RLIMIT_NOFILE, DESCRIPTORS),
        (resource.RLIMIT_CPU, terms.processor_seconds),
        (resource.RLIMIT_AS, _address_space() + terms.memory),
    )


def _confine(bounds: Bounds) -> None:
    for what, most in bounds:
        with contextlib.suppress(ValueError):  # the machine's own limit is tighter already
            resource.setrlimit(what, (most, most))
    if os.geteuid() == 0:
        with contextlib.suppress(PermissionError):  # a container may not let root become anybody else
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)


def _address_space() -> int:
    """Bytes this process has mapped; 0 where /proc does not tell."""
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:  # noqa: PTH123 - for every picture: no path objects
            pages = int(file.read().split()[0])
    except OSError:
        return 0
    return pages * resource.getpagesize()


def _limit_time(terms: Terms) -> None:
    """For the picture that comes now, should nobody be left to kill this process."""
    signal.alarm(terms.wall_seconds + 1)


def _sit(desk: socket.socket, terms: Terms) -> None:
    """Probe one person's pictures, until none comes any more or one was not small, sound and quickly done."""
    until = time.monotonic() + SITTING_SECONDS
    desk.settimeout(STAY_SECONDS)
    while (data := _received(desk)) is not None:
        _limit_time(terms)
        answer = _of(data, None, limits=terms.limits)
        header = answer.get("header")
        stays = (
            header is not None
            and header["width"] * header["height"] <= SMALL_PIXELS
            and time.process_time() < SITTING_PROCESSOR_SECONDS
            and time.monotonic() < until
        )
        desk.sendall(_line({**answer, "stays": stays}))
        if not stays:
            return
        signal.alarm(0)


def _received(desk: socket.socket) -> bytes | None:
    """The next picture; None if there is none."""
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        if head := _exactly(desk, LENGTH.size):
            return _exactly(desk, *LENGTH.unpack(head))
    return None


def _exactly(desk: socket.socket, size: int) -> bytes | None:
    content = bytearray()
    while len(content) < size:
        received = desk.recv(size - len(content))
        if not received:
            return None
        content += received
    return bytes(content)


def _of_file(source: int, pixels: int | None = None, *, limits: Limits) -> dict[str, Any]:
    try:
        with open(source, "rb", buffering=0) as file:
            data = file.read()
    except MemoryError:
        return {"stopped": "memory"}
    return _of(data, pixels, limits=limits)


def _of(data: bytes, pixels: int | None, *, limits: Limits) -> dict[str, Any]:
    """The answer to a picture. pixels: the file for them, None if nobody wants them."""
    try:
        header = images.read_header(data, limits)
        picture = images.decode(data, limits)
    except PictureError as error:
        if isinstance(error.__cause__, MemoryError):
            return {"stopped": "memory"}
        return {"refused": error.message}
    except MemoryError:
        return {"stopped": "memory"}
    if pixels is None:
        return {"header": asdict(header)}
    return {"picture": _hand_over(picture, pixels)}


def _hand_over(picture: DecodedImage, pixels: int) -> dict[str, Any]:
    """Write samples and metadata one after the other; returns what is needed to read them."""
    blobs = {name: getattr(picture, name) for name in BLOBS}
    arrays = [picture.rgb] if picture.alpha is None else [picture.rgb, picture.alpha]
    with open(pixels, "wb", buffering=0) as file:
        for array in arrays:
            _write(file.fileno(), np.ascontiguousarray(array).data.cast("B"))
        for blob in blobs.values():
            _write(file.fileno(), memoryview(blob or b""))
    return {
        "width": picture.width,
        "height": picture.height,
        "bits": 8 * picture.rgb.dtype.itemsize,
        "alpha": picture.alpha is not None,
        "grey": picture.grey,
        "dpi": picture.dpi,
        "quantisation": picture.quantisation,
        "notes": picture.notes,
        "blobs": {name: None if blob is None else len(blob) for name, blob in blobs.items()},
    }


def _write(descriptor: int, content: memoryview) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def _import_decoders() -> None:
    """All that is imported when a picture is opened, because a child may not find it any more."""
    Image.init()
    AvifImagePlugin.DEFAULT_MAX_THREADS = min(THREADS, os.cpu_count() or 1)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # we end with whoever holds the other end, who may be draining
    terms = Terms.from_json(sys.argv[1])
    _import_decoders()
    gc.freeze()  # a collection in a child would copy every page it looks at
    _Forks(socket.socket(fileno=0), terms).run()


if __name__ == "__main__":
    main()
