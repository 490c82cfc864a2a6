"""Sandbox: same images as without it, enforced limits, nothing left behind."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import signal
import struct
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID, uuid4

import numpy as np
import psutil
import pytest

from hiresfix import images, messages
from hiresfix.errors import ImageError, Unavailable
from hiresfix.images import DecodedImage, ImageLimits
from hiresfix.server.sandbox import idle_processes
from hiresfix.server.sandbox.client import ABORTED, BASE_BYTES, BYTES_PER_PIXEL, DecodingAborted, Sandbox, _outcome
from hiresfix.server.sandbox.process import NOBODY
from tests import sample_images
from tests.server.conftest import wait_until

LIMITS = ImageLimits()


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(LIMITS) as opened:
        yield opened


def large_flat_png(side: int) -> bytes:
    """A valid image of `side` squared pixels in a few kilobytes."""
    rows = zlib.compressobj(1)
    pixels = b"".join(rows.compress(bytes(1 + 3 * side)) for _ in range(side)) + rows.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    content = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(sample_images.chunk(*part) for part in content)


@functools.cache
def slow_image() -> bytes:
    """It takes a second or so to decode."""
    return large_flat_png(7500)


def process_of(sandbox: Sandbox) -> psutil.Process:
    process = sandbox._process
    assert process is not None
    return psutil.Process(process.pid)


def shared_memory() -> set[Path]:
    folder = Path("/dev/shm")
    return set(folder.iterdir()) if folder.is_dir() else set()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("kind", ["rgb", "alpha", "grey", "sixteen", "metadata"])
def test_sandbox_decodes_the_same_image(sandbox: Sandbox, kind: str) -> None:
    deep = np.random.default_rng(1).integers(0, 65_536, (31, 20, 4), np.uint16)
    data = {
        "rgb": sample_images.png(),
        "alpha": sample_images.save(sample_images.cut_out(), "PNG"),
        "grey": sample_images.save(sample_images.photo(33, 21)[..., 0], "PNG", dpi=(300, 300)),
        "sixteen": sample_images.deep_tiff(deep, extra=2),
        "metadata": sample_images.save(
            sample_images.photo(50, 40),
            "JPEG",
            exif=b"Exif\0\0" + sample_images.exif(orientation=6),
            icc_profile=sample_images.DISPLAY_P3,
            xmp=sample_images.XMP,
        ),
    }[kind]
    expected, decoded = images.decode(data, LIMITS), sandbox.decode(data)
    assert decoded.rgb.dtype == expected.rgb.dtype
    np.testing.assert_array_equal(decoded.rgb, expected.rgb)
    if expected.alpha is None:
        assert decoded.alpha is None
    else:
        np.testing.assert_array_equal(decoded.alpha, expected.alpha)
    for field in dataclasses.fields(DecodedImage):
        if field.name not in ("rgb", "alpha"):
            assert getattr(decoded, field.name) == getattr(expected, field.name), field.name
    assert decoded.rgb.flags.writeable
    assert sandbox.probe(data) == images.read_header(data, LIMITS)


def test_refusal_keeps_its_message(sandbox: Sandbox) -> None:
    for data in (b"not an image", sample_images.forged_png(), sample_images.truncated_jpeg()):
        with pytest.raises(ImageError) as here:
            images.decode(data, LIMITS)
        with pytest.raises(ImageError) as there:
            sandbox.probe(data)
        assert there.value.message == here.value.message
        assert not isinstance(there.value, DecodingAborted)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_answer_with_non_finite_number_is_invalid(value: str) -> None:
    text = str(messages.FILE_TOO_LARGE(limit=float(value)))
    rejected = f'{{"reason": "file_too_large", "message": "{text}", "params": {{"limit": {value}}}}}'
    with pytest.raises(DecodingAborted):
        _outcome(f'{{"rejected": {rejected}}}'.encode())


def test_memory_limit_is_enforced() -> None:
    data = large_flat_png(3000)
    with Sandbox(LIMITS, memory=40 * 1024 * 1024) as tight:
        with pytest.raises(DecodingAborted) as refusal:
            tight.probe(data)
        assert refusal.value.message == ABORTED["out_of_memory"]
        assert tight.probe(sample_images.png()).size == (64, 48)
    with Sandbox(LIMITS, memory=400 * 1024 * 1024) as wide:
        assert wide.probe(data).size == (3000, 3000)


@pytest.mark.parametrize("kind", ["16 bit premultiplied", "WEBP", "AVIF", "HEIF"])
def test_memory_per_pixel_suffices(kind: str) -> None:
    side = 1500
    if kind == "16 bit premultiplied":
        data = sample_images.deep_tiff(np.full((side, side, 4), 40_000, np.uint16), extra=1)
    else:
        fastest = {"WEBP": {"method": 0}, "AVIF": {"speed": 10}, "HEIF": {"quality": 10}}[kind]
        data = sample_images.save(sample_images.smooth(side, side), kind, **fastest)
    with Sandbox(LIMITS, memory=BASE_BYTES // 2 + BYTES_PER_PIXEL * side**2) as sandbox:
        assert sandbox.decode(data).size == (side, side)


def test_time_limit_is_enforced() -> None:
    data = slow_image()
    with Sandbox(LIMITS, wall_seconds=0) as hurried, pytest.raises(DecodingAborted) as refusal:
        hurried.probe(data)
    assert refusal.value.message == ABORTED["timed_out"]


@pytest.mark.parametrize("how", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT], ids=["segv", "kill", "abort"])
def test_crash_rejects_only_its_image(sandbox: Sandbox, how: signal.Signals) -> None:
    sandbox.probe(sample_images.png())
    process = process_of(sandbox)
    wait_until(lambda: not process.children())  # the one of the first image
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(sandbox.probe, slow_image())
        children: list[psutil.Process] = []

        def seen() -> bool:
            children.extend(process.children())
            return bool(children)

        wait_until(seen)
        children[0].send_signal(how)
        with pytest.raises(DecodingAborted) as refusal:
            running.result()
    assert refusal.value.message == ABORTED["crashed"]
    assert sandbox.probe(sample_images.png()).size == (64, 48)
    assert process_of(sandbox) == process


def test_killed_process_is_retried(sandbox: Sandbox) -> None:
    sandbox.probe(sample_images.png())
    process_of(sandbox).kill()
    assert sandbox.probe(sample_images.png()).size == (64, 48)


def test_unstartable_process_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with Sandbox(LIMITS) as sandbox, pytest.raises(Unavailable):
        sandbox.probe(sample_images.png())


def test_threads_decode_in_parallel(sandbox: Sandbox) -> None:
    sizes = [(20 + at, 30 + at) for at in range(24)]
    with ThreadPoolExecutor(8) as pool:
        decoded_sizes = pool.map(lambda size: sandbox.decode(sample_images.png(*size)).size, sizes)
        assert list(decoded_sizes) == sizes


def test_child_has_no_secrets_or_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIRESFIX_DATABASE_URL", "postgresql://user:secret@host/name")
    with Sandbox(LIMITS) as sandbox, ThreadPoolExecutor(1) as pool:
        sandbox.probe(sample_images.png())
        process = process_of(sandbox)
        assert "secret" not in " ".join(process.environ().values())
        wait_until(lambda: not process.children())  # the one of the first image
        running = pool.submit(sandbox.probe, slow_image())
        wait_until(process.children)
        (child,) = process.children()
        if os.geteuid() == 0:
            wait_until(lambda: child.uids().effective == NOBODY)  # its last step before it reads the image
        bounds = Path(f"/proc/{child.pid}/limits").read_text()
        for name in ("core file size", "file size"):
            assert re.search(rf"^Max {name} +0 +0 ", bounds, re.MULTILINE)
        for name in ("address space", "cpu time", "open files"):
            assert re.search(rf"^Max {name} +[1-9]\d* +[1-9]\d* ", bounds, re.MULTILINE)
        running.result()


def test_no_process_outlives_its_owner(tmp_path: Path) -> None:
    script = tmp_path / "owner.py"
    script.write_text(
        "import sys\nfrom hiresfix.images import ImageLimits\nfrom hiresfix.server.sandbox.client import Sandbox\n"
        "sandbox = Sandbox(ImageLimits())\nsandbox.probe(open(sys.argv[1], 'rb').read())\n"
        "print('ready', flush=True)\nsandbox.probe(open(sys.argv[2], 'rb').read())\n"
    )
    (tmp_path / "small").write_bytes(sample_images.png())
    (tmp_path / "large").write_bytes(slow_image())
    before = shared_memory()
    with psutil.Popen([sys.executable, script, tmp_path / "small", tmp_path / "large"], stdout=-1) as owner:
        assert owner.stdout.readline() == b"ready\n"
        (process,) = owner.children()
        wait_until(process.children)
        family = [process, *process.children()]
        owner.kill()
    gone, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    assert len(gone) == 2
    assert not [path for path in shared_memory() - before if "image" in path.name]


def test_close_leaves_no_process_or_descriptor() -> None:
    descriptors = open_descriptors()
    with Sandbox(LIMITS) as sandbox:
        sandbox.decode(sample_images.png())
        process = process_of(sandbox)
    assert not process.is_running()
    assert open_descriptors() == descriptors


def decoders(sandbox: Sandbox) -> set[int]:
    return {child.pid for child in process_of(sandbox).children()}


def test_only_one_users_images_share_a_process(
    sandbox: Sandbox,
) -> None:
    mine, yours = uuid4(), uuid4()
    seen: dict[UUID, set[int]] = {mine: set(), yours: set()}
    sandbox._idle.close()
    wait_until(lambda: not sandbox._process or not decoders(sandbox))
    for user in (mine, yours) * 5:
        before = decoders(sandbox) if sandbox._process else set()
        assert sandbox.probe(sample_images.png(), user=user).size == (64, 48)
        seen[user] |= decoders(sandbox) - before
    assert (len(seen[mine]), len(seen[yours])) == (1, 1)
    assert not seen[mine] & seen[yours]
    assert decoders(sandbox) == seen[mine] | seen[yours]


def test_one_users_images_decode_in_parallel(sandbox: Sandbox) -> None:
    user, sizes = uuid4(), [(20 + at, 30 + at) for at in range(24)]
    with ThreadPoolExecutor(8) as pool:
        probed_sizes = pool.map(lambda size: sandbox.probe(sample_images.png(*size), user=user).size, sizes)
        assert list(probed_sizes) == sizes


@pytest.mark.parametrize("kind", ["damaged", "large", "long"])
def test_process_stays_after_small_sound_images(sandbox: Sandbox, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    user = uuid4()
    sandbox.probe(sample_images.png(), user=user)
    (kept,) = {process.connection for process in sandbox._idle._waiting if process.user == user}
    if kind == "damaged":
        with pytest.raises(ImageError, match="damaged"):
            sandbox.probe(sample_images.truncated_jpeg(), user=user)
    elif kind == "large":
        assert sandbox.probe(large_flat_png(1600), user=user).size == (1600, 1600)
    else:
        monkeypatch.setattr(idle_processes, "_MAX_IDLE_SECONDS", 0.0)
        assert sandbox.probe(sample_images.png(), user=uuid4()).size == (64, 48)
    assert kept.fileno() == -1  # closed, which ends the process
    assert sandbox.probe(sample_images.png(), user=user).size == (64, 48)


def test_dead_idle_process_is_replaced(sandbox: Sandbox) -> None:
    user = uuid4()
    sandbox._idle.close()
    wait_until(lambda: not sandbox._process or not decoders(sandbox))
    sandbox.probe(sample_images.png(), user=user)
    (child,) = process_of(sandbox).children()
    child.send_signal(signal.SIGKILL)
    wait_until(lambda: not decoders(sandbox))
    assert sandbox.probe(sample_images.png(), user=user).size == (64, 48)
