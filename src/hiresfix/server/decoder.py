"""The process that decodes strangers' pictures: `python -m hiresfix.server.decoder TERMS`, started by `quarantine`.

Standard input is a Unix socket. Every message on it is one byte with two or three descriptors: where to answer, the
picture's bytes and, if its pixels are wanted, a file for them. This process has imported the decoders and never
looks at a picture: it forks a child for each, so what one picture does to a child's memory, no other picture sees.

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
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import AvifImagePlugin, Image

from hiresfix import images
from hiresfix.errors import PictureError
from hiresfix.images import Limits, Picture

NOBODY = 65_534
"""The user and group that own nothing, on every Linux."""
THREADS = 4
"""A decoder may start; AVIF's would start one a core, each with a stack that counts as address space."""
DESCRIPTORS = 64
METADATA_BYTES = 8 * 1024 * 1024
"""More than profile, EXIF and XMP of a `Picture` can have together."""
BLOBS = ("icc", "exif", "xmp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What every picture is decoded under. memory: bytes of address space beyond what this process has anyway;
    processor_seconds, wall_seconds: whole seconds until the child is killed."""

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
                late = time.monotonic() >= child.deadline or os.WTERMSIG(status) == signal.SIGXCPU
                _send(child.answer, {"stopped": "time" if late else "crash", "status": status})
            child.answer.close()

    def _take(self) -> bool:
        """Fork for the next picture; False when there will be none."""
        message, descriptors, _, _ = socket.recv_fds(self._control, 1, 3)
        if not message:
            return False
        answer, source, *pixels = descriptors
        answering = socket.socket(fileno=answer)
        deadline = time.monotonic() + self._terms.wall_seconds
        bounds = _bounds(self._terms, writes=bool(pixels))  # here: a page that a child touches first is a page copied
        try:
            pid = os.fork()
        except OSError:
            _send(answering, {"stopped": "busy"})
            answering.close()
        else:
            if pid == 0:
                self._be_child(answering, source, pixels[0] if pixels else None, bounds)
            self._children[pid] = _Child(answer=answering, deadline=deadline)
        for descriptor in (source, *pixels):
            os.close(descriptor)
        return True

    def _be_child(self, answer: socket.socket, source: int, pixels: int | None, bounds: Bounds) -> None:
        """In the child; never returns."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._control.close()
            for child in self._children.values():
                child.answer.close()
            _confine(bounds, self._terms.wall_seconds)
            line = _answer(source, pixels, self._terms.limits)
            answer.sendall(line)
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


def _confine(bounds: Bounds, wall_seconds: int) -> None:
    for what, most in bounds:
        with contextlib.suppress(ValueError):  # the machine's own limit is tighter already
            resource.setrlimit(what, (most, most))
    signal.alarm(wall_seconds + 1)  # should nobody be left to kill it
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


def _answer(source: int, pixels: int | None, limits: Limits) -> bytes:
    try:
        with open(source, "rb", buffering=0) as file:
            data = file.read()
        header = images.read_header(data, limits)
        picture = images.decode(data, limits)
    except PictureError as error:
        if isinstance(error.__cause__, MemoryError):
            return _line({"stopped": "memory"})
        return _line({"refused": error.message})
    except MemoryError:
        return _line({"stopped": "memory"})
    if pixels is None:
        return _line({"header": asdict(header)})
    return _line({"picture": _hand_over(picture, pixels)})


def _hand_over(picture: Picture, pixels: int) -> dict[str, Any]:
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
