"""The operator's weight files: which are on offer, which are here, fetching, adding and checking them.

A folder that diffusers, or our training, wrote counts as one file.
Guarantees: a file that the store calls installed was complete when it came and hashed to what its record says; a
pull that is cut off goes on where it stopped, and never mixes two versions of a file. A SHA-256 that nobody knew
before is recorded at the first pull and trusted from then on. Nothing is fetched but by name, from the origin the
lists name. Knows no engine: torch is asked only for what a pickle holds. Works beside other processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hiresfix.errors import ConfigurationError, WeightsError
from hiresfix.models import weight_files
from hiresfix.models.catalog import find_weights
from hiresfix.models.weight_files import Kind, Shapes
from hiresfix.paths import home

Report = Callable[[int, int | None], None]
"""Told the bytes that are there and, once known, how many there will be."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGITS = re.compile(r"[0-9a-f]{10,64}")
_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A file that can be pulled. `commercial` None: the terms could not be verified. Sizes are bytes.

    sha256: in hexadecimal digits, all 64 or the first ten or more.
    """

    name: str
    kind: Kind
    file: str
    url: str
    origin: str
    licence: str
    use: str = ""
    about: int | None = None
    bytes: int | None = None
    sha256: str | None = None
    commercial: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """A file that is here, as its record beside it says."""

    name: str
    kind: Kind
    path: Path
    sha256: str
    bytes: int
    licence: str
    origin: str
    commercial: bool | None


class Store:
    """A folder of weight files, with one record (`NAME.json`) beside each, and the lists of what can be pulled."""

    def __init__(self, folder: Path, offers: Mapping[str, Offer]) -> None:
        self.folder = folder
        self.offers = offers

    @classmethod
    def at_home(cls) -> Store:
        """The store of this installation. Raises ConfigurationError if the operator's list is wrong."""
        shipped = Path(__file__).with_name("models.toml")
        own = home() / "models.toml"
        offers = _read_list(shipped) | (_read_list(own) if own.is_file() else {})
        return cls(home() / "models", offers)

    def installed(self) -> dict[str, Installed]:
        """What has a record here, by name; the file itself may have been taken away since."""
        found = (self._read_record(path) for path in sorted(self.folder.glob("[!.]*.json")))
        return {entry.name: entry for entry in found}

    def locate(self, name: str, kind: Kind | None = None) -> Installed:
        """The installed file of this name. Raises WeightsError if it is not here, or of another kind."""
        entry = self.installed().get(name)
        if entry is None or not entry.path.exists():
            hint = f"Fetch it: hiresfix models pull {name}" if name in self.offers else "See: hiresfix models list"
            raise WeightsError(f"The model {name} is not installed. {hint}")
        if kind not in (None, entry.kind):
            raise WeightsError(f"The model {name} is a {entry.kind}, not a {kind}. See: hiresfix models list")
        return entry

    def offer(self, name: str) -> Offer:
        if name not in self.offers:
            raise WeightsError(f"There is no model {name} to pull. See: hiresfix models list")
        return self.offers[name]

    def begun(self, offer: Offer) -> int:
        """How many bytes of it an unfinished pull has left here."""
        part = self._part(offer)
        return part.stat().st_size if part.is_file() else 0

    def pull(self, offer: Offer, report: Report = lambda *_: None) -> Installed:
        """Fetch the file, or what is missing of it; the caller has shown the licence.

        Raises Unreachable where trying again can help, FetchError, or WeightsError for a file that is not the right
        one, of which nothing is kept.
        """
        from hiresfix.models import download  # here: the engine, which only looks files up, loads no HTTP client

        known = self.installed().get(offer.name)
        if known is not None and known.path.exists():
            return known
        expected = offer.sha256 or (known.sha256 if known else None)
        with _disk(self.folder), self._alone(offer.name):
            part = self._part(offer)
            download.fetch(offer.url, part, trusted=expected is not None, report=report)
            sha256 = weight_files.digest(part)
            problem = _problem(offer, part, sha256, expected)
            download.forget(part)
            if problem:
                part.unlink()
                raise WeightsError(f"{problem} It was thrown away; its origin is {offer.origin}.")
            return self._install(part, offer, sha256)

    def add(
        self,
        path: Path,
        *,
        name: str,
        licence: str | None,
        commercial: bool | None,
        read_pickle: Callable[[Path], Any] | None = None,
    ) -> Installed:
        """Take a copy of a file or folder (links where the disk allows it), under a name of the lists or a new one.

        A folder is a model as diffusers lays it out, or a checkpoint of our own training. For a name of the lists the
        licence is theirs. Raises WeightsError.
        """
        offer = self.offers.get(name)
        kind = _kind(path, read_pickle)
        if offer is None:
            offer = _own(path, name, kind, licence, commercial)
        elif path.is_dir():
            raise WeightsError(f"The list's {name} is a file, and {path} a folder. Choose another name for it.")
        else:
            offer = replace(offer, file=Path(offer.file).stem + path.suffix)  # in another format, perhaps
        if name in self.installed():
            raise WeightsError(f"There is a model {name} already. Take it out first: hiresfix models remove {name}")
        sha256 = weight_files.digest(path)
        problem = _problem(offer, path, sha256, offer.sha256, kind)
        if problem:
            raise WeightsError(f"{problem} Choose another name for it.")
        with _disk(self.folder), self._alone(name):
            copy = self.folder / f".{offer.file}.{os.getpid()}.part"
            try:
                _link_or_copy(path.resolve(), copy)
                return self._install(copy, offer, sha256)
            finally:
                _delete(copy)

    def remove(self, name: str) -> Installed:
        """Delete an installed file and its record."""
        entry = self.installed().get(name)
        if entry is None:
            raise WeightsError(f"The model {name} is not installed. See: hiresfix models list")
        with _disk(self.folder):
            for path in (self._record(name), entry.path.with_name(f".{entry.path.name}.sha256"), entry.path):
                _delete(path)
        return entry

    def verify(self, entry: Installed, read: weight_files.Read = lambda _: None) -> str | None:
        """Read the file once more; what is wrong with it, or None. `read` is told of each portion's bytes."""
        if not entry.path.exists():
            return f"{entry.path} is gone. Pull or add it again."
        if weight_files.size(entry.path) != entry.bytes or weight_files.digest(entry.path, read) != entry.sha256:
            return f"{entry.path.name} is not what was installed. Take it out and pull or add it again."
        offer = self.offers.get(entry.name)
        if offer and not entry.sha256.startswith(offer.sha256 or ""):
            return f"{entry.path.name} is not the file the list names. Take it out and pull it again."
        weight_files.remember(entry.path, entry.sha256)
        return None

    def _part(self, offer: Offer) -> Path:
        return self.folder / f"{offer.file}.part"

    def _record(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _read_record(self, path: Path) -> Installed:
        try:
            values = json.loads(path.read_text())
            file = _plain(values.pop("file"))
            return Installed(path=self.folder / file, **{**values, "kind": Kind(values["kind"])})
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise WeightsError(f"The record {path} is damaged. Delete it and add or pull the model again.") from error

    def _install(self, file: Path, offer: Offer, sha256: str) -> Installed:
        """The file under its name, then its record: without a record it is nothing."""
        target = self.folder / offer.file
        if any(entry.path == target and entry.name != offer.name for entry in self.installed().values()):
            raise WeightsError(f"Another model has the file {target} already. Take that out first.")
        for part in weight_files.files_of(file):
            with part.open("rb") as opened:
                os.fsync(opened.fileno())
        if file.is_dir():
            _delete(target)  # nobody's: it has no record
        file.replace(target)
        entry = Installed(
            path=target,
            sha256=sha256,
            bytes=weight_files.size(target),
            **{key: getattr(offer, key) for key in ("name", "kind", "licence", "origin", "commercial")},
        )
        weight_files.remember(target, sha256)
        record = {**asdict(entry), "file": target.name}
        del record["path"]
        weight_files.write(self._record(offer.name), record)
        return entry

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """One process at a time works on one name; the kernel frees the lock of one that dies."""
        import fcntl

        with (self.folder / f".{name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise WeightsError(f"Another process is at work on {name}. Wait until it has finished.") from error
            yield


@contextlib.contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """What the disk refuses is a WeightsError that says what."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise WeightsError(
            f"{error.filename or folder}: {error.strerror}. Check the disk and its permissions."
        ) from error


def _problem(offer: Offer, path: Path, sha256: str, expected: str | None, kind: Kind | None = None) -> str | None:
    """Why this is not the file of the offer; a pickle's kind is left to whoever loads it, unless the caller knows."""
    if not sha256.startswith(expected or ""):
        return f"{offer.name} is not the file that is known by that name: its SHA-256 is {sha256}, not {expected}."
    if kind is None and offer.file.endswith(".safetensors"):
        kind, words = weight_files.describe(weight_files.read_header(path))
        if kind is None:
            return f"{offer.name} seems to be {words}, not a {offer.kind}."
    if kind not in (None, offer.kind):
        return f"{offer.name} seems to be a {kind}, not a {offer.kind}."
    return None


def _own(path: Path, name: str, kind: Kind, licence: str | None, commercial: bool | None) -> Offer:
    """An operator's own file as if it were on a list."""
    if not _NAME.fullmatch(name) or find_weights(name):
        raise WeightsError(
            f"{name!r} cannot be a model's name. Use letters, digits, '.', '_' and '-', and none that a package brings."
        )
    if licence is None or commercial is None:
        raise WeightsError("Say the file's licence and whether it allows commercial use; you know, the file does not.")
    return Offer(
        name=name,
        kind=kind,
        file=name if path.is_dir() else name + path.suffix,
        url="",
        origin="added by the operator",
        licence=licence,
        commercial=commercial,
    )


def _kind(path: Path, read_pickle: Callable[[Path], Any] | None) -> Kind:
    if path.is_dir():
        kind, words = weight_files.describe_folder(path)
        if kind is None:
            raise WeightsError(f"{path} seems to be {words}, which cannot be used here. Name a model's own folder.")
        return kind
    if not path.is_file():
        raise WeightsError(f"There is no file {path}. Check the name.")
    if path.suffix not in _SUFFIXES:
        raise WeightsError(f"{path.name} is no weight file. Use one of {', '.join(_SUFFIXES)}.")
    if path.suffix == ".safetensors":
        shapes = weight_files.read_header(path)
    elif read_pickle:
        shapes = _pickled(read_pickle(path))
    else:
        raise WeightsError(f"{path.name} is a pickle, which cannot be read here. Use `hiresfix models add`.")
    kind, words = weight_files.describe(shapes)
    if kind is None:
        raise WeightsError(f"{path.name} seems to be {words}, which cannot be used here. Choose another file.")
    return kind


def _pickled(content: Any) -> Shapes:
    """Return names and shapes of the tensors in a pickle's content, as deep as any training script nests them."""
    shapes: dict[str, tuple[int, ...]] = {}

    def walk(value: Any, name: str, depth: int) -> None:
        if isinstance(value, Mapping) and depth < 4:
            for key, inner in value.items():
                walk(inner, f"{name}.{key}" if name == "string_to_param" else str(key), depth + 1)
        elif hasattr(value, "shape"):
            shapes[name] = tuple(value.shape)

    walk(content, "", 0)
    return shapes


def _link_or_copy(source: Path, target: Path) -> None:
    _delete(target)
    for file in weight_files.files_of(source):
        own = target / file.relative_to(source)  # of a file its own name: "."
        own.parent.mkdir(parents=True, exist_ok=True)
        _link_or_copy_file(file.resolve(), own)


def _delete(path: Path) -> None:
    """A file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _link_or_copy_file(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)


def _read_list(path: Path) -> dict[str, Offer]:
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8")).get("model", [])
        offers = [_offer(entry) for entry in entries]
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise ConfigurationError(f"The list {path} is wrong: {error}. Correct it; models.toml shows how.") from error
    return {offer.name: offer for offer in offers}


def _offer(entry: Mapping[str, Any]) -> Offer:
    if not _NAME.fullmatch(entry["name"]):
        raise ValueError(f"{entry['name']!r} cannot be a name")
    if not entry["url"].startswith(("https://", "http://")) or not entry["file"].endswith(_SUFFIXES):
        raise ValueError(f"{entry['name']} needs an http URL and a file with one of {', '.join(_SUFFIXES)}")
    if not _DIGITS.fullmatch(entry.get("sha256", "0" * 64)):
        raise ValueError(f"{entry['name']} needs a sha256 of 64 hexadecimal digits, or the first ten or more")
    return Offer(**{**entry, "kind": Kind(entry["kind"]), "file": _plain(entry["file"])})


def _plain(file: str) -> str:
    """A file name that stays in its folder."""
    if Path(file).name != file or file.startswith("."):
        raise ValueError(f"{file!r} is no plain file name")
    return file
