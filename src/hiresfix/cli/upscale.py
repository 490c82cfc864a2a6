"""`hiresfix upscale`: enlarge files here and now, without a server."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hiresfix.catalog import MODELS, Model, find_model
from hiresfix.errors import HiresfixError
from hiresfix.recipe import MAX_SEED, Recipe

if TYPE_CHECKING:
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
    if output_format is None and output is not None:
        output_format = _FORMAT_OF_SUFFIX.get(output.suffix.lower())
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
    recipe = _recipe(_model(model), {name: value for name, value in given.items() if value is not None})
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


def _recipe(model: Model, given: dict[str, str]) -> Recipe:
    """The same parameters, bounds and messages as the API's."""
    from hiresfix.wire.params import canonical
    from hiresfix.wire.problems import Wrong

    values: dict[str, Any] = {}
    params = {param.name: param for param in model.params}
    for name, raw in given.items():
        option = "--" + _OPTION.get(name, name).replace("_", "-")
        if name not in params:
            raise typer.BadParameter(f"{model.id} has no such parameter", param_hint=option)
        try:
            values[name] = canonical(params[name], raw)
        except Wrong as error:
            raise typer.BadParameter(str(error), param_hint=option) from error
    return model.recipe(values, seed=secrets.randbelow(MAX_SEED + 1))


def _errands(inputs: list[Path], output: Path | None, recipe: Recipe) -> list[Errand]:
    """What to read and write; refuses, before any work, what would overwrite an input or another result."""
    sources = [source for path in inputs for source in _sources(path)]
    if not sources:
        raise typer.BadParameter("No pictures found there.", param_hint="IN...")
    into_file = output is not None and output.suffix.lower() in _FORMAT_OF_SUFFIX and not output.is_dir()
    if into_file and len(sources) > 1:
        raise typer.BadParameter(f"{len(sources)} pictures need a folder, not one file.", param_hint="--output")
    errands = [Errand(source=source, target=_target(source, output, into_file, recipe)) for source in sources]
    taken = {source.resolve(): source for source in sources}
    for errand in errands:
        clash = taken.get(errand.target.resolve())
        if clash is not None:
            raise typer.BadParameter(f"{errand.target} would overwrite {clash}.", param_hint="--output")
        taken[errand.target.resolve()] = errand.source
    return errands


def _sources(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    elif path.is_file():
        yield path
    else:
        raise typer.BadParameter(f"{path} does not exist.", param_hint="IN...")


def _target(source: Path, output: Path | None, into_file: bool, recipe: Recipe) -> Path:
    if output is not None and into_file:
        return output
    return (output or source.parent) / f"{source.stem}-{recipe.scale}x.{recipe.output_format}"


def _run(errands: list[Errand], recipe: Recipe, *, strip: bool, device: str) -> int:
    """Enlarge one after the other with a progress bar; returns how many failed."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from hiresfix.engine.upscaler import Upscaler
    from hiresfix.images import Limits

    console = Console(stderr=True)
    upscaler, limits, failures = Upscaler(device), Limits(), 0
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        for errand in errands:
            task = progress.add_task(errand.source.name, total=1.0)
            started = time.perf_counter()
            try:
                said = _enlarge(
                    errand, recipe, upscaler, limits, strip, lambda done, t=task: progress.update(t, completed=done)
                )
            except (HiresfixError, OSError) as error:
                failures += 1
                console.print(f"[red]{errand.source}: {error}", soft_wrap=True)
            else:
                console.print(f"{errand.target}  {said}, {time.perf_counter() - started:.1f} s", soft_wrap=True)
            progress.remove_task(task)
    return failures


def _enlarge(errand: Errand, recipe: Recipe, upscaler: Upscaler, limits: Limits, strip: bool, report: Any) -> str:
    """Read, enlarge, write; returns what to say about the result. A failure leaves no file behind."""
    from hiresfix import images

    data = errand.source.read_bytes()
    header = images.read_header(data, limits)
    images.check_output(header, recipe.scale, limits)
    images.check_format(header.width * recipe.scale, header.height * recipe.scale, recipe.output_format)
    upscaled = upscaler.run(images.decode(data, limits), recipe, report)
    encoded = images.encode(upscaled.picture, recipe.output_format, keep_metadata=not strip)
    errand.target.parent.mkdir(parents=True, exist_ok=True)
    partial = errand.target.with_name(f".{errand.target.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(encoded.data)
        partial.replace(errand.target)
    finally:
        partial.unlink(missing_ok=True)
    return f"{header.width}x{header.height} -> {encoded.width}x{encoded.height}, seed {recipe.seed}"
