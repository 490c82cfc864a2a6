"""`hiresfix upscale`: enlarge files here and now, without a server."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hiresfix.catalog import MODELS, Model, find_model
from hiresfix.errors import HiresfixError
from hiresfix.recipe import MAX_SEED, Recipe

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from hiresfix.engine.upscaler import Upscaler
    from hiresfix.images import Limits

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".avif", ".heic", ".heif"})
_FORMAT_OF_SUFFIX = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """One file to read, one to write."""

    source: Path
    target: Path


def upscale(
    inputs: Annotated[list[Path], typer.Argument(metavar="IN...", help="Pictures, or folders of them.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File for one picture, folder for several. Default: beside the input."),
    ] = None,
    model: Annotated[str, typer.Option(help=f"One of {', '.join(model.id for model in MODELS)}.")] = MODELS[0].id,
    preset: Annotated[
        str, typer.Option(help="clarity-upscale only: offline, clarity or clarity-classic (see `hiresfix models`).")
    ] = "",
    scale: Annotated[str | None, typer.Option(help="1, 2, 4 or 8; default 2.")] = None,
    creativity: Annotated[str | None, typer.Option(help="0 to 1: how much detail may be invented.")] = None,
    resemblance: Annotated[str | None, typer.Option(help="0 to 3: how tightly to follow the input.")] = None,
    dynamic: Annotated[str | None, typer.Option(help="1 to 50: contrast and crispness.")] = None,
    steps: Annotated[str | None, typer.Option(help="1 to 100 refinement steps.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What kind of detail to add.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to steer away from.")] = None,
    sharpen: Annotated[str | None, typer.Option(help="0 to 10; 0 is off.")] = None,
    content: Annotated[str | None, typer.Option(help="photo or anime (faithful-upscale).")] = None,
    seed: Annotated[str | None, typer.Option(help="Makes the same picture again; default random.")] = None,
    output_format: Annotated[
        str | None, typer.Option("--format", help="png, jpg or webp; default: that of -o, else png.")
    ] = None,
    strip: Annotated[bool, typer.Option("--strip", help="Leave EXIF and XMP out of the result.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
) -> None:
    """Enlarge pictures on this machine."""
    output_format = _format(output, output_format)
    given = {
        "scale_factor": scale,
        "creativity": creativity,
        "resemblance": resemblance,
        "dynamic": dynamic,
        "num_inference_steps": steps,
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "sharpen": sharpen,
        "content": content,
        "seed": seed,
        "output_format": output_format,
    }
    chosen = _model(model)
    if preset and preset not in chosen.presets:
        offered = ", ".join(chosen.presets) or "none"
        raise typer.BadParameter(f"{chosen.id} has these: {offered}", param_hint="--preset")
    recipe = _recipe(chosen, {name: value for name, value in given.items() if value is not None}, preset)
    errands = _errands(inputs, output, recipe)
    failures = _run(errands, recipe, strip=strip, device=device)
    if failures:
        raise typer.Exit(1)


def _model(name: str) -> Model:
    found = find_model(name)
    if found is None:
        raise typer.BadParameter(f"Expected one of {', '.join(model.id for model in MODELS)}", param_hint="--model")
    return found


_OPTION = {"scale_factor": "scale", "num_inference_steps": "steps", "output_format": "format"}


def _recipe(model: Model, given: dict[str, str], preset: str) -> Recipe:
    """The same parameters, bounds and messages as the API's."""
    from hiresfix.wire.params import canonical
    from hiresfix.wire.problems import Wrong

    values: dict[str, Any] = {}
    params = {param.name: param for param in model.params}
    for name, raw in given.items():
        option = "--" + _OPTION.get(name, name).replace("_", "-")
        if name not in params:
            others = [other.id for other in MODELS if any(param.name == name for param in other.params)]
            raise typer.BadParameter(
                f"{model.id} has no such parameter; use --model {' or '.join(others)}", param_hint=option
            )
        try:
            values[name] = canonical(params[name], raw)
        except Wrong as error:
            raise typer.BadParameter(str(error), param_hint=option) from error
    return model.recipe(values, seed=secrets.randbelow(MAX_SEED + 1), preset=preset)


def _format(output: Path | None, wanted: str | None) -> str | None:
    """The format that the output's name says, which must not contradict the one wanted."""
    suffix = output.suffix.lower() if output is not None and not output.is_dir() else ""
    named = _FORMAT_OF_SUFFIX.get(suffix)
    if suffix in SUFFIXES and named is None:
        raise typer.BadParameter(f"Cannot write {suffix}; use .png, .jpg or .webp.", param_hint="--output")
    if named and wanted and named != _FORMAT_OF_SUFFIX.get(f".{wanted.lower()}", wanted):
        raise typer.BadParameter(f"{wanted} does not go into a file called {suffix}.", param_hint="--format")
    return wanted or named


