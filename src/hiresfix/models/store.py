"""Store of the operator's weight files: what can be pulled, what is installed, and pulling, adding and checking files.

A folder written by diffusers or by our training counts as one file.

Guarantees:

- An installed file was complete when it arrived and matched the SHA-256 in its record.
- An interrupted pull resumes and never mixes two versions of a file.
- An unknown SHA-256 is recorded at the first pull and required from then on.
- Files are fetched only by name, from the origin in the lists.

This module does not import the engine; torch is needed only to read pickles (the caller passes the reader). Several
processes may use one store.
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
from hiresfix.models.weight_files import OnBytesRead, OnTransfer, TensorShapes, WeightKind
from hiresfix.paths import home

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256_DIGITS = re.compile(r"[0-9a-f]{10,64}")
_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedModel:
    """Entry of a list: a file that can be pulled.

    `bytes` and `about` (approximate) are sizes in bytes. `sha256` has 64 hexadecimal digits, or at least the first ten.
    `commercial` is None if the terms could not be verified.
    """

    name: str
    kind: WeightKind
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
class InstalledModel:
    """Installed file, as described by the record next to it."""

    name: str
    kind: WeightKind
    path: Path
    sha256: str
    bytes: int
    licence: str
    origin: str
    commercial: bool | None


class ModelStore:
    """Folder of weight files with one record (`NAME.json`) next to each, and the lists of what can be pulled."""

    def __init__(self, folder: Path, listed: Mapping[str, ListedModel]) -> None:
        self.folder = folder
        self.listed = listed

    @classmethod
    def at_home(cls) -> ModelStore:
        """Return the store of this installation.

        Raises:
            ConfigurationError: the operator's list is invalid.
        """
        shipped = Path(__file__).with_name("models.toml")
        own = home() / "models.toml"
        listed = _read_list(shipped) | (_read_list(own) if own.is_file() else {})
        return cls(home() / "models", listed)

    def installed(self) -> dict[str, InstalledModel]:
        """Return every model with a record, by name; its file may have been deleted since."""
        entries = (self._read_record(path) for path in sorted(self.folder.glob("[!.]*.json")))
        return {entry.name: entry for entry in entries}

    def locate(self, name: str, kind: WeightKind | None = None) -> InstalledModel:
        """Return the installed model with this name.

        Raises:
            WeightsError: it is not installed, or of another kind.
        """
        entry = self.installed().get(name)
        if entry is None or not entry.path.exists():
            hint = f"Fetch it: hiresfix models pull {name}" if name in self.listed else "See: hiresfix models list"
            raise WeightsError(f"The model {name} is not installed. {hint}")
        if kind not in (None, entry.kind):
            raise WeightsError(f"The model {name} is a {entry.kind}, not a {kind}. See: hiresfix models list")
        return entry

    def find_listed(self, name: str) -> ListedModel:
        if name not in self.listed:
            raise WeightsError(f"There is no model {name} to pull. See: hiresfix models list")
        return self.listed[name]

    def partial_bytes(self, model: ListedModel) -> int:
        """Return how many bytes an interrupted pull has left."""
        part = self._part(model)
        return part.stat().st_size if part.is_file() else 0

    def pull(self, model: ListedModel, report: OnTransfer = lambda *_: None) -> InstalledModel:
        """Fetch the file, or what is missing of it. The caller has shown the licence.

        Args:
            model: entry of a list.
            report: called with the bytes on disk and the total; may raise to stop.

        Raises:
            Unreachable: trying again can help.
            FetchError: the origin refuses.
            WeightsError: it is not the right file (nothing is kept), or the disk refuses.
        """
        from hiresfix.models import download  # here: the engine only locates files and must not load an HTTP client

        known = self.installed().get(model.name)
        if known is not None and known.path.exists():
            return known
        expected = model.sha256 or (known.sha256 if known else None)
        with _disk(self.folder), self._locked(model.name):
            part = self._part(model)
            download.fetch(model.url, part, trusted=expected is not None, report=report)
            sha256 = weight_files.digest(part)
            problem = _problem(model, part, sha256, expected)
            download.forget_version(part)
            if problem:
                part.unlink()
                raise WeightsError(f"{problem} The download was deleted. Check its origin: {model.origin}")
            return self._install(part, model, sha256)

    def add(
        self,
        path: Path,
        *,
        name: str,
        licence: str | None,
        commercial: bool | None,
        read_pickle: Callable[[Path], Any] | None = None,
    ) -> InstalledModel:
        """Copy a file or folder into the store (as hard links where the disk allows it).

        Args:
            path: a weight file, a model folder in diffusers' layout, or a checkpoint of our own training.
            name: a name of the lists, or a new one.
            licence: licence of the file; for a name of the lists, theirs is used.
            commercial: whether commercial use is allowed; likewise.
            read_pickle: loads a `.pth`, `.pt` or `.ckpt` file safely.

        Raises:
            WeightsError: the file cannot be used, or the name is taken.
        """
        model = self.listed.get(name)
        kind = _kind(path, read_pickle)
        if model is None:
            model = _own_model(path, name, kind, licence=licence, commercial=commercial)
        elif path.is_dir():
            raise WeightsError(f"{name} in the list is a file, but {path} is a folder. Choose another name for it.")
        else:
            model = replace(model, file=Path(model.file).stem + path.suffix)  # the format may differ
        if name in self.installed():
            raise WeightsError(f"A model {name} already exists. Remove it first: hiresfix models remove {name}")
        sha256 = weight_files.digest(path)
        problem = _problem(model, path, sha256, model.sha256, kind)
        if problem:
            raise WeightsError(f"{problem} Choose another name for it.")
        with _disk(self.folder), self._locked(name):
            copy = self.folder / f".{model.file}.{os.getpid()}.part"
            try:
                _link_or_copy(path.resolve(), copy)
                return self._install(copy, model, sha256)
            finally:
                _delete(copy)

    def remove(self, name: str) -> InstalledModel:
        """Delete an installed file and its record."""
        entry = self.installed().get(name)
        if entry is None:
            raise WeightsError(f"The model {name} is not installed. See: hiresfix models list")
        with _disk(self.folder):
            for path in (self._record(name), entry.path.with_name(f".{entry.path.name}.sha256"), entry.path):
                _delete(path)
        return entry

    def verify(self, entry: InstalledModel, on_read: OnBytesRead = lambda _: None) -> str | None:
        """Read the file again and return what is wrong with it, or None."""
        if not entry.path.exists():
            return f"{entry.path} is gone. Pull or add it again."
        if (
            weight_files.total_size(entry.path) != entry.bytes
            or weight_files.digest(entry.path, on_read) != entry.sha256
        ):
            return f"{entry.path.name} is not what was installed. Remove it, then pull or add it again."
        model = self.listed.get(entry.name)
        if model and not entry.sha256.startswith(model.sha256 or ""):
            return f"{entry.path.name} is not the file in the list. Remove it, then pull it again."
        weight_files.cache_digest(entry.path, entry.sha256)
        return None

    def _part(self, model: ListedModel) -> Path:
        return self.folder / f"{model.file}.part"

    def _record(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _read_record(self, path: Path) -> InstalledModel:
        try:
            values = json.loads(path.read_text())
            file = _plain_file_name(values.pop("file"))
            return InstalledModel(path=self.folder / file, **{**values, "kind": WeightKind(values["kind"])})
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise WeightsError(f"The record {path} is damaged. Delete it and add or pull the model again.") from error

    def _install(self, file: Path, model: ListedModel, sha256: str) -> InstalledModel:
        """Rename the file into place, then write its record; a file without a record does not count."""
        target = self.folder / model.file
        if any(entry.path == target and entry.name != model.name for entry in self.installed().values()):
            raise WeightsError(f"Another model already uses the file {target}. Remove that model first.")
        for part in weight_files.files_of(file):
            with part.open("rb") as opened:
                os.fsync(opened.fileno())
        if file.is_dir():
            _delete(target)  # left over: it has no record
        file.replace(target)
        entry = InstalledModel(
            path=target,
            sha256=sha256,
            bytes=weight_files.total_size(target),
            **{key: getattr(model, key) for key in ("name", "kind", "licence", "origin", "commercial")},
        )
        weight_files.cache_digest(target, sha256)
        record = {**asdict(entry), "file": target.name}
        del record["path"]
        weight_files.write_json(self._record(model.name), record)
        return entry

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Let one process at a time work on a name; the kernel releases the lock of a process that dies."""
        import fcntl

        with (self.folder / f".{name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise WeightsError(f"Another process is working on {name}. Wait until it has finished.") from error
            yield


@contextlib.contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """Create the folder, and turn errors of the disk into a WeightsError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise WeightsError(
            f"{error.filename or folder}: {error.strerror}. Check the disk and its permissions."
        ) from error


def _problem(
    model: ListedModel, path: Path, sha256: str, expected: str | None, kind: WeightKind | None = None
) -> str | None:
    """Return why the file does not match its entry, or None.

    Args:
        model: the entry.
        path: the file or folder.
        sha256: its digest.
        expected: the digest, or its first digits, that it must have; None if unknown.
        kind: kind of the file if the caller knows it. Without it the kind of a pickle is not checked; the code that
            loads it does.
    """
    if not sha256.startswith(expected or ""):
        return f"The file is not the known {model.name}: its SHA-256 is {sha256}, not {expected}."
    if kind is None and model.file.endswith(".safetensors"):
        kind, words = weight_files.describe(weight_files.read_header(path))
        if kind is None:
            return f"{model.name} seems to be {words}, not a {model.kind}."
    if kind not in (None, model.kind):
        return f"{model.name} seems to be a {kind}, not a {model.kind}."
    return None


def _own_model(path: Path, name: str, kind: WeightKind, *, licence: str | None, commercial: bool | None) -> ListedModel:
    """Return an entry for a file of the operator that is on no list."""
    if not _NAME.fullmatch(name) or find_weights(name):
        raise WeightsError(
            f"{name!r} cannot be a model's name. Use letters, digits, '.', '_' and '-', "
            "and not the name of a model that a package provides."
        )
    if licence is None or commercial is None:
        raise WeightsError("The licence of the file is not known. Give --licence and --commercial or --no-commercial.")
    return ListedModel(
        name=name,
        kind=kind,
        file=name if path.is_dir() else name + path.suffix,
        url="",
        origin="added by the operator",
        licence=licence,
        commercial=commercial,
    )


def _kind(path: Path, read_pickle: Callable[[Path], Any] | None) -> WeightKind:
    if path.is_dir():
        kind, words = weight_files.describe_folder(path)
        if kind is None:
            raise WeightsError(f"{path} seems to be {words}, which cannot be used here. Name the folder of a model.")
        return kind
    if not path.is_file():
        raise WeightsError(f"There is no file {path}. Check the name.")
    if path.suffix not in _SUFFIXES:
        raise WeightsError(f"{path.name} is not a weight file. Use one of {', '.join(_SUFFIXES)}.")
    if path.suffix == ".safetensors":
        shapes = weight_files.read_header(path)
    elif read_pickle:
        shapes = _tensor_shapes(read_pickle(path))
    else:
        raise WeightsError(f"{path.name} is a pickle, which cannot be read here. Use `hiresfix models add`.")
    kind, words = weight_files.describe(shapes)
    if kind is None:
        raise WeightsError(f"{path.name} seems to be {words}, which cannot be used here. Choose another file.")
    return kind


def _tensor_shapes(content: Any) -> TensorShapes:
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
        copy = target / file.relative_to(source)  # for a single file the relative path is "."
        copy.parent.mkdir(parents=True, exist_ok=True)
        original = file.resolve()
        try:
            copy.hardlink_to(original)
        except OSError:  # another disk, or one without hard links
            shutil.copyfile(original, copy)


def _delete(path: Path) -> None:
    """Delete a file or a folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _read_list(path: Path) -> dict[str, ListedModel]:
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8")).get("model", [])
        models = [_listed_model(entry) for entry in entries]
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise ConfigurationError(f"The list {path} is invalid: {error}. Correct it; models.toml shows how.") from error
    return {model.name: model for model in models}


def _listed_model(entry: Mapping[str, Any]) -> ListedModel:
    if not _NAME.fullmatch(entry["name"]):
        raise ValueError(f"{entry['name']!r} cannot be a name")
    if not entry["url"].startswith(("https://", "http://")) or not entry["file"].endswith(_SUFFIXES):
        raise ValueError(f"{entry['name']} needs an http URL and a file with one of {', '.join(_SUFFIXES)}")
    if not _SHA256_DIGITS.fullmatch(entry.get("sha256", "0" * 64)):
        raise ValueError(f"{entry['name']} needs a sha256 of 64 hexadecimal digits, or at least the first ten")
    return ListedModel(**{**entry, "kind": WeightKind(entry["kind"]), "file": _plain_file_name(entry["file"])})


def _plain_file_name(file: str) -> str:
    """Return the name; raise ValueError if it leaves its folder or is hidden."""
    if Path(file).name != file or file.startswith("."):
        raise ValueError(f"{file!r} is not a plain file name")
    return file
