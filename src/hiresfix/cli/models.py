"""`hiresfix models`: the weight files an operator chooses from. Callers choose none: recipes name them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hiresfix.cli.operator_session import table

if TYPE_CHECKING:
    from rich.progress import Progress

    from hiresfix.models.catalog import WeightFile
    from hiresfix.models.store import Installed, Offer, Store

models = typer.Typer(no_args_is_help=True, help="Weight files: what there is, fetching, adding, checking.")

Names = Annotated[list[str], typer.Argument(metavar="NAME", help="Names from `hiresfix models list`.")]


@models.command("list")
def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON array.")] = False,
) -> None:
    """Show every weight file: those of packages, those that can be pulled, those added here."""
    rows = list(_rows())
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    headings = ("name", "kind", "state", "size", "commercial", "licence", "origin")
    table(
        headings,
        (
            (row.name, row.kind, row.state, _size(row.bytes), _yes_or_no(row.commercial), row.licence, row.origin)
            for row in rows
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One file of the listing. `bytes` None: not known before it is here."""

    name: str
    kind: str
    state: str
    bytes: int | None
    sha256: str | None
    commercial: bool | None
    licence: str
    origin: str


def _rows() -> Iterator[Row]:
    from importlib.util import find_spec

    from hiresfix.models.catalog import WEIGHTS
    from hiresfix.models.store import Store

    for weight in WEIGHTS:
        state = "installed" if find_spec(weight.package) else "comes with hiresfix[engine]"
        yield Row(kind="enlarger", state=state, bytes=None, **_provenance(weight))
    store = Store.at_home()
    here = store.installed()
    for entry in here.values():
        state = "installed" if entry.path.exists() else "file is gone"
        yield Row(kind=entry.kind, state=state, bytes=entry.bytes, **_provenance(entry))
    for offer in store.offers.values():
        if offer.name not in here:
            begun = store.begun(offer)
            state = f"begun, {_size(begun)} here" if begun else "can be pulled"
            yield Row(kind=offer.kind, state=state, bytes=offer.bytes or offer.about, **_provenance(offer))


def _provenance(file: WeightFile | Installed | Offer) -> dict[str, Any]:
    return {key: getattr(file, key) for key in ("name", "sha256", "commercial", "licence", "origin")}


@models.command()
def pull(
    names: Names,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Accept the licences that are shown.")] = False,
) -> None:
    """Fetch weight files from their public origins. A pull that was cut off goes on where it stopped."""
    from hiresfix.errors import HiresfixError
    from hiresfix.models.store import Store

    store = Store.at_home()
    offers = [store.offer(name) for name in dict.fromkeys(names)]
    here = store.installed()
    missing = []
    for offer in offers:
        if offer.name in here and here[offer.name].path.exists():
            typer.echo(f"{offer.name} is installed already.", err=True)
        else:
            _accept(offer, yes=yes)
            missing.append(offer)
    failed = False
    with _progress() as progress:
        for offer in missing:
            try:
                _pull(store, offer, progress)
            except HiresfixError as error:
                failed = True
                progress.console.print(f"{offer.name}: {error}", style="red", markup=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def _accept(offer: Offer, *, yes: bool) -> None:
    """Show the licence, and go on only with a yes."""
    typer.echo(f"{offer.name}: {offer.use or offer.kind}", err=True)
    typer.echo(f"  from     {offer.origin}", err=True)
    typer.echo(f"  licence  {offer.licence}", err=True)
    typer.echo(f"  commercial use: {_yes_or_no(offer.commercial)}", err=True)
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("Nobody is here to accept the licence. Say --yes if you do.", param_hint="--yes")
    typer.confirm("Do you accept it?", abort=True, err=True)


def _pull(store: Store, offer: Offer, progress: Progress) -> None:
    task = progress.add_task(offer.name, total=offer.bytes or offer.about)
    entry = store.pull(offer, lambda there, total: progress.update(task, completed=there, total=total))
    progress.remove_task(task)
    known = "as the list says"
    if len(offer.sha256 or "") < len(entry.sha256):
        before = "known by its beginning" if offer.sha256 else "not known before"
        known = f"{before}; recorded, and checked from now on"
    progress.console.print(
        f"{entry.name}  {_size(entry.bytes)}, SHA-256 {entry.sha256} ({known})", markup=False, soft_wrap=True
    )


@models.command()
def verify(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Default: all installed.")] = None,
) -> None:
    """Read installed files again and compare them with what was installed; exit code 1 if one differs.

    Files of packages are compared whenever they are loaded.
    """
    from hiresfix.models.store import Store

    store = Store.at_home()
    here = store.installed()
    unknown = [name for name in names or () if name not in here]
    if unknown:
        raise typer.BadParameter(f"Not installed: {', '.join(unknown)}.", param_hint="NAME")
    chosen = [here[name] for name in dict.fromkeys(names)] if names else list(here.values())
    if not chosen:
        typer.echo("Nothing is installed here. See: hiresfix models list", err=True)
    problems = 0
    with _progress() as progress:
        for entry in chosen:
            task = progress.add_task(entry.name, total=entry.bytes)
            problem = store.verify(entry, partial(progress.advance, task))
            progress.remove_task(task)
            problems += problem is not None
            said = problem or f"is what was installed ({entry.sha256})"
            progress.console.print(f"{entry.name}: {said}", markup=False, soft_wrap=True)
    if problems:
        raise typer.Exit(1)


@models.command()
def add(
    file: Annotated[
        Path, typer.Argument(help="A .safetensors, .pth, .pt or .ckpt file, or a folder as diffusers lays it out.")
    ],
    name: Annotated[str | None, typer.Option(help="What recipes call it; default: the file's name.")] = None,
    licence: Annotated[str | None, typer.Option(help="Of the file; for a name of the list it is the list's.")] = None,
    commercial: Annotated[
        bool | None, typer.Option("--commercial/--no-commercial", help="Whether the licence allows commercial use.")
    ] = None,
) -> None:
    """Take in a file or folder that is on this machine, your own or one of the list fetched elsewhere."""
    from hiresfix.models.store import Store

    with _progress() as progress:
        progress.add_task(file.name, total=None)
        entry = Store.at_home().add(
            file,
            name=name or (file.resolve().name if file.is_dir() else file.stem),
            licence=licence,
            commercial=commercial,
            read_pickle=_read_pickle,
        )
    typer.echo(f"Added the {entry.kind} {entry.name} ({_size(entry.bytes)}, SHA-256 {entry.sha256}).")


@models.command()
def remove(name: Annotated[str, typer.Argument(help="An installed file's name.")]) -> None:
    """Delete an installed file."""
    from hiresfix.models.store import Store

    entry = Store.at_home().remove(name)
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
    from hiresfix.engine.weights.superres_files import read_tensors  # here: it imports torch

    return read_tensors(path)
