"""`hiresfix upscale`: upscale files with the engine on this machine or with a server, by the same options."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from hiresfix.cli import inputs as planning
from hiresfix.cli import resume_log
from hiresfix.cli.backends import Backend, LocalBackend, RemoteBackend
from hiresfix.cli.batch import Batch
from hiresfix.cli.inputs import UpscaleTask
from hiresfix.cli.resume_log import ResumeLog
from hiresfix.errors import InvalidRequest
from hiresfix.files import SUFFIXES
from hiresfix.models import presets
from hiresfix.models.catalog import MODELS, CatalogModel, find_model
from hiresfix.models.param_help import find_param, help_text, range_text
from hiresfix.paths import home
from hiresfix.recipe import Recipe

WATCH_SECONDS = 1.0
"""Pause between two looks at a watched folder. A file that two looks find unchanged is complete."""
RETRY_SECONDS = 30.0
"""While watching, pause before images are tried again that a busy or unreachable server did not take."""

_FORMAT = find_param("output_format")
_MODEL_NAMES = ", ".join(model.id for model in MODELS)
_PRESET_NAMES = ", ".join(MODELS[0].presets)


def _parameter(name: str) -> Any:
    """Return the option of a parameter, with range, default and help from the catalog."""
    return typer.Option(help=help_text(find_param(name)))


def upscale(
    inputs: Annotated[
        list[Path] | None, typer.Argument(metavar="IN...", help="Images, folders of images, or patterns in quotes.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File for one image, folder for several. Default: next to the input."),
    ] = None,
    model: Annotated[str, typer.Option(help=f"One of {_MODEL_NAMES}.")] = MODELS[0].id,
    preset: Annotated[
        str,
        typer.Option(
            help=f"On this machine only, for {MODELS[0].id}: {_PRESET_NAMES} or one of your own (presets.toml)."
        ),
    ] = "",
    scale: Annotated[str | None, _parameter("scale_factor")] = None,
    creativity: Annotated[str | None, _parameter("creativity")] = None,
    resemblance: Annotated[str | None, _parameter("resemblance")] = None,
    dynamic: Annotated[str | None, _parameter("dynamic")] = None,
    steps: Annotated[str | None, _parameter("num_inference_steps")] = None,
    prompt: Annotated[str | None, _parameter("prompt")] = None,
    negative_prompt: Annotated[str | None, _parameter("negative_prompt")] = None,
    sharpen: Annotated[str | None, _parameter("sharpen")] = None,
    content: Annotated[str | None, _parameter("content")] = None,
    seed: Annotated[str | None, _parameter("seed")] = None,
    output_format: Annotated[
        str | None,
        typer.Option("--format", help=f"{range_text(_FORMAT)} (default: that of --output, else {_FORMAT.default})."),
    ] = None,
    strip: Annotated[
        bool, typer.Option("--strip", help="Leave EXIF and XMP out of the result. On this machine only.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps. On this machine only.")] = "auto",
    remote: Annotated[
        bool | None,
        typer.Option(
            "--remote/--local",
            help="On the server at HIRESFIX_URL, or on this machine. Default: remote if that is set.",
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Images at the same time. With --remote only.")] = 1,
    watch: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Upscale new images in this folder, until interrupted.")
    ] = None,
    again: Annotated[
        bool,
        typer.Option(
            "--again", help="Redo images that already have a result, and overwrite files hiresfix did not write."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line for every image.")] = False,
) -> None:
    """Upscale images on this machine, or with --remote on a server."""
    output_format = planning.output_format(output, output_format)
    options = {
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
    catalog_model = _model(model)
    params = {name: value for name, value in options.items() if value is not None}
    settings = _Settings(
        model=catalog_model,
        params=params,
        recipe=_recipe(catalog_model, params, preset),
        preset=preset,
        strip=strip,
        device=device,
        jobs=jobs,
    )
    on_server = bool(os.environ.get("HIRESFIX_URL")) if remote is None else remote
    _check_options(settings, on_server=on_server, watch=watch, output=output, inputs=inputs)
    with closing(ResumeLog.of_user()) as log:
        tasks = _plan_tasks(inputs, output, settings.recipe, log) if inputs else []
        # A single image that is named is always redone.
        is_single = len(tasks) == 1 and watch is None and not any(path.is_dir() for path in inputs or ())
        backend, fingerprint = _remote_backend(settings, log) if on_server else _local_backend(settings)
        with closing(backend):
            batch = Batch(
                backend=backend,
                log=log,
                fingerprint=fingerprint,
                again=again or is_single,
                as_json=as_json,
                endless=watch is not None,
            )
            code = batch.run(tasks)
            batch.print_summary()
            if watch is not None and not batch.stopping.is_set():
                code = _watch(watch, lambda: _plan_tasks([watch], output, settings.recipe, log), batch)
    if code:
        raise typer.Exit(code)


def _watch(folder: Path, plan: Callable[[], list[UpscaleTask]], batch: Batch) -> int:
    """Upscale new images until interrupted, or until an error that all images would run into.

    Args:
        folder: the watched folder.
        plan: returns the tasks of the whole folder, so that a.gif and a.png get different results even if they come
            at different times.
        batch: runs the tasks. Postponed ones are tried again after a pause.
    """
    reported: dict[Path, _FileState] = {}
    for new_files in _new_files(folder, reported):
        try:
            tasks = [task for task in plan() if task.source in new_files]
        except typer.BadParameter:  # deleted meanwhile
            continue
        code = batch.run(tasks)
        if batch.stopping.is_set():
            return code
        if batch.postponed:
            time.sleep(RETRY_SECONDS)
            for path in batch.postponed:
                reported.pop(path, None)
            batch.postponed.clear()
    raise AssertionError("_new_files never ends")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    """Options of the command that decide the result."""

    model: CatalogModel
    params: dict[str, str]
    recipe: Recipe
    preset: str
    strip: bool
    device: str
    jobs: int


def _model(name: str) -> CatalogModel:
    model = find_model(name)
    if model is None:
        raise typer.BadParameter(f"Expected one of {_MODEL_NAMES}", param_hint="--model")
    return model


_OPTION_OF = {"scale_factor": "scale", "num_inference_steps": "steps", "output_format": "format"}


def _recipe(model: CatalogModel, params: dict[str, str], preset: str) -> Recipe:
    """Return the recipe, with parameters, bounds and messages of the API."""
    from hiresfix import local

    try:
        return local.build_recipe(model, params, preset=preset)
    except InvalidRequest as error:
        name, messages = next(iter(error.details.items()))
        option = "--" + _OPTION_OF.get(name, name).replace("_", "-")
        raise typer.BadParameter(" ".join(messages), param_hint=option) from error


def _check_options(
    settings: _Settings, *, on_server: bool, watch: Path | None, output: Path | None, inputs: list[Path] | None
) -> None:
    """Refuse options that contradict each other, before any work."""
    if on_server:
        for option, is_used in (
            ("--preset", settings.preset),
            ("--strip", settings.strip),
            ("--device", settings.device != "auto"),
        ):
            if is_used:
                raise typer.BadParameter("The server's operator decides that. Use --local.", param_hint=option)
    elif settings.jobs > 1:
        raise typer.BadParameter("One image uses the whole machine. Use --remote.", param_hint="--jobs")
    if not inputs and watch is None:
        raise typer.BadParameter("Name images, or a folder with --watch.", param_hint="IN...")
    if watch is None:
        return
    if not watch.is_dir():
        raise typer.BadParameter(f"{watch} is not a folder.", param_hint="--watch")
    if output is None or output.suffix.lower() in SUFFIXES or output.resolve() == watch.resolve():
        raise typer.BadParameter("A watched folder needs another folder for the results.", param_hint="--output")


def _plan_tasks(inputs: list[Path], output: Path | None, recipe: Recipe, log: ResumeLog) -> list[UpscaleTask]:
    return planning.plan_tasks(
        planning.expand_patterns(inputs),
        output,
        scale=recipe.scale,
        file_format=str(recipe.output_format),
        source_of=log.source_of,
    )


def _local_backend(settings: _Settings) -> tuple[Backend, str]:
    """Return the backend and the fingerprint of its settings."""
    from hiresfix.engine.upscaler import Upscaler

    # The preset's content instead of its name: an operator may have changed it.
    preset = presets.find(settings.model, settings.preset, home()).to_dict()
    fingerprint = resume_log.fingerprint(
        {"model": settings.model.id, "preset": preset, "params": _canonical(settings), "strip": settings.strip}
    )
    backend = LocalBackend(upscaler=Upscaler(settings.device), recipe=settings.recipe, strip=settings.strip)
    return backend, fingerprint


def _remote_backend(settings: _Settings, log: ResumeLog) -> tuple[Backend, str]:
    """Return the backend and the fingerprint of its settings."""
    from hiresfix.client import Client

    client, params = Client(), _canonical(settings)
    fingerprint = resume_log.fingerprint({"server": client.url, "model": settings.model.id, "params": params})
    backend = RemoteBackend(
        client=client,
        model=settings.model.id,
        params=params,
        log=log,
        fingerprint=fingerprint,
        max_parallel=settings.jobs,
    )
    return backend, fingerprint


def _canonical(settings: _Settings) -> dict[str, Any]:
    """Return the canonical parameters: "2" and "2x" are the same settings."""
    from hiresfix.wire.params import canonical

    return {name: canonical(settings.model.param(name), raw) for name, raw in settings.params.items()}


_FileState: TypeAlias = tuple[int, int]
"""Size of a file and the time it was changed."""


def _new_files(folder: Path, reported: dict[Path, _FileState]) -> Iterator[list[Path]]:
    """Yield the images of a folder once they stop changing, and again after every change; never ends.

    `reported` holds the state in which each file was yielded; remove a file from it to get it again.
    """
    last: dict[Path, _FileState] = {}
    while True:
        current = {path: state for path in _images_in(folder) if (state := _file_state(path))}
        ready = [path for path, state in current.items() if last.get(path) == state != reported.get(path)]
        last = current
        if ready:
            reported |= {path: current[path] for path in ready}
            yield ready
        else:
            time.sleep(WATCH_SECONDS)


def _images_in(folder: Path) -> list[Path]:
    """List the images of a folder; none while it is away, as an unplugged disk is."""
    try:
        return planning.images_in(folder)
    except OSError:
        return []


def _file_state(path: Path) -> _FileState | None:
    try:
        status = path.stat()
    except OSError:
        return None  # deleted meanwhile
    return (status.st_size, status.st_mtime_ns) if status.st_size else None
