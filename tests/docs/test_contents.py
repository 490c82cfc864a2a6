"""The documents and the program agree: links, commands, parameters, errors and routes."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest
from typer.main import get_command

from hiresfix import cli
from hiresfix.cli import exit_codes
from hiresfix.client import errors as client_errors
from hiresfix.errors import HiresfixError, Unreachable
from hiresfix.models.catalog import MODELS, find_model
from hiresfix.models.parameters import Param
from hiresfix.server.api import openapi
from hiresfix.server.app import create_app
from hiresfix.server.settings import Settings
from hiresfix.wire.params import canonical
from tests import ROOT
from tests.docs import pages
from tests.docs.pages import Page, page
from tests.server.web.test_languages import MIDDLEWARE_CODES

if TYPE_CHECKING:
    import click

PAGES = pages.pages()
by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


# --- Links --------------------------------------------------------------------------------------------------------


@by_name
def test_links_lead_to_existing_targets(page: Page) -> None:
    for target in page.links:
        path, _, anchor = unquote(target).partition("#")
        file = (page.path.parent / path).resolve() if path else page.path
        assert file.exists(), f"{page.name}: {target}"
        assert file.is_relative_to(ROOT), f"{page.name}: {target} leaves the repository"
        if anchor:
            assert anchor in Page(path=file).anchors, f"{page.name}: no heading for {target}"


@by_name
def test_images_have_alt_text(page: Page) -> None:
    assert not re.findall(r"!\[\s*\]\(", page.prose)


def test_every_page_is_reachable_from_readme() -> None:
    reached, queue = set(), [ROOT / "README.md"]
    while queue:
        path = queue.pop()
        reached.add(path)
        linked = {target.partition("#")[0] for target in Page(path=path).links}
        queue += {(path.parent / target).resolve() for target in linked if target.endswith(".md")} - reached
    assert {page.path for page in PAGES if page.name != "docs/index.md"} <= reached  # only the site has it


# --- Commands -----------------------------------------------------------------------------------------------------


def commands(of: click.Command | None = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every visible command with the words that run it."""
    command: Any = of or get_command(cli.app)
    if children := getattr(command, "commands", None):
        for name, child in children.items():
            yield from commands(child, (*path, name))
    elif not command.hidden:
        yield path, command


COMMANDS = dict(commands())
ROOT_OPTIONS = {name for param in get_command(cli.app).params for name in param.opts} | {"--help"}
_MENTION = re.compile(r"(?:^|`|[;&|(] *|\$\()(?:\.venv/bin/)?hiresfix ((?:[^`\n#;&|)\\]|\\\n)+)", re.MULTILINE)


def mentions(text: str) -> Iterator[list[str]]:
    """Yield the words after `hiresfix` for each command in a text."""
    for mention in _MENTION.findall(text):
        try:
            yield shlex.split(mention)
        except ValueError:  # an apostrophe in a sentence that only starts like a command
            yield mention.split()


def command_path(words: list[str]) -> tuple[str, ...]:
    """Return the longest command that these words start with, or `()`."""
    return max((path for path in COMMANDS if tuple(words[: len(path)]) == path), key=len, default=())


@by_name
def test_shown_commands_and_options_exist(page: Page) -> None:
    groups = {path[:length] for path in COMMANDS for length in range(len(path))}
    for words in mentions(page.text):
        # Texts may name a group alone: `hiresfix models`, `teams | users | keys`.
        path = command_path(words)
        assert path or (words[0],) in groups or words[0] in ROOT_OPTIONS, f"{page.name}: hiresfix {' '.join(words)}"
        known = {name for param in COMMANDS[path].params for name in param.opts} | {"--help"} if path else set()
        for word in words:
            if path and re.match(r"--?[a-z]", word):
                assert word.partition("=")[0] in known, f"{page.name}: hiresfix {' '.join(words)}"


def test_wrong_commands_are_recognised() -> None:
    assert list(mentions("`hiresfix upscal photo.jpg`, then\nhiresfix jobs list --wrong")) == [
        ["upscal", "photo.jpg"],
        ["jobs", "list", "--wrong"],
    ]
    assert command_path(["upscal", "photo.jpg"]) == ()
    assert command_path(["jobs", "list", "--wrong"]) == ("jobs", "list")


def test_exit_codes_match_the_callers_table() -> None:
    codes = re.findall(r"^(\d+) ", exit_codes.__doc__ or "", re.MULTILINE)
    rows = [row[0].strip("`") for row in page("docs/caller.md").rows("From the command line")]
    assert rows == codes


# --- Parameters ---------------------------------------------------------------------------------------------------

PARAMETERS = {param.name: param for model in reversed(MODELS) for param in model.params if param.name != "image"}


def test_parameters_match_the_artists_table() -> None:
    rows = {row[0].strip("`"): row[1:] for row in page("docs/artist.md").rows("The parameters")}
    assert rows.keys() == PARAMETERS.keys()
    for name, (option, limits, default, *_) in rows.items():
        assert option.strip("`") in {opt for param in COMMANDS["upscale",].params for opt in param.opts}
        assert limits == _range(PARAMETERS[name]), name
        assert default == ("drawn" if name == "seed" else str(PARAMETERS[name].default)), name


