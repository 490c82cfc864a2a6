"""The file store, on real folders, with real processes and a really full disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest

from hiresfix.errors import ConfigurationError, HiresfixError, NotFound, StorageFailed
from hiresfix.server.storage import CHUNK_BYTES, Storage
from tests.conftest import Bucket

NOBODY = 65534


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "our files"


@pytest.fixture(params=["file", "memory", "s3"])
def storage(request: pytest.FixtureRequest, folder: Path) -> Storage:
    if request.param == "s3":
        return Storage.open(request.getfixturevalue("bucket").url)
    return Storage.open(folder.as_uri() if request.param == "file" else "memory:///")


@pytest.fixture
def local(folder: Path) -> Storage:
    return Storage.open(folder.as_uri())


async def keys(storage: Storage, prefix: str = "") -> list[str]:
    return sorted([stored.key async for stored in storage.list(prefix)])


async def streamed(storage: Storage, key: str, start: int = 0, end: int | None = None) -> list[bytes]:
    return [chunk async for chunk in storage.stream(key, start, end)]


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# Every store


async def test_put_then_get(storage: Storage) -> None:
    await storage.put("sources/one", b"\x00picture\xff", "image/png")

    assert await storage.get("sources/one") == b"\x00picture\xff"


async def test_second_put_replaces_the_first(storage: Storage) -> None:
    await storage.put("a", b"long old bytes", "image/png")
    before = await storage.head("a")
    await storage.put("a", b"new", "image/png")
    after = await storage.head("a")

    assert await storage.get("a") == b"new"
    assert (before.size, after.size) == (14, 3)
    assert before.etag != after.etag


async def test_head_returns_size_etag_and_utc_time(storage: Storage) -> None:
    began = datetime.now(UTC)
    await storage.put("results/1/2.png", b"12345", "image/png")
    stored = await storage.head("results/1/2.png")

    assert (stored.key, stored.size) == ("results/1/2.png", 5)
    assert re.fullmatch(r'"[^"]+"', stored.etag or "")
    assert stored.modified.utcoffset() == timedelta(0)
    assert abs(stored.modified - began) < timedelta(minutes=1)


async def test_empty_file_is_stored(storage: Storage) -> None:
    await storage.put("empty", b"", "image/png")

    assert await storage.get("empty") == b""
    assert await streamed(storage, "empty") == []
    assert (await storage.head("empty")).size == 0


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, None), (0, 10), (9, 10), (5, 5), (7, 10**9), (10**9, None), (CHUNK_BYTES - 1, CHUNK_BYTES + 1)],
)
async def test_stream_yields_range_cut_at_end(storage: Storage, start: int, end: int | None) -> None:
    data = os.urandom(2 * CHUNK_BYTES + 17)
    await storage.put("big", data, "image/png")
    chunks = await streamed(storage, "big", start, end)

    assert b"".join(chunks) == data[start:end]
    assert all(0 < len(chunk) <= CHUNK_BYTES for chunk in chunks)


async def test_stream_never_mixes_two_versions(storage: Storage) -> None:
    await storage.put("big", b"1" * (2 * CHUNK_BYTES), "image/png")
    stream = storage.stream("big")
    first = await anext(stream)
    await storage.put("big", b"2" * (2 * CHUNK_BYTES), "image/png")

    assert first == b"1" * CHUNK_BYTES
    with pytest.raises(StorageFailed):
        await anext(stream)


async def test_missing_key_is_not_found(storage: Storage) -> None:
    await storage.put("results/1/a", b"1", "image/png")
    for key in ("nothing", "results", "results/1", "results/2/a"):
        for operation in (storage.get(key), storage.head(key), streamed(storage, key)):
            with pytest.raises(NotFound):
                await operation


async def test_delete_is_idempotent(storage: Storage) -> None:
    await storage.put("a/b", b"1", "image/png")
    await storage.put("a/c", b"2", "image/png")
    await storage.delete("a/b")
    await storage.delete("a/b")
    await storage.delete("never/was")

    assert await keys(storage) == ["a/c"]


async def test_prefix_is_a_folder_not_a_name_start(storage: Storage) -> None:
    for key in ("results/7/a", "results/7/b/c", "results/77/a", "results/7.png"):
        await storage.put(key, b"1", "image/png")

    assert await keys(storage, "results/7") == ["results/7/a", "results/7/b/c"]
    await storage.delete_prefix("results/7")
    assert await keys(storage) == ["results/7.png", "results/77/a"]
    await storage.delete_prefix("results/7")
    assert await keys(storage, "nowhere") == []


async def test_listing_spans_pages_and_matches_head(storage: Storage) -> None:
    at_once = asyncio.Semaphore(16)  # each takes a connection, and the fake S3 accepts fewer than 1,203

    async def keep(n: int) -> None:
        async with at_once:
            await storage.put(f"many/{n:04}", b"x" * n, "image/png")

    await asyncio.gather(*map(keep, range(1203)))
    listed = {stored.key: stored async for stored in storage.list("many")}

    assert sorted(listed) == [f"many/{n:04}" for n in range(1203)]
    assert listed["many/1202"] == await storage.head("many/1202")
    await storage.delete_prefix("many")
    assert await keys(storage) == []


async def test_racing_prefix_deletions_succeed(storage: Storage) -> None:
    for n in range(300):
        await storage.put(f"many/{n}", b"x", "image/png")
    await asyncio.gather(*(storage.delete_prefix("many") for _ in range(4)))

    assert await keys(storage) == []


async def test_readiness_check_leaves_nothing(storage: Storage) -> None:
    await storage.check()

    assert await keys(storage) == []


BAD_KEYS = [
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    "..",
    "a/../b",
    ".",
    ".staging/x",
    "a/.b",
    "a b",
    "a\\b",
    "a\nb",
    "ä",
    "a\0",
    "a#1",
    "a%2f",
]


@pytest.mark.parametrize("key", BAD_KEYS)
async def test_invalid_key_is_refused_by_every_operation(storage: Storage, key: str) -> None:
    for operation in (
        storage.put(key, b"1", "image/png"),
        storage.get(key),
        storage.head(key),
        streamed(storage, key),
        storage.delete(key),
        storage.delete_prefix(key),
    ):
        with pytest.raises(ValueError, match="not a storage key"):
            await operation


# Opening


def test_missing_folder_is_created_private(tmp_path: Path) -> None:
    Storage.open((tmp_path / "new" / "files").as_uri())

    assert (tmp_path / "new" / "files").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "location", ["files", "/srv/files", "ftp://host/x", "https://host/x", "file://files", "file:files"]
)
def test_invalid_location_is_a_configuration_error(location: str) -> None:
    with pytest.raises(ConfigurationError):
        Storage.open(location)


def test_file_as_folder_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(ConfigurationError, match="Choose another"):
        Storage.open((tmp_path / "file" / "below").as_uri())


def test_unknown_option_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="Correct"):
        Storage.open("s3://bucket", endpont="http://127.0.0.1:1")


async def test_silent_cloud_store_is_storage_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    storage = Storage.open("s3://bucket/ours", endpoint="http://127.0.0.1:9")

    with pytest.raises(StorageFailed) as caught:
        await storage.check()
    assert "127.0.0.1" not in caught.value.message
    assert "127.0.0.1" in str(caught.value.__cause__)


# Folders: no partial files, no leftovers


async def test_concurrent_puts_leave_one_complete_file(local: Storage, folder: Path) -> None:
    versions = [bytes([n]) * 3_000_000 for n in range(8)]
    await asyncio.gather(*(local.put("one", version, "image/png") for version in versions))

    assert await local.get("one") in versions
    assert files_below(folder) == ["one"]


async def test_readers_see_old_or_new_never_partial(local: Storage) -> None:
    versions = [bytes([n]) * (2_000_000 + n) for n in range(20)]
    await local.put("one", versions[0], "image/png")

    async def write() -> None:
        for version in versions:
            await local.put("one", version, "image/png")

    writing = asyncio.create_task(write())
    reads = 0
    while not writing.done():
        assert await local.get("one") in versions
        reads += 1
    await writing
    assert reads > 1


async def test_put_survives_concurrent_folder_removal(local: Storage, folder: Path) -> None:
    async def put_and_delete(name: str) -> None:
        for _ in range(60):
            await local.put(f"results/job/{name}", b"1", "image/png")
            await local.delete(f"results/job/{name}")

    await asyncio.gather(*(put_and_delete(name) for name in "abcd"))

    assert not (folder / "results").exists()


DYING_WRITER = """
import asyncio, os, sys
from pathlib import Path
from hiresfix.server.storage import Storage

