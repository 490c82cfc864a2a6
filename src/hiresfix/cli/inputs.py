"""Plan of `hiresfix upscale`: which files are read and which are written. Upscales nothing."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import typer

from hiresfix.files import FORMAT_OF_SUFFIX, SUFFIXES


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscaleTask:
    """One file to read and one to write."""

    source: Path
    target: Path


def output_format(output: Path | None, requested: str | None) -> str | None:
    """Return the format of the output's suffix, else the requested one. Refuses a contradiction."""
    suffix = output.suffix.lower() if output is not None and not output.is_dir() else ""
    suffix_format = FORMAT_OF_SUFFIX.get(suffix)
    if suffix in SUFFIXES and suffix_format is None:
        raise typer.BadParameter(f"Cannot write {suffix}; use .png, .jpg or .webp.", param_hint="--output")
    if suffix_format and requested and suffix_format != FORMAT_OF_SUFFIX.get(f".{requested.lower()}", requested):
        raise typer.BadParameter(
            f"The format {requested} does not fit a file called {suffix}. Change one of the two.",
            param_hint="--format",
        )
    return requested or suffix_format


def expand_patterns(inputs: list[Path]) -> list[Path]:
    """Replace patterns by the files they match, for shells that do not. An existing name is not a pattern."""
    paths: list[Path] = []
    for path in (path.expanduser() for path in inputs):
        if path.exists() or not glob.has_magic(str(path)):
            paths.append(path)
            continue
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207  # absolute too
        if not matches:
            raise typer.BadParameter(f"Nothing matches {path}. Check the pattern.", param_hint="IN...")
        paths += [match for match in matches if match.suffix.lower() in SUFFIXES and match.is_file()]
    return paths


def plan_tasks(
    inputs: list[Path], output: Path | None, *, scale: int, file_format: str, source_of: Callable[[Path], Path | None]
) -> list[UpscaleTask]:
    """Return what to read and write. Refuses to overwrite an input, before any work.

    A file named twice is read once. Skipped are results of other inputs, and files in a folder that have the name of a
    result.

    Args:
        inputs: files and folders.
        output: a file, a folder, or None for "beside the input".
        scale: for the names of results in a folder.
        file_format: suffix of results in a folder, without the dot.
        source_of: returns the source of a file that an earlier run made, else None.
    """
    named = [path for path in inputs if not path.is_dir()]
    listed = [source for path in inputs if path.is_dir() for source in _list_folder(path)]
    sources = list({source.resolve(): source for source in [*map(_require_file, named), *listed]}.values())
    into_file = output is not None and output.suffix.lower() in FORMAT_OF_SUFFIX and not output.is_dir()
    if into_file and len(sources) > 1:
        raise typer.BadParameter(f"{len(sources)} images need a folder, not one file.", param_hint="--output")
    stems = Counter((output or source.parent, source.stem) for source in sources)

    def target(source: Path) -> Path:
        if output is not None and into_file:
            return output
        folder = output or source.parent
        # For a.gif and a.png in one folder, the whole name tells the results apart.
        stem = source.stem if stems[folder, source.stem] == 1 else source.name
        return folder / f"{stem}-{scale}x.{file_format}"

    targets = {source: target(source) for source in sources}
    results = {path.resolve() for path in targets.values()}
    originals = {source.resolve() for source in sources}
    tasks = [
        UpscaleTask(source=source, target=targets[source])
        for source in sources
        if source_of(source) not in originals and (source in named or source.resolve() not in results)
    ]
    for task in tasks:
        if task.source.resolve() in results:
            raise typer.BadParameter(
                f"A result would overwrite the input {task.source}. Use another output.", param_hint="--output"
            )
    if not tasks:
        raise typer.BadParameter(
            f"No images in {', '.join(map(str, inputs))} (subfolders are not searched).", param_hint="IN..."
        )
    return tasks


def images_in(folder: Path) -> list[Path]:
    """List the images of a folder. Hidden files are often unfinished or not images, so skip them. Raises OSError."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _list_folder(folder: Path) -> list[Path]:
    try:
        return images_in(folder)
    except OSError as error:
        raise typer.BadParameter(f"{folder} cannot be read: {error.strerror}.", param_hint="IN...") from error


def _require_file(path: Path) -> Path:
    if not path.is_file():
        raise typer.BadParameter(f"{path} does not exist. Check the name.", param_hint="IN...")
    return path
