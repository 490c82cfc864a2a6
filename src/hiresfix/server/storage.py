"""Bytes kept under keys: in a local folder, on S3, Google Cloud Storage or Azure, or in memory, behind one interface.

Guarantees: a key holds all bytes of one `put` or does not exist, whoever reads meanwhile and whenever the writer is
killed. When `put` returns, the bytes survive a power cut: cloud stores promise that, in a folder we see to it, because
obstore's LocalStore renames into place but never calls fsync (traced with obstore 0.12.1). What a killed writer
leaves in a folder lies in `.staging`, which no listing shows, and is removed a day later by the next `open`.

`.staging` also tells a store from the empty place where one should be mounted: without it no key is missing, all of
them are out of reach (StorageFailed), and nothing is written that the returning mount would hide. It is made with the
first file, if whoever opened the store says that there was none before (`is_new`).

Errors are NotFound and StorageFailed, whose texts name neither paths nor hosts; the cause is attached for the log.
This module does not know what the bytes are, who may read them or how long they stay. A folder keeps no media
types, so whoever needs one writes it down elsewhere.
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

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

CHUNK_BYTES: Final = 4 * 1024 * 1024
STAGING: Final = ".staging"
STALE_SECONDS: Final = 24 * 3600.0

KEY: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
"""Segments of ASCII letters, digits, `_`, `-` and `.`, the latter never first: no `..`, nothing hidden."""

# obstore's defaults are 30 s for a whole request, too short for a large result on a slow line, and 10 retries
# over 3 minutes, too long for a readiness check to notice anything.
PATIENCE: Final[ClientConfig] = {"connect_timeout": timedelta(seconds=5), "timeout": timedelta(seconds=120)}
RETRIES: Final[RetryConfig] = {"max_retries": 3, "retry_timeout": timedelta(seconds=30)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What a store knows of a key; `modified` is UTC. The etag, quoted as in HTTP, changes with every `put`."""

    key: str
    size: int
    etag: str | None
    modified: datetime


async def _is_new() -> bool:
    return True