def stop_here(*_):
    print("here", flush=True)
    os.read(0, 1)

if sys.argv[2] == "before the bytes are synced":
    os.fsync = stop_here
else:
    os.replace = stop_here
asyncio.run(Storage.open(sys.argv[1]).put("results/1/a.png", b"x" * 5_000_000, "image/png"))
"""


def killed_writer(folder: Path, moment: str) -> None:
    """Start a process that puts results/1/a.png, and kill it at that moment."""
    command = [sys.executable, "-c", DYING_WRITER, folder.as_uri(), moment]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"here\n"
        writer.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("moment", ["before the bytes are synced", "before the rename"])
async def test_killed_writer_leaves_no_key(folder: Path, moment: str) -> None:
    killed_writer(folder, moment)
    storage = Storage.open(folder.as_uri())

    assert await keys(storage) == []
    with pytest.raises(NotFound):
        await storage.get("results/1/a.png")

    [leftover] = files_below(folder)
    yesterday = time.time() - 25 * 3600
    os.utime(folder / leftover, (yesterday, yesterday))
    (folder / ".staging" / "of-a-writer-at-work").write_bytes(b"")
    Storage.open(folder.as_uri())
    assert files_below(folder) == [".staging/of-a-writer-at-work"]


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc which file a descriptor is")
def test_put_syncs_file_and_directories(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sync in the order that survives a power failure: content, then name, then the directories above it."""
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recording_fsync(descriptor: int) -> None:
        events.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().relative_to(folder).parts[:1]}")
        fsync(descriptor)

    def recording_replace(staged: str, target: str) -> None:
        replace(staged, target)  # fails until the directory exists
        events.append("rename")

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "replace", recording_replace)
    asyncio.run(Storage.open(folder.as_uri()).put("results/1", b"bytes", "image/png"))

    assert events == ["sync ('.staging',)", "rename", "sync ('results',)", "sync ()"]


