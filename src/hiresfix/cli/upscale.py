"""`hiresfix upscale`: enlarge files, by the engine here or by a server, with the same options."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from hiresfix.cli import inputs as errands_
from hiresfix.cli import resume_log as journals
from hiresfix.cli.backends import Enlarger, Here, There
from hiresfix.cli.batch import Batch
from hiresfix.cli.inputs import Errand
from hiresfix.cli.resume_log import Journal
from hiresfix.errors import InvalidRequest
from hiresfix.files import SUFFIXES
from hiresfix.models import presets
from hiresfix.models.catalog import MODELS, Model, find_model
from hiresfix.paths import home
from hiresfix.recipe import Recipe

WATCH_SECONDS = 1.0
"""Between two looks at a watched folder; a file is complete when two looks find it the same."""
POSTPONED_SECONDS = 30.0
"""Until what a watched folder's server was too busy for, or too far away, is tried again."""


def upscale(
    inputs: Annotated[
        list[Path] | None, typer.Argument(metavar="IN...", help="Pictures, folders of them, or patterns in quotes.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File for one picture, folder for several. Default: beside the input."),
    ] = None,
    model: Annotated[str, typer.Option(help=f"One of {', '.join(model.id for model in MODELS)}.")] = MODELS[0].id,
    preset: Annotated[
        str,
        typer.Option(
            help="clarity-upscale here only: offline, clarity, clarity-classic or one of yours (presets.toml)."
        ),
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
    strip: Annotated[bool, typer.Option("--strip", help="Leave EXIF and XMP out of the result (here only).")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps (here only).")] = "auto",
    remote: Annotated[
        bool | None,
        typer.Option("--remote/--local", help="By the server at HIRESFIX_URL; the default where that is set."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Pictures at once (--remote).")] = 1,
    watch: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Enlarge what appears in this folder, until interrupted.")
    ] = None,
    again: Annotated[
        bool,
        typer.Option("--again", help="Of several pictures, make those anew too that are made already, or by others."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line for every picture.")] = False,
) -> None:
    """Enlarge pictures on this machine, or with --remote on a server."""
    output_format = errands_.output_format(output, output_format)
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
    params = {name: value for name, value in given.items() if value is not None}
    recipe = _recipe(chosen, params, preset)
    asked = _Asked(model=chosen, params=params, recipe=recipe, preset=preset, strip=strip, device=device, jobs=jobs)
    there = bool(os.environ.get("HIRESFIX_URL")) if remote is None else remote
    _check_options(asked, there=there, watch=watch, output=output, inputs=inputs)
    with closing(Journal.of_user()) as journal:
        errands = [] if not inputs else _errands(inputs, output, recipe, journal)
        # One picture, named alone, is wanted anew.
        alone = len(errands) == 1 and watch is None and not any(path.is_dir() for path in inputs or ())
        enlarger, fingerprint = _there(asked, journal) if there else _here(asked)
        with closing(enlarger):
            batch = Batch(
                enlarger=enlarger,
                journal=journal,
                fingerprint=fingerprint,
                again=again or alone,
                as_json=as_json,
                endless=watch is not None,
            )
            code = batch.run(errands)
            batch.tell_counts()
            if watch is not None and not batch.stopping.is_set():
                code = _watch(watch, lambda: _errands([watch], output, recipe, journal), batch)
    if code:
        raise typer.Exit(code)


def _watch(folder: Path, listed: Callable[[], list[Errand]], batch: Batch) -> int:
    """Do what appears, until interrupted or there is no point in going on; what may succeed later, again later.

    listed: the errands of the whole folder, so that a.gif and a.png keep apart though they came at different times.
    """
    given: dict[Path, _State] = {}
    for appeared in _appearing(folder, given):
        try:
            errands = [errand for errand in listed() if errand.source in appeared]
        except typer.BadParameter:  # gone since the look
            continue
        code = batch.run(errands)
        if batch.stopping.is_set():
            return code
        if batch.postponed:
            time.sleep(POSTPONED_SECONDS)
            for path in batch.postponed:
                given.pop(path, None)
            batch.postponed.clear()
    raise AssertionError("folders are watched for ever")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    model: Model
    params: dict[str, str]
    recipe: Recipe
    preset: str
    strip: bool
    device: str
    jobs: int


def _model(name: str) -> Model:
    found = find_model(name)
    if found is None:
        raise typer.BadParameter(f"Expected one of {', '.join(model.id for model in MODELS)}", param_hint="--model")
    return found


_OPTION = {"scale_factor": "scale", "num_inference_steps": "steps", "output_format": "format"}


def _recipe(model: Model, params: dict[str, str], preset: str) -> Recipe:
    """The same parameters, bounds and messages as the API's."""
    from hiresfix import local

    try:
        return local.recipe_of(model, params, preset=preset)
    except InvalidRequest as error:
        name, messages = next(iter(error.details.items()))
        option = "--" + _OPTION.get(name, name).replace("_", "-")
        raise typer.BadParameter(" ".join(messages), param_hint=option) from error


def _check_options(
    asked: _Asked, *, there: bool, watch: Path | None, output: Path | None, inputs: list[Path] | None
) -> None:
    """What does not go together is refused before anything is done."""
    if there:
        for option, used in (
            ("--preset", asked.preset),
            ("--strip", asked.strip),
            ("--device", asked.device != "auto"),
        ):
            if used:
                raise typer.BadParameter("That is for the server's operator to choose. Use --local.", param_hint=option)
    elif asked.jobs > 1:
        raise typer.BadParameter("Here one picture takes the whole machine. Use --remote.", param_hint="--jobs")
    if not inputs and watch is None:
        raise typer.BadParameter("Name pictures, or a folder with --watch.", param_hint="IN...")
    if watch is None:
        return
    if not watch.is_dir():
        raise typer.BadParameter(f"{watch} is not a folder.", param_hint="--watch")
    if output is None or output.suffix.lower() in SUFFIXES or output.resolve() == watch.resolve():
        raise typer.BadParameter("A watched folder needs another one for the results.", param_hint="--output")


def _errands(inputs: list[Path], output: Path | None, recipe: Recipe, journal: Journal) -> list[Errand]:
    return errands_.errands(
        errands_.expanded(inputs),
        output,
        scale=recipe.scale,
        file_format=str(recipe.output_format),
        origin=journal.origin,
    )


def _here(asked: _Asked) -> tuple[Enlarger, str]:
    from hiresfix.engine.upscaler import Upscaler

    # Not by the preset's name: what an operator's own one means may have changed since.
    preset = presets.find(asked.model, asked.preset, home()).to_dict()
    fingerprint = journals.fingerprint(
        {"model": asked.model.id, "preset": preset, "params": _canonical(asked), "strip": asked.strip}
    )
    return Here(upscaler=Upscaler(asked.device), recipe=asked.recipe, strip=asked.strip), fingerprint


def _there(asked: _Asked, journal: Journal) -> tuple[Enlarger, str]:
    from hiresfix.client import Client

    client, params = Client(), _canonical(asked)
    fingerprint = journals.fingerprint({"server": client.url, "model": asked.model.id, "params": params})
    enlarger = There(
        client=client,
        model=asked.model.id,
        params=params,
        journal=journal,
        fingerprint=fingerprint,
        most=asked.jobs,
    )
    return enlarger, fingerprint


def _canonical(asked: _Asked) -> dict[str, Any]:
    """The parameters given, as a server understands them, so that "2" and "2x" are the same settings."""
    from hiresfix.wire.params import canonical

    return {name: canonical(asked.model.param(name), raw) for name, raw in asked.params.items()}


_State: TypeAlias = tuple[int, int]
"""Of a file: its size and when it was changed."""


def _appearing(folder: Path, given: dict[Path, _State]) -> Iterator[list[Path]]:
    """Pictures of a folder, each once it has stopped changing, and again when it has changed; forever.

    given: those that were given, as they were; who takes one out of it is given it again.
    """
    seen: dict[Path, _State] = {}
    while True:
        now = {path: state for path in _there_now(folder) if (state := _state(path))}
        ready = [path for path, state in now.items() if seen.get(path) == state != given.get(path)]
        seen = now
        if ready:
            given |= {path: now[path] for path in ready}
            yield ready
        else:
            time.sleep(WATCH_SECONDS)


def _there_now(folder: Path) -> list[Path]:
    """Nothing, while the folder is away: disks are unplugged, and shares come back."""
    try:
        return errands_.pictures_in(folder)
    except OSError:
        return []


def _state(path: Path) -> _State | None:
    try:
        found = path.stat()
    except OSError:
        return None  # gone between two looks
    return (found.st_size, found.st_mtime_ns) if found.st_size else None