class Storage:
    """One place to keep bytes; safe to share between tasks and, for all but memory://, between processes.

    Keys are ASCII letters, digits and `_-.` in segments parted by `/`; anything else is a ValueError, since keys are
    made by us and never by callers.
    """

    def __init__(
        self, store: ObjectStore, *, folder: Path | None = None, is_new: Callable[[], Awaitable[bool]] = _is_new
    ) -> None:
        """`folder` is where `store` keeps its files when it is a LocalStore; `is_new` as in `open`."""
        self._store = store
        self._folder = folder
        self._is_new = is_new

    @classmethod
    def open(cls, location: str, *, is_new: Callable[[], Awaitable[bool]] = _is_new, **options: str) -> Storage:
        """The store at a file://, s3://, gs://, az:// or memory:// URL; a missing folder is created with mode 0700.

        is_new: asked before the first file is put into a folder that no store was in: whether there can be none yet.
        By default there can.

        `options` are obstore's settings of that kind of store, say `endpoint`; what they leave out comes from the
        usual environment (AWS_*, GOOGLE_*, AZURE_*). An endpoint given as http:// is used as such.
        Raises ConfigurationError. Reaches no network: `check` does.
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
        client: ClientConfig = {**PATIENCE, "allow_http": endpoint.startswith("http://")}
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
                    if time.time() - leftover.stat().st_mtime > STALE_SECONDS:
                        leftover.unlink()
        except OSError as error:
            raise ConfigurationError(f"Cannot use the folder {folder}: {error.strerror}. Choose another.") from error
        return cls(LocalStore(folder, automatic_cleanup=True), folder=folder, is_new=is_new)

    @property
    def is_there(self) -> bool:
        """Whether a store is in the folder, and not only a place for one; a cloud's is taken to be."""
        return self._folder is None or (self._folder / STAGING).is_dir()

    async def put(self, key: str, data: bytes, media_type: str, *, name: str | None = None) -> None:
        """Keep `data` under `key`, in place of what was there; a reader sees the old bytes or the new.

        name: of the file, for whoever fetches it from the store itself (`sign`); letters, digits and `_-.` only.
        In a folder, cancelling does not stop a write that has begun: the key may still appear.
        """
        _check(key)
        with self._explained("keep", missing=False):
            if self._folder is not None:
                try:
                    await asyncio.to_thread(_write, self._folder, key, data)
                except FileNotFoundError:
                    await self._found(self._folder)
                    await asyncio.to_thread(_write, self._folder, key, data)
                return
            # In one request: parts of an aborted multipart upload would stay, invisible and paid for.
            attributes: dict[str, str] = {"Content-Type": media_type}
            if name is not None:
                attributes["Content-Disposition"] = f'inline; filename="{name}"'
            await obstore.put_async(self._store, key, data, attributes=attributes, use_multipart=False)

    async def _found(self, folder: Path) -> None:
        if not await self._is_new():
            raise OSError(f"no store in {folder}: mount it there or, if it is there, create {folder / STAGING}")
        (folder / STAGING).mkdir(mode=0o700, exist_ok=True)

    async def get(self, key: str) -> bytes:
        _check(key)
        with self._explained("read"):
            return bytes(await (await obstore.get_async(self._store, key)).bytes_async())

    async def head(self, key: str) -> Stored:
        _check(key)
        with self._explained("read"):
            return _stored(await obstore.head_async(self._store, key))

    async def stream(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Bytes [start, end) in chunks of at most 4 MiB; an `end` past the last byte means the last byte.

        Each chunk is a request of its own, so a slow reader holds no connection and no timeout of the store.
        Raises NotFound before the first chunk; StorageFailed also when the key is written meanwhile, so that two
        versions never mix.
        """
        found = await self.head(key)
        end = found.size if end is None else min(end, found.size)
        while start < end:
            stop = min(start + CHUNK_BYTES, end)
            with self._explained("read"):
                answer = await obstore.get_async(
                    self._store, key, options={"range": (start, stop), "if_match": found.etag}
                )
                chunk = bytes(await answer.bytes_async())
            yield chunk
            start = stop

    async def sign(self, key: str, *, seconds: float) -> str:
        """A URL at the store itself by which anybody may GET the key for so long, whether it exists or not.

        S3 lets a URL live 7 days at most, and none longer than the credentials that signed it. Nothing is asked of the
        store, but some credentials are fetched first. Raises StorageFailed, also for a folder, which has no URLs.
        """
        _check(key)
        if not isinstance(self._store, S3Store | GCSStore | AzureStore):
            raise StorageFailed("This file store has no addresses of its own. Use s3://, gs:// or az://.")
        with self._explained("sign the address of", missing=False):
            return await obstore.sign_async(self._store, "GET", key, timedelta(seconds=seconds))

    async def delete(self, key: str) -> None:
        """Forget `key`; no error when there is none."""
        _check(key)
        with contextlib.suppress(NotFound), self._explained("delete"):
            await obstore.delete_async(self._store, key)

    async def delete_prefix(self, prefix: str) -> None:
        """Forget every key under the folder `prefix` (`results/7` takes `results/7/a`, not `results/77`)."""
        _check(prefix)
        with self._explained("delete"):
            if not self.is_there:
                raise OSError("no store to delete from")
            async for page in self._pages(prefix):
                keys = [meta["path"] for meta in page]
                try:
                    await obstore.delete_async(self._store, keys)
                except FileNotFoundError:  # someone deletes along with us; a folder then gives up half-way
                    for key in keys:
                        await self.delete(key)

    async def list(self, prefix: str = "") -> AsyncIterator[Stored]:
        """Every key under the folder `prefix`, or all, in no particular order; what changes meanwhile may be missed."""
        if prefix:
            _check(prefix)
        with self._explained("list"):
            async for page in self._pages(prefix):
                for meta in page:
                    if not meta["path"].startswith(f"{STAGING}/"):
                        yield _stored(meta)

    def _pages(self, prefix: str) -> AsyncIterator[Sequence[ObjectMeta]]:
        return obstore.list(self._store, prefix or None, chunk_size=1000)

    @contextlib.contextmanager
    def _explained(self, action: str, *, missing: bool = True) -> Iterator[None]:
        """Turns the store's errors into ours.

        missing: a file that is not there is the key's fault, not the store's, as long as the store is there.
        """
        try:
            yield
        except (BaseError, OSError) as error:
            if missing and isinstance(error, FileNotFoundError) and self.is_there:
                raise NotFound("The file does not exist or was deleted. Check its address.") from error
            raise StorageFailed(f"The file store could not {action} a file. Try again later.") from error

    async def check(self) -> None:
        """Readiness: keeps, reads back and deletes a small file; raises StorageFailed."""
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


def _stored(meta: ObjectMeta) -> Stored:
    return Stored(key=meta["path"], size=meta["size"], etag=meta["e_tag"], modified=meta["last_modified"])


def _write(folder: Path, key: str, data: bytes) -> None:
    """Write aside, sync, rename into place, sync the directories: complete and durable, or absent.

    Raises FileNotFoundError exactly if there is no `.staging`.
    """
    written, target = f"{folder}/{STAGING}/{uuid4().hex}", f"{folder}/{key}"
    descriptor = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            content = memoryview(data)
            while content:
                content = content[os.write(descriptor, content) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        _rename(written, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(written).unlink()
        raise
    directory = key
    while directory:
        directory = directory.rpartition("/")[0]
        _sync(f"{folder}/{directory}")


def _rename(written: str, target: str) -> None:
    """Rename, creating the directories on the way, which a `delete` may remove again while they are empty."""
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError):
            os.replace(written, target)  # noqa: PTH105 - for every picture: no path objects
            return
        # mkdir says that the directory exists when it vanishes after it was found there.
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            Path(target).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    raise OSError(f"the directory of {target} keeps vanishing, or is none")


def _sync(directory: str) -> None:
    """Make the directory's entries durable; a directory that is gone has none."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
