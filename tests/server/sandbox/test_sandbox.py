"""Decoding where it can do no harm: equal pictures, bounds that hold, nothing left behind."""

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

from hiresfix import images
from hiresfix.errors import PictureError, Unavailable
from hiresfix.images import DecodedImage, Limits
from hiresfix.server.sandbox import idle_processes
from hiresfix.server.sandbox.client import BASE_BYTES, BYTES_PER_PIXEL, STOPPED, DecoderStopped, Sandbox
from hiresfix.server.sandbox.process import NOBODY
from tests import sample_images
from tests.server.conftest import wait_until

LIMITS = Limits()


@pytest.fixture(scope="module")
def quarantine() -> Iterator[Sandbox]:
    with Sandbox(LIMITS) as opened:
        yield opened


def large_flat_png(side: int) -> bytes:
    """A legal picture of `side` squared pixels in a few kilobytes."""
    rows = zlib.compressobj(1)
    pixels = b"".join(rows.compress(bytes(1 + 3 * side)) for _ in range(side)) + rows.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    content = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(sample_images.chunk(*part) for part in content)


@functools.cache
def slow_picture() -> bytes:
    """It takes a second or so to decode."""
    return large_flat_png(7500)


def process_of(quarantine: Sandbox) -> psutil.Process:
    found = quarantine._process
    assert found is not None
    return psutil.Process(found.pid)


def shared_memory() -> set[Path]:
    folder = Path("/dev/shm")
    return set(folder.iterdir()) if folder.is_dir() else set()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("kind", ["rgb", "alpha", "grey", "sixteen", "metadata"])
def test_a_picture_is_the_one_that_decoding_here_gives(quarantine: Sandbox, kind: str) -> None:
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
    expected, found = images.decode(data, LIMITS), quarantine.decode(data)
    assert found.rgb.dtype == expected.rgb.dtype
    np.testing.assert_array_equal(found.rgb, expected.rgb)
    if expected.alpha is None:
        assert found.alpha is None
    else:
        np.testing.assert_array_equal(found.alpha, expected.alpha)
    for field in dataclasses.fields(DecodedImage):
        if field.name not in ("rgb", "alpha"):
            assert getattr(found, field.name) == getattr(expected, field.name), field.name
    assert found.rgb.flags.writeable
    assert quarantine.probe(data) == images.read_header(data, LIMITS)


def test_a_refusal_keeps_its_words(quarantine: Sandbox) -> None:
    for data in (b"no picture", sample_images.forged_png(), sample_images.truncated_jpeg()):
        with pytest.raises(PictureError) as here:
            images.decode(data, LIMITS)
        with pytest.raises(PictureError) as there:
            quarantine.probe(data)
        assert there.value.message == here.value.message
        assert not isinstance(there.value, DecoderStopped)


def test_a_decoder_that_wants_more_memory_than_allowed_is_refused_it() -> None:
    data = large_flat_png(3000)
    with Sandbox(LIMITS, memory=40 * 1024 * 1024) as tight:
        with pytest.raises(DecoderStopped) as refusal:
            tight.probe(data)
        assert refusal.value.message == STOPPED["memory"]
        assert tight.probe(sample_images.png()).size == (64, 48)
    with Sandbox(LIMITS, memory=400 * 1024 * 1024) as wide:
        assert wide.probe(data).size == (3000, 3000)


@pytest.mark.parametrize("kind", ["16 bit premultiplied", "WEBP", "AVIF", "HEIF"])
def test_what_a_pixel_may_take_is_enough_for_the_hungriest_formats(kind: str) -> None:
    side = 1500
    if kind == "16 bit premultiplied":
        data = sample_images.deep_tiff(np.full((side, side, 4), 40_000, np.uint16), extra=1)
    else:
        fastest = {"WEBP": {"method": 0}, "AVIF": {"speed": 10}, "HEIF": {"quality": 10}}[kind]
        data = sample_images.save(sample_images.smooth(side, side), kind, **fastest)
    with Sandbox(LIMITS, memory=BASE_BYTES // 2 + BYTES_PER_PIXEL * side**2) as quarantine:
        assert quarantine.decode(data).size == (side, side)


def test_a_decoder_that_takes_too_long_is_ended() -> None:
    data = slow_picture()
    with Sandbox(LIMITS, wall_seconds=0) as hurried, pytest.raises(DecoderStopped) as refusal:
        hurried.probe(data)
    assert refusal.value.message == STOPPED["time"]


@pytest.mark.parametrize("how", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT], ids=["segv", "kill", "abort"])
def test_a_decoder_that_dies_is_the_pictures_fault_and_the_next_picture_decodes(
    quarantine: Sandbox, how: signal.Signals
) -> None:
    quarantine.probe(sample_images.png())
    process = process_of(quarantine)
    wait_until(lambda: not process.children())  # the one of the first picture
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(quarantine.probe, slow_picture())
        found: list[psutil.Process] = []

        def seen() -> bool:
            found.extend(process.children())
            return bool(found)

        wait_until(seen)
        found[0].send_signal(how)
        with pytest.raises(DecoderStopped) as refusal:
            running.result()
    assert refusal.value.message == STOPPED["crash"]
    assert quarantine.probe(sample_images.png()).size == (64, 48)
    assert process_of(quarantine) == process


def test_a_process_killed_from_outside_costs_a_picture_nothing(quarantine: Sandbox) -> None:
    quarantine.probe(sample_images.png())
    process_of(quarantine).kill()
    assert quarantine.probe(sample_images.png()).size == (64, 48)


