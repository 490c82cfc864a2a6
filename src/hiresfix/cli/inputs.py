"""What `hiresfix upscale` makes of the names it is given: which files are read and which written. Enlarges nothing."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import typer

from hiresfix.files import FORMAT_OF_SUFFIX, SUFFIXES


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """One file to read, one to write."""

    source: Path
    target: Path


def output_format(output: Path | None, wanted: str | None) -> str | None:
    """The format that the output's name says, which must not contradict the one wanted."""
    suffix = output.suffix.lower() if output is not None and not output.is_dir() else ""
    named = FORMAT_OF_SUFFIX.get(suffix)
    if suffix in SUFFIXES and named is None:
        raise typer.BadParameter(f"Cannot write {suffix}; use .png, .jpg or .webp.", param_hint="--output")
    if named and wanted and named != FORMAT_OF_SUFFIX.get(f".{wanted.lower()}", wanted):
        raise typer.BadParameter(f"{wanted} does not go into a file called {suffix}.", param_hint="--format")
    return wanted or named


def expanded(inputs: list[Path]) -> list[Path]:
    """Patterns as the files they match, for shells that leave them alone; a name that exists is no pattern."""
    found: list[Path] = []
    for path in (path.expanduser() for path in inputs):
        if path.exists() or not glob.has_magic(str(path)):
            found.append(path)
            continue
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207  # absolute too
        if not matches:
            raise typer.BadParameter(f"Nothing matches {path}.", param_hint="IN...")
        found += [match for match in matches if match.suffix.lower() in SUFFIXES and match.is_file()]
    return found


def errands(
    inputs: list[Path], output: Path | None, *, scale: int, file_format: str, origin: Callable[[Path], Path | None]
) -> list[Errand]:
    """What to read and write; refuses, before any work, what would overwrite an input.

    A file named twice is read once. What was made of another input is no input (`origin` tells of what, if we made it),
    nor is what is found in a folder under the name of a result.
    """
    named = [path for path in inputs if not path.is_dir()]
    found = [source for path in inputs if path.is_dir() for source in _found_in(path)]
    sources = list({source.resolve(): source for source in [*map(_existing, named), *found]}.values())
    into_file = output is not None and output.suffix.lower() in FORMAT_OF_SUFFIX and not output.is_dir()
    if into_file and len(sources) > 1:
        raise typer.BadParameter(f"{len(sources)} pictures need a folder, not one file.", param_hint="--output")
    stems = Counter((_folder(source, output), source.stem) for source in sources)

    def target(source: Path) -> Path:
        if output is not None and into_file:
            return output
        folder = _folder(source, output)
        # a.gif and a.png in one folder: their results are told apart by the whole name.
        stem = source.stem if stems[folder, source.stem] == 1 else source.name
        return folder / f"{stem}-{scale}x.{file_format}"

    targets = {source: target(source) for source in sources}
    results = {path.resolve() for path in targets.values()}
    originals = {source.resolve() for source in sources}
    listed = [
        Errand(source=source, target=targets[source])
        for source in sources
        if origin(source) not in originals and (source in named or source.resolve() not in results)
    ]
    for errand in listed:
        if errand.source.resolve() in results:
            raise typer.BadParameter(f"A result would overwrite the input {errand.source}.", param_hint="--output")
    if not listed:
        raise typer.BadParameter(
            f"No pictures in {', '.join(map(str, inputs))} (folders below it are not searched).", param_hint="IN..."
        )
    return listed


def _folder(source: Path, output: Path | None) -> Path:
    return output or source.parent


def pictures_in(folder: Path) -> list[Path]:
    """Hidden files are none: programs keep there what is not finished, or not a picture. Raises OSError."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _found_in(folder: Path) -> list[Path]:
    try:
        return pictures_in(folder)
    except OSError as error:
        raise typer.BadParameter(f"{folder} cannot be read: {error.strerror}.", param_hint="IN...") from error


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise typer.BadParameter(f"{path} does not exist.", param_hint="IN...")
    return path
