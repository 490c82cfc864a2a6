"""File store: bytes under keys, in a local folder, on S3, Google Cloud Storage or Azure, or in memory.

Guarantees: a key holds all bytes of one `put` or does not exist, for every reader and whenever the writer is killed.
When `put` returns, the bytes survive a power failure: cloud stores promise that; in a folder this module syncs,
because obstore's LocalStore renames into place but never calls fsync (traced with obstore 0.12.1). Leftovers of a
killed writer stay in the folder's `.staging`, which no listing shows; the next `open` deletes them after a day.

`.staging` also distinguishes a store from the empty mount point where one should be: without it no key counts as
missing, all are unreachable (StorageFailed), and nothing is written that the returning mount would hide. It is
created with the first file, if the caller of `open` says that the store is new (`is_new`).

Errors are NotFound and StorageFailed, whose texts name neither paths nor hosts; the cause is attached for the log.
This module does not know what the bytes are (see `storage_keys`), who may read them or how long they stay. A folder
stores no media types, so callers that need them record them elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit
from urllib.request import url2pathname
from uuid import uuid4

import obstore
from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, LocalStore, MemoryStore, S3Store, from_url

from hiresfix.errors import ConfigurationError, NotFound, StorageFailed
from hiresfix.files import write_all

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

CHUNK_BYTES: Final = 4 * 1024 * 1024
STAGING: Final = ".staging"
STAGING_MAX_AGE_SECONDS: Final = 24 * 3600.0

KEY: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
"""Segments of ASCII letters, digits, `_`, `-` and `.`, with the dot never first: no `..`, no hidden files."""

# obstore's defaults are 30 s for a whole request, too short for a large result on a slow connection, and 10 retries
# over 3 minutes, too long for a readiness check.
CLIENT_TIMEOUTS: Final[ClientConfig] = {"connect_timeout": timedelta(seconds=5), "timeout": timedelta(seconds=120)}
RETRIES: Final[RetryConfig] = {"max_retries": 3, "retry_timeout": timedelta(seconds=30)}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """A stored file; `modified` is UTC. The etag, quoted as in HTTP, changes with every `put`."""

    key: str
    size: int
    etag: str | None
    modified: datetime


async def _is_new() -> bool:
    return True


class Storage:
    """A file store; safe to share between tasks and, except memory://, between processes.

    Keys are segments of ASCII letters, digits and `_-.`, separated by `/`. Anything else is a ValueError, because
    callers of the API never choose keys.
    """

    def __init__(
        self, store: ObjectStore, *, folder: Path | None = None, is_new: Callable[[], Awaitable[bool]] = _is_new
    ) -> None:
        """Wrap `store`; `folder` is the folder of a LocalStore, `is_new` as in `open`."""
        self._store = store
        self._folder = folder
        self._is_new = is_new

    @classmethod
    def open(cls, location: str, *, is_new: Callable[[], Awaitable[bool]] = _is_new, **options: str) -> Storage:
        """Open the store at a URL; a missing folder is created with mode 0700.

        Sends nothing over the network; `check` does. Raises ConfigurationError.

        Args:
            location: A file://, s3://, gs://, az:// or memory:// URL.
            is_new: Called before the first file is put into a folder without a store; returns whether the store may
                be new. By default it may.
            **options: obstore's settings of that kind of store, such as `endpoint`, which may be http://. The usual
                environment variables (AWS_*, GOOGLE_*, AZURE_*) provide the rest.
        """
        scheme, host, path, *_ = urlsplit(location)
        if scheme == "file":
            if host or not path.startswith("/"):
                raise ConfigurationError("A file store needs an absolute path. Use file:///path/to/folder.")
            return cls._open_folder(Path(url2pathname(path)), is_new)
        if scheme == "memory":
            return cls(MemoryStore())
        if scheme not in ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss"):
            raise ConfigurationError(f"Unknown file store {scheme}://. Use file://, s3://, gs:// or az://.")
        endpoint = options.get("endpoint") or os.environ.get("AWS_ENDPOINT_URL", "")
        client: ClientConfig = {**CLIENT_TIMEOUTS, "allow_http": endpoint.startswith("http://")}
        settings: dict[str, Any] = {"client_options": client, "retry_config": RETRIES, **options}
        try:
            return cls(from_url(location, **settings))
        except (BaseError, ValueError) as error:
            raise ConfigurationError(
                f"Wrong settings of the file store: {error}. Correct its URL or options."
            ) from error

    @classmethod
    def _open_folder(cls, folder: Path, is_new: Callable[[], Awaitable[bool]]) -> Storage:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for leftover in (folder / STAGING).glob("*"):
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - leftover.stat().st_mtime > STAGING_MAX_AGE_SECONDS:
                        leftover.unlink()
        except OSError as error:
            raise ConfigurationError(f"Cannot use the folder {folder}: {error.strerror}. Choose another.") from error
        return cls(LocalStore(folder, automatic_cleanup=True), folder=folder, is_new=is_new)

    @property
    def exists(self) -> bool:
        """True if the folder holds a store and is not only its mount point; always true for a cloud store."""
        return self._folder is None or (self._folder / STAGING).is_dir()

    async def put(self, key: str, data: bytes, media_type: str, *, name: str | None = None) -> None:
        """Store `data` under `key`, replacing what was there; a reader sees the old bytes or the new.

        In a folder, cancelling does not stop a write that has begun: the key may still appear.

        Args:
            key: Storage key.
            data: The file's bytes.
            media_type: Sent by a cloud store to clients that fetch the file there (`sign`).
            name: File name for those clients; letters, digits and `_-.` only.
        """
        _check(key)
        with self._translated_errors("keep", missing=False):
            if self._folder is not None:
                try:
                    await asyncio.to_thread(_write, self._folder, key, data)
                except FileNotFoundError:
                    await self._create_staging(self._folder)
                    await asyncio.to_thread(_write, self._folder, key, data)
                return
            # In one request: parts of an aborted multipart upload would stay, invisible but billed.
            attributes: dict[str, str] = {"Content-Type": media_type}
            if name is not None:
                attributes["Content-Disposition"] = f'inline; filename="{name}"'
            await obstore.put_async(self._store, key, data, attributes=attributes, use_multipart=False)

    async def _create_staging(self, folder: Path) -> None:
        if not await self._is_new():
            raise OSError(f"no store in {folder}: mount it there or, if it is there, create {folder / STAGING}")
        (folder / STAGING).mkdir(mode=0o700, exist_ok=True)

    async def get(self, key: str) -> bytes:
        """Return the file's bytes. Raises NotFound."""
        _check(key)
        with self._translated_errors("read"):
            return bytes(await (await obstore.get_async(self._store, key)).bytes_async())

    async def head(self, key: str) -> StoredObject:
        """Return the file's size, etag and time. Raises NotFound."""
        _check(key)
        with self._translated_errors("read"):
            return _stored(await obstore.head_async(self._store, key))

    async def stream(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Yield the bytes [start, end) in chunks of at most 4 MiB; an `end` past the last byte means the last byte.

        Each chunk is a separate request, so a slow reader occupies no connection and hits no timeout of the store.
        Raises NotFound before the first chunk, and StorageFailed also when the key is written meanwhile, so that two
        versions never mix.
        """
        stored = await self.head(key)
        end = stored.size if end is None else min(end, stored.size)
        while start < end:
            stop = min(start + CHUNK_BYTES, end)
            with self._translated_errors("read"):
                response = await obstore.get_async(
                    self._store, key, options={"range": (start, stop), "if_match": stored.etag}
                )
                chunk = bytes(await response.bytes_async())
            yield chunk
            start = stop

    async def sign(self, key: str, *, seconds: float) -> str:
        """Return a URL at the store itself, with which anybody can GET the key for `seconds`, existing or not.

        On S3 a URL is valid for 7 days at most, and no longer than the credentials that signed it. Sends nothing to
        the store, but some credentials are fetched first. Raises StorageFailed, also for a folder, which has no URLs.
        """
        _check(key)
        if not isinstance(self._store, S3Store | GCSStore | AzureStore):
            raise StorageFailed("This file store has no addresses of its own. Use s3://, gs:// or az://.")
        with self._translated_errors("sign the address of", missing=False):
            return await obstore.sign_async(self._store, "GET", key, timedelta(seconds=seconds))

    async def delete(self, key: str) -> None:
        """Delete `key`; no error if it does not exist."""
        _check(key)
        with contextlib.suppress(NotFound), self._translated_errors("delete"):
            await obstore.delete_async(self._store, key)

    async def delete_prefix(self, prefix: str) -> None:
        """Delete every key under the folder `prefix` (`results/7` takes `results/7/a`, not `results/77`)."""
        _check(prefix)
        with self._translated_errors("delete"):
            if not self.exists:
                raise OSError("no store to delete from")
            async for page in self._pages(prefix):
                keys = [meta["path"] for meta in page]
                try:
                    await obstore.delete_async(self._store, keys)
                except FileNotFoundError:  # somebody else deletes too; a folder then stops half-way
                    for key in keys:
                        await self.delete(key)

    async def list(self, prefix: str = "") -> AsyncIterator[StoredObject]:
        """Yield every key under the folder `prefix`, or all, in no order; changes made meanwhile may be missed."""
        if prefix:
            _check(prefix)
        with self._translated_errors("list"):
            async for page in self._pages(prefix):
                for meta in page:
                    if not meta["path"].startswith(f"{STAGING}/"):
                        yield _stored(meta)

    def _pages(self, prefix: str) -> AsyncIterator[Sequence[ObjectMeta]]:
        return obstore.list(self._store, prefix or None, chunk_size=1000)

    @contextlib.contextmanager
    def _translated_errors(self, action: str, *, missing: bool = True) -> Iterator[None]:
        """Translate the store's errors into NotFound and StorageFailed.

        With `missing`, a missing file is NotFound, as long as the store exists.
        """
        try:
            yield
        except (BaseError, OSError) as error:
            if missing and isinstance(error, FileNotFoundError) and self.exists:
                raise NotFound("The file does not exist or was deleted. Check its address.") from error
            raise StorageFailed(f"The file store could not {action} a file. Try again later.") from error

    async def check(self) -> None:
        """Check readiness: store, read back and delete a small file; raises StorageFailed."""
        key = f"probe/{uuid4()}"
        await self.put(key, key.encode(), "text/plain")
        try:
            intact = await self.get(key) == key.encode()
        except NotFound:
            intact = False
        finally:
            await self.delete(key)
        if not intact:
            raise StorageFailed("The file store does not return what it was given. Check its settings.")


def _check(key: str) -> None:
    if KEY.fullmatch(key) is None:
        raise ValueError(f"not a storage key: {key!r}")


def _stored(meta: ObjectMeta) -> StoredObject:
    return StoredObject(key=meta["path"], size=meta["size"], etag=meta["e_tag"], modified=meta["last_modified"])


def _write(folder: Path, key: str, data: bytes) -> None:
    """Write to `.staging`, sync, rename into place, sync the directories: the file is complete and durable, or absent.

    Raises FileNotFoundError exactly if there is no `.staging`.
    """
    staged, target = f"{folder}/{STAGING}/{uuid4().hex}", f"{folder}/{key}"
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        _rename(staged, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(staged).unlink()
        raise
    directory = key
    while directory:
        directory = directory.rpartition("/")[0]
        _sync(f"{folder}/{directory}")


def _rename(staged: str, target: str) -> None:
    """Rename, creating missing directories, which a `delete` may remove again while they are empty."""
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError):
            os.replace(staged, target)  # noqa: PTH105 - no path objects: this runs for every image
            return
        # mkdir raises FileExistsError when the directory vanishes between its two checks.
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            Path(target).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    raise OSError(f"the directory of {target} keeps vanishing, or is not a directory")


def _sync(directory: str) -> None:
    """Make the directory's entries durable; do nothing if it is gone."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