def _errands(inputs: list[Path], output: Path | None, recipe: Recipe) -> list[Errand]:
    """What to read and write; refuses, before any work, what would overwrite an input.

    A file named twice is read once, a result found in a folder beside its source is no input, and an older result
    is made anew.
    """
    named = [path for path in inputs if not path.is_dir()]
    found = [source for path in inputs if path.is_dir() for source in _pictures_in(path)]
    sources = list({source.resolve(): source for source in [*map(_existing, named), *found]}.values())
    into_file = output is not None and output.suffix.lower() in _FORMAT_OF_SUFFIX and not output.is_dir()
    if into_file and len(sources) > 1:
        raise typer.BadParameter(f"{len(sources)} pictures need a folder, not one file.", param_hint="--output")
    stems = Counter((_folder(source, output), source.stem) for source in sources)

    def target(source: Path) -> Path:
        if output is not None and into_file:
            return output
        folder = _folder(source, output)
        # a.gif and a.png in one folder: their results are told apart by the whole name.
        stem = source.stem if stems[folder, source.stem] == 1 else source.name
        return folder / f"{stem}-{recipe.scale}x.{recipe.output_format}"

    targets = {source: target(source) for source in sources}
    results = {path.resolve() for path in targets.values()}
    errands = [
        Errand(source=source, target=targets[source])
        for source in sources
        if source in named or source.resolve() not in results
    ]
    for errand in errands:
        if errand.source.resolve() in results:
            raise typer.BadParameter(f"A result would overwrite the input {errand.source}.", param_hint="--output")
    if not errands:
        raise typer.BadParameter(
            f"No pictures in {', '.join(map(str, inputs))} (folders below it are not searched).", param_hint="IN..."
        )
    return errands


def _folder(source: Path, output: Path | None) -> Path:
    return output or source.parent


def _pictures_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise typer.BadParameter(f"{path} does not exist.", param_hint="IN...")
    return path


def _run(errands: list[Errand], recipe: Recipe, *, strip: bool, device: str) -> int:
    """Enlarge one after the other with a progress bar; returns how many failed.

    For people on standard error; where standard output is a pipe or a file, the results' names go there.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from hiresfix.engine.upscaler import Upscaler
    from hiresfix.images import Limits

    # File names may look like markup, and are not.
    console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    bar = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    upscaler, limits, failures, told = Upscaler(device), Limits(), 0, set[str]()
    with Progress(*bar, console=console, transient=True, disable=not console.is_terminal) as progress:
        for errand in errands:
            task = progress.add_task(errand.source.name, total=1.0)
            started = time.perf_counter()
            try:
                done = _enlarge(errand, recipe, upscaler, limits, strip, partial(_show, progress, task))
            except (HiresfixError, OSError) as error:
                failures += 1
                console.print(f"{errand.source}: {error}", style="red")
            else:
                console.print(f"{errand.target}  {done.size}, {time.perf_counter() - started:.1f} s")
                if not sys.stdout.isatty():
                    typer.echo(errand.target)
                for note in done.notes:
                    if note not in told:
                        console.print(f"  note: {note}", style="dim")
                        told.add(note)
            progress.remove_task(task)
    return failures


def _show(progress: Progress, task: TaskID, fraction: float) -> None:
    progress.update(task, completed=fraction)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What to say about a result."""

    size: str
    notes: tuple[str, ...]


def _enlarge(
    errand: Errand, recipe: Recipe, upscaler: Upscaler, limits: Limits, strip: bool, report: Callable[[float], None]
) -> Done:
    """Read, enlarge, write. A failure leaves no file behind."""
    from hiresfix import images

    data = errand.source.read_bytes()
    header = images.read_header(data, limits)
    images.check_output(header, recipe.scale, limits)
    images.check_format(header.width * recipe.scale, header.height * recipe.scale, recipe.output_format)
    upscaled = upscaler.run(images.decode(data, limits), recipe, report)
    encoded = images.encode(upscaled.picture, recipe.output_format, keep_metadata=not strip)
    errand.target.parent.mkdir(parents=True, exist_ok=True)
    partial_file = errand.target.with_name(f".{errand.target.name}.{os.getpid()}.part")
    try:
        partial_file.write_bytes(encoded.data)
        partial_file.replace(errand.target)
    finally:
        partial_file.unlink(missing_ok=True)
    return Done(
        size=f"{header.width}x{header.height} -> {encoded.width}x{encoded.height}, seed {recipe.seed}",
        notes=(*upscaled.metadata["warnings"], *upscaled.picture.notes, *encoded.notes),
    )