# Folders that fail


@pytest.fixture
def readonly() -> Iterator[Path]:
    """A folder that this process may read but not write; it gives up root for the test."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "kept").write_bytes(b"1")
        folder.chmod(0o555)
        with contextlib.ExitStack() as stack:
            if os.geteuid() == 0:
                os.seteuid(NOBODY)
                stack.callback(os.seteuid, 0)
            yield folder
        folder.chmod(0o755)


async def test_unwritable_folder_error_hides_its_path(readonly: Path) -> None:
    storage = Storage.open(readonly.as_uri())

    assert await keys(storage) == ["kept"]
    for operation in (storage.put("a", b"1", "image/png"), storage.delete("kept"), storage.check()):
        await expect_failure(operation, readonly)


def test_vanished_folder_is_storage_failed(local: Storage, folder: Path) -> None:
    folder.rmdir()

    asyncio.run(expect_failure(local.put("a/b", b"1", "image/png"), folder))
    asyncio.run(expect_failure(local.check(), folder))
    assert not folder.exists()


async def store_is_not_new() -> bool:
    return False


@contextlib.contextmanager
def moved_away(folder: Path) -> Iterator[None]:
    """Replace the folder by an empty one, as if its file system were not mounted."""
    away = folder.rename(folder.with_name("away"))
    folder.mkdir()
    yield
    assert list(folder.iterdir()) == []
    folder.rmdir()
    away.rename(folder)


async def test_unmounted_store_fails_every_operation(folder: Path) -> None:
    storage = Storage.open(folder.as_uri(), is_new=store_is_not_new)
    with pytest.raises(StorageFailed):
        await storage.put("results/1/a", b"1", "image/png")
    await Storage.open(folder.as_uri()).put("results/1/a", b"1", "image/png")

    with moved_away(folder):
        opened = Storage.open(folder.as_uri(), is_new=store_is_not_new)
        for one in (storage, opened):
            for operation in (
                one.put("results/1/b", b"1", "image/png"),
                one.get("results/1/a"),
                one.head("results/1/a"),
                one.delete("results/1/a"),
                one.delete_prefix("results/1"),
                one.check(),
            ):
                await expect_failure(operation, folder)
            assert not one.exists

    assert await storage.get("results/1/a") == b"1"
    with pytest.raises(NotFound):
        await storage.get("results/1/b")


async def expect_failure(operation: Awaitable[object], folder: Path) -> None:
    with pytest.raises(HiresfixError) as caught:
        await operation
    assert type(caught.value) is StorageFailed
    assert caught.value.retryable
    assert str(folder) not in caught.value.message
    assert caught.value.__cause__ is not None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one mebibyte."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting needs root and a system that allows it")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


async def test_full_disk_keeps_existing_files(small_disk: Path) -> None:
    folder = small_disk / "files"
    storage = Storage.open(folder.as_uri())
    await storage.put("a", b"old" * 100_000, "image/png")

    await expect_failure(storage.put("a", b"new" * 400_000, "image/png"), folder)
    await expect_failure(storage.put("b", b"new" * 400_000, "image/png"), folder)

    assert await storage.get("a") == b"old" * 100_000
    assert files_below(folder) == ["a"]
    await storage.put("b", b"fits" * 100_000, "image/png")


# Signed URLs


async def test_signed_url_serves_private_file_with_name(bucket: Bucket) -> None:
    storage = Storage.open(bucket.url)
    await storage.put("results/1/2", b"0123456789", "image/webp", name="holiday-1.webp")
    url = await storage.sign("results/1/2", seconds=90)
    async with httpx.AsyncClient() as anybody:
        assert (await anybody.get(url.partition("?")[0])).status_code == 403
        answer = await anybody.get(url)
        part = await anybody.get(url, headers={"Range": "bytes=2-4"})
    assert (answer.status_code, answer.content) == (200, b"0123456789")
    assert answer.headers["content-type"] == "image/webp"
    assert answer.headers["content-disposition"] == 'inline; filename="holiday-1.webp"'
    assert (part.status_code, part.content) == (206, b"234")
    assert dict(parse_qsl(urlsplit(url).query))["X-Amz-Expires"] == "90"


async def test_signed_url_uses_public_endpoint(bucket: Bucket) -> None:
    outside = Storage.open(bucket.url, endpoint="https://images.example.com")
    url = await outside.sign("results/1/2", seconds=60)
    assert url.startswith(f"https://images.example.com/{bucket.name}/results/1/2?X-Amz-")


async def test_folder_cannot_sign(local: Storage) -> None:
    with pytest.raises(StorageFailed, match="Use s3://"):
        await local.sign("results/1/2", seconds=60)


async def test_missing_bucket_is_storage_failed(bucket: Bucket) -> None:
    storage = Storage.open("s3://no-such-bucket-here")
    with pytest.raises(StorageFailed):
        await storage.put("a", b"1", "image/png")
    with pytest.raises(StorageFailed):
        await storage.check()