def _range(param: Param) -> str:
    if param.choices:
        return ", ".join(map(str, param.choices))
    if param.max_length:
        return f"up to {param.max_length} characters"
    return f"{param.minimum} – {param.maximum}"


def test_every_parameter_has_a_section() -> None:
    headings = re.findall(r"^### (.+)$", page("docs/artist.md").prose, re.MULTILINE)
    assert {name for heading in headings for name in re.findall(r"`(\w+)`", heading)} == PARAMETERS.keys()


def test_parameter_images_match_the_benchmark() -> None:
    files = re.findall(r"\(img/parameters/([^)]+\.webp)\)", page("docs/artist.md").text)
    record = json.loads((ROOT / "docs/img/parameters/panels.json").read_text())
    assert sorted(files) == sorted(record)
    assert sorted(path.name for path in (ROOT / "docs/img/parameters").glob("*.webp")) == sorted(record)
    counts: dict[str, int] = {}
    for file in files:
        name = file.rpartition("-")[0]
        counts[name] = counts.get(name, 0) + 1
    assert counts.keys() == PARAMETERS.keys() - {"prompt", "negative_prompt"}
    assert {name: count for name, count in counts.items() if count != 3} == {"content": 2}


def test_format_sizes_match_the_record() -> None:
    record = json.loads((ROOT / "docs/img/parameters/panels.json").read_text())
    sizes = re.search(r"\| png, (\d+) bytes \| jpg, (\d+) bytes \| webp, (\d+) bytes \|", page("docs/artist.md").text)
    assert sizes
    assert [int(size) for size in sizes.groups()] == [
        record[f"output_format-{name}.webp"]["resultBytes"] for name in ("png", "jpg", "webp")
    ]


_NAMES = {"scale": "scale_factor", "steps": "num_inference_steps", "format": "output_format"}


def _values(model_id: str, options: str) -> dict[str, Any]:
    """Return options such as `--creativity 0.2 --steps 30` as the model's parameters."""
    model, words = find_model(model_id.strip("`")), shlex.split(options.strip("`"))
    assert model
    if options == "the defaults":
        return {}
    names = [_NAMES.get(name := word.removeprefix("--").replace("-", "_"), name) for word in words[::2]]
    return {name: canonical(model.param(name), value) for name, value in zip(names, words[1::2], strict=True)}


def test_presets_match_the_catalog() -> None:
    rows = {
        row[0].strip("`"): (row[1].strip("`"), _values(*row[1:3])) for row in page("docs/artist.md").rows("Recipes")
    }
    assert rows == {
        preset.id: (model.id, {name: value for name, value in preset.values.items() if name != "prompt"})
        for model in MODELS
        for preset in model.param_presets
    }


def test_other_recipes_are_valid() -> None:
    recipes = re.findall(r"^\| [A-Z][^|]+ \| (`[\w-]+`) \| (`--[^`]+`) \|", page("docs/artist.md").text, re.MULTILINE)
    assert len(recipes) == 3
    for recipe in recipes:
        assert _values(*recipe)


# --- Errors and routes --------------------------------------------------------------------------------------------


def _error_classes(base: type[HiresfixError] = HiresfixError) -> Iterator[type[HiresfixError]]:
    yield base
    for kind in base.__subclasses__():
        yield from _error_classes(kind)


def test_error_codes_match_the_callers_table() -> None:
    known: dict[str, set[int]] = {code: {400} for code in MIDDLEWARE_CODES}
    for kind in _error_classes():
        if kind.__module__ == "hiresfix.errors":
            known.setdefault(kind.code, set()).add(kind.status)
    rows = {row[0].strip("`"): {int(row[1])} for row in page("docs/caller.md").rows("Codes")}
    assert rows == known


def test_client_errors_match_their_table() -> None:
    known = {
        kind.code: kind.retryable
        for kind in _error_classes()
        if kind.__module__ == client_errors.__name__ and "code" in vars(kind)
    }
    rows = {row[0].strip("`"): row[1] == "yes" for row in page("docs/caller.md").rows("In Python")}
    assert rows == known


def test_retryable_errors_match_the_table() -> None:
    retryable = {kind.code for kind in _error_classes() if kind.retryable and kind is not Unreachable}
    rows = {row[0].strip("`"): row[2] for row in page("docs/caller.md").rows("Codes")}
    assert {code for code, retry in rows.items() if retry == "yes"} == retryable & rows.keys()


def _routes() -> list[str]:
    app = create_app(Settings(), database_url="postgresql://nobody@127.0.0.1/none")
    document = openapi.document(app.routes, public_url="http://127.0.0.1:8000")
    return [
        f"{method.upper()} {path}"
        for path, methods in document["paths"].items()
        for method in methods
        if method != "head"
    ]


ROUTES = _routes()


def test_routes_match_the_callers_table() -> None:
    rows = [row[0].strip("`") for row in page("docs/caller.md").rows("All routes")]
    assert sorted(rows) == sorted(ROUTES)