def test_without_room_for_a_process_the_fault_is_not_the_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with Sandbox(LIMITS) as quarantine, pytest.raises(Unavailable):
        quarantine.probe(sample_images.png())


def test_many_threads_decode_beside_each_other(quarantine: Sandbox) -> None:
    sizes = [(20 + at, 30 + at) for at in range(24)]
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda size: quarantine.decode(sample_images.png(*size)).size, sizes)
        assert list(found) == sizes


def test_a_decoder_inherits_no_secret_no_right_and_no_way_to_dump_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIRESFIX_DATABASE_URL", "postgresql://user:secret@host/name")
    with Sandbox(LIMITS) as quarantine, ThreadPoolExecutor(1) as pool:
        quarantine.probe(sample_images.png())
        process = process_of(quarantine)
        assert "secret" not in " ".join(process.environ().values())
        wait_until(lambda: not process.children())  # the one of the first picture
        running = pool.submit(quarantine.probe, slow_picture())
        wait_until(process.children)
        (child,) = process.children()
        if os.geteuid() == 0:
            wait_until(lambda: child.uids().effective == NOBODY)  # the last it does before it reads the picture
        bounds = Path(f"/proc/{child.pid}/limits").read_text()
        for name in ("core file size", "file size"):
            assert re.search(rf"^Max {name} +0 +0 ", bounds, re.MULTILINE)
        for name in ("address space", "cpu time", "open files"):
            assert re.search(rf"^Max {name} +[1-9]\d* +[1-9]\d* ", bounds, re.MULTILINE)
        running.result()


def test_nothing_stays_when_its_owner_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "owner.py"
    script.write_text(
        "import sys\nfrom hiresfix.images import Limits\nfrom hiresfix.server.sandbox.client import Sandbox\n"
        "sandbox = Sandbox(Limits())\nsandbox.probe(open(sys.argv[1], 'rb').read())\n"
        "print('ready', flush=True)\nquarantine.probe(open(sys.argv[2], 'rb').read())\n"
    )
    (tmp_path / "small").write_bytes(sample_images.png())
    (tmp_path / "large").write_bytes(slow_picture())
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
    assert not [path for path in shared_memory() - before if "picture" in path.name]


def test_closing_ends_the_process_and_leaves_no_descriptor() -> None:
    descriptors = open_descriptors()
    with Sandbox(LIMITS) as quarantine:
        quarantine.decode(sample_images.png())
        process = process_of(quarantine)
    assert not process.is_running()
    assert open_descriptors() == descriptors


def decoders(quarantine: Sandbox) -> set[int]:
    return {child.pid for child in process_of(quarantine).children()}


def test_pictures_that_one_person_sends_one_after_the_other_share_a_process_and_those_of_two_never_do(
    quarantine: Sandbox,
) -> None:
    mine, yours = uuid4(), uuid4()
    seen: dict[UUID, set[int]] = {mine: set(), yours: set()}
    quarantine._sittings.close()
    wait_until(lambda: not quarantine._process or not decoders(quarantine))
    for whose in (mine, yours) * 5:
        before = decoders(quarantine) if quarantine._process else set()
        assert quarantine.probe(sample_images.png(), whose=whose).size == (64, 48)
        seen[whose] |= decoders(quarantine) - before
    assert (len(seen[mine]), len(seen[yours])) == (1, 1)
    assert not seen[mine] & seen[yours]
    assert decoders(quarantine) == seen[mine] | seen[yours]


def test_pictures_of_one_person_that_come_at_once_are_decoded_beside_each_other(quarantine: Sandbox) -> None:
    whose, sizes = uuid4(), [(20 + at, 30 + at) for at in range(24)]
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda size: quarantine.probe(sample_images.png(*size), whose=whose).size, sizes)
        assert list(found) == sizes


@pytest.mark.parametrize("kind", ["damaged", "large", "long"])
def test_a_process_stays_only_after_small_and_sound_pictures(
    quarantine: Sandbox, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whose = uuid4()
    quarantine.probe(sample_images.png(), whose=whose)
    (kept,) = {sitting.desk for sitting in quarantine._sittings._waiting if sitting.whose == whose}
    if kind == "damaged":
        with pytest.raises(PictureError, match="damaged"):
            quarantine.probe(sample_images.truncated_jpeg(), whose=whose)
    elif kind == "large":
        assert quarantine.probe(large_flat_png(1600), whose=whose).size == (1600, 1600)
    else:
        monkeypatch.setattr(idle_processes, "_FRESH_SECONDS", 0.0)
        assert quarantine.probe(sample_images.png(), whose=uuid4()).size == (64, 48)
    assert kept.fileno() == -1  # closed, which ends the process
    assert quarantine.probe(sample_images.png(), whose=whose).size == (64, 48)


def test_a_kept_process_that_dies_while_it_waits_costs_its_person_nothing(quarantine: Sandbox) -> None:
    whose = uuid4()
    quarantine._sittings.close()
    wait_until(lambda: not quarantine._process or not decoders(quarantine))
    quarantine.probe(sample_images.png(), whose=whose)
    (child,) = process_of(quarantine).children()
    child.send_signal(signal.SIGKILL)
    wait_until(lambda: not decoders(quarantine))
    assert quarantine.probe(sample_images.png(), whose=whose).size == (64, 48)
