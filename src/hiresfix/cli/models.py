"""`hiresfix models`: weight files on this machine. Operators choose them in recipes; callers of the API cannot."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hiresfix.cli.operator_session import print_table

if TYPE_CHECKING:
    from rich.progress import Progress

    from hiresfix.models.catalog import WeightFile
    from hiresfix.models.store import InstalledModel, ListedModel, ModelStore

models = typer.Typer(no_args_is_help=True, help="Manage weight files: list, pull, add, verify, remove.")

FileNames = Annotated[list[str], typer.Argument(metavar="NAME", help="Names from `hiresfix models list`.")]


@models.command("list")
def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array, for scripts.")] = False,
) -> None:
    """List all weight files: those of installed packages, those to pull, and those added on this machine."""
    rows = list(_rows())
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    headings = ("name", "kind", "state", "size", "commercial", "licence", "origin")
    print_table(
        headings,
        (
            (row.name, row.kind, row.state, _size(row.bytes), _yes_or_no(row.commercial), row.licence, row.origin)
            for row in rows
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightRow:
    """One weight file of the listing. `bytes` None: unknown until it is installed."""

    name: str
    kind: str
    state: str
    bytes: int | None
    sha256: str | None
    commercial: bool | None
    licence: str
    origin: str


def _rows() -> Iterator[WeightRow]:
    from importlib.util import find_spec

    from hiresfix.models.catalog import WEIGHTS
    from hiresfix.models.store import ModelStore

    for weight in WEIGHTS:
        state = "installed" if find_spec(weight.package) else "comes with hiresfix[engine]"
        yield WeightRow(kind="enlarger", state=state, bytes=None, **_provenance(weight))
    store = ModelStore.at_home()
    installed = store.installed()
    for entry in installed.values():
        state = "installed" if entry.path.exists() else "file is missing"
        yield WeightRow(kind=entry.kind, state=state, bytes=entry.bytes, **_provenance(entry))
    for file in store.listed.values():
        if file.name not in installed:
            partial_bytes = store.partial_bytes(file)
            state = f"incomplete, {_size(partial_bytes)} so far" if partial_bytes else "can be pulled"
            yield WeightRow(kind=file.kind, state=state, bytes=file.bytes or file.about, **_provenance(file))


def _provenance(file: WeightFile | InstalledModel | ListedModel) -> dict[str, Any]:
    return {key: getattr(file, key) for key in ("name", "sha256", "commercial", "licence", "origin")}


@models.command()
def pull(
    names: FileNames,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Accept the licences without asking.")] = False,
) -> None:
    """Download weight files from their public origins. An interrupted download is resumed."""
    from hiresfix.errors import HiresfixError
    from hiresfix.models.store import ModelStore

    store = ModelStore.at_home()
    files = [store.find_listed(name) for name in dict.fromkeys(names)]
    installed = store.installed()
    missing = []
    for file in files:
        if file.name in installed and installed[file.name].path.exists():
            typer.echo(f"{file.name} is already installed.", err=True)
        else:
            _accept(file, yes=yes)
            missing.append(file)
    failed = False
    with _progress() as progress:
        for file in missing:
            try:
                _pull(store, file, progress)
            except HiresfixError as error:
                failed = True
                progress.console.print(f"{file.name}: {error}", style="red", markup=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def _accept(file: ListedModel, *, yes: bool) -> None:
    """Show the licence and ask for consent. Raises if it is refused."""
    typer.echo(f"{file.name}: {file.use or file.kind}", err=True)
    typer.echo(f"  from     {file.origin}", err=True)
    typer.echo(f"  licence  {file.licence}", err=True)
    typer.echo(f"  commercial use: {_yes_or_no(file.commercial)}", err=True)
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("The licence must be accepted. Add --yes to accept it.", param_hint="--yes")
    typer.confirm("Do you accept the licence?", abort=True, err=True)


def _pull(store: ModelStore, file: ListedModel, progress: Progress) -> None:
    task = progress.add_task(file.name, total=file.bytes or file.about)
    entry = store.pull(file, lambda done, total: progress.update(task, completed=done, total=total))
    progress.remove_task(task)
    checked = "as listed"
    if len(file.sha256 or "") < len(entry.sha256):
        before = "only its beginning was listed" if file.sha256 else "not listed"
        checked = f"{before}; recorded, and checked from now on"
    progress.console.print(
        f"{entry.name}  {_size(entry.bytes)}, SHA-256 {entry.sha256} ({checked})", markup=False, soft_wrap=True
    )


@models.command()
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Names of installed files. Default: all.")
    ] = None,
) -> None:
    """Compare installed files with their recorded SHA-256; exit code 1 if one differs.

    Files of packages are checked whenever they are loaded.
    """
    from hiresfix.models.store import ModelStore

    store = ModelStore.at_home()
    installed = store.installed()
    unknown = [name for name in names or () if name not in installed]
    if unknown:
        raise typer.BadParameter(f"Not installed: {', '.join(unknown)}. See: hiresfix models list", param_hint="NAME")
    entries = [installed[name] for name in dict.fromkeys(names)] if names else list(installed.values())
    if not entries:
        typer.echo("No files are installed. See: hiresfix models list", err=True)
    problems = 0
    with _progress() as progress:
        for entry in entries:
            task = progress.add_task(entry.name, total=entry.bytes)
            problem = store.verify(entry, partial(progress.advance, task))
            progress.remove_task(task)
            problems += problem is not None
            verdict = problem or f"unchanged ({entry.sha256})"
            progress.console.print(f"{entry.name}: {verdict}", markup=False, soft_wrap=True)
    if problems:
        raise typer.Exit(1)


@models.command()
def add(
    file: Annotated[
        Path, typer.Argument(help="A .safetensors, .pth, .pt or .ckpt file, or a folder in the layout of diffusers.")
    ],
    name: Annotated[str | None, typer.Option(help="Name for recipes. Default: the name of the file.")] = None,
    licence: Annotated[
        str | None, typer.Option(help="Licence of the file. Not needed for a name in `hiresfix models list`.")
    ] = None,
    commercial: Annotated[
        bool | None,
        typer.Option("--commercial/--no-commercial", help="The licence allows commercial use, or does not."),
    ] = None,
) -> None:
    """Add a file or folder from this machine: your own, or a listed one that was downloaded elsewhere."""
    from hiresfix.models.store import ModelStore

    with _progress() as progress:
        progress.add_task(file.name, total=None)
        entry = ModelStore.at_home().add(
            file,
            name=name or (file.resolve().name if file.is_dir() else file.stem),
            licence=licence,
            commercial=commercial,
            read_pickle=_read_pickle,
        )
    typer.echo(f"Added the {entry.kind} {entry.name} ({_size(entry.bytes)}, SHA-256 {entry.sha256}).")


@models.command()
def remove(name: Annotated[str, typer.Argument(help="Name of an installed file.")]) -> None:
    """Delete an installed file."""
    from hiresfix.models.store import ModelStore

    entry = ModelStore.at_home().remove(name)
    typer.echo(f"Removed {entry.name}, {_size(entry.bytes)}.")


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _size(count: int | None) -> str:
    if count is None:
        return ""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count} B"


def _yes_or_no(allowed: bool | None) -> str:
    return {True: "yes", False: "no", None: "unknown"}[allowed]


def _read_pickle(path: Path) -> Any:
    from hiresfix.engine.weights.superres_files import read_tensors  # imports torch

    return read_tensors(path)
