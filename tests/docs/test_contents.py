"""What is documented exists, and what exists is documented."""

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
from hiresfix.models.catalog import MODELS, Param, find_model
from hiresfix.server.api import openapi
from hiresfix.server.app import create_app
from hiresfix.server.settings import Settings
from hiresfix.wire.params import canonical
from tests import ROOT
from tests.docs import pages
from tests.docs.pages import Page, page
from tests.server.web.test_languages import BELOW_THE_ROUTES

if TYPE_CHECKING:
    import click

PAGES = pages.pages()
by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


# --- Links --------------------------------------------------------------------------------------------------------


@by_name
def test_links_and_pictures_lead_somewhere(page: Page) -> None:
    for target in page.links:
        path, _, anchor = unquote(target).partition("#")
        found = (page.path.parent / path).resolve() if path else page.path
        assert found.exists(), f"{page.name}: {target}"
        assert found.is_relative_to(ROOT), f"{page.name}: {target} leaves the repository"
        if anchor:
            assert anchor in Page(path=found).anchors, f"{page.name}: {target} names no heading"


@by_name
def test_every_picture_says_what_it_shows(page: Page) -> None:
    assert not re.findall(r"!\[\s*\]\(", page.prose)


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        path = waiting.pop()
        reached.add(path)
        linked = {target.partition("#")[0] for target in Page(path=path).links}
        waiting += {(path.parent / target).resolve() for target in linked if target.endswith(".md")} - reached
    assert {page.path for page in PAGES if page.name != "docs/index.md"} <= reached  # that one is the site's own


# --- Commands -----------------------------------------------------------------------------------------------------


def commands(of: click.Command | None = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that can be run, by the words that run it."""
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
    """The words after `hiresfix` wherever a text shows a command."""
    for found in _MENTION.findall(text):
        try:
            yield shlex.split(found)
        except ValueError:  # an apostrophe in a sentence that only begins like a command
            yield found.split()


def named(words: list[str]) -> tuple[str, ...]:
    """The command that these words begin with, as far as there is one."""
    return max((path for path in COMMANDS if tuple(words[: len(path)]) == path), key=len, default=())


@by_name
def test_only_commands_and_options_that_exist_are_shown(page: Page) -> None:
    groups = {path[:length] for path in COMMANDS for length in range(len(path))}
    for words in mentions(page.text):
        # `teams | users | keys` and `hiresfix models` name groups.
        path = named(words)
        assert path or (words[0],) in groups or words[0] in ROOT_OPTIONS, f"{page.name}: hiresfix {' '.join(words)}"
        known = {name for param in COMMANDS[path].params for name in param.opts} | {"--help"} if path else set()
        for word in words:
            if path and re.match(r"--?[a-z]", word):
                assert word.partition("=")[0] in known, f"{page.name}: hiresfix {' '.join(words)}"


def test_a_command_or_option_that_does_not_exist_would_be_noticed() -> None:
    assert list(mentions("`hiresfix upscal photo.jpg`, then\nhiresfix jobs list --wrong")) == [
        ["upscal", "photo.jpg"],
        ["jobs", "list", "--wrong"],
    ]
    assert named(["upscal", "photo.jpg"]) == ()
    assert named(["jobs", "list", "--wrong"]) == ("jobs", "list")


def test_every_exit_code_is_in_the_callers_table_and_no_other() -> None:
    told = re.findall(r"^(\d+) ", exit_codes.__doc__ or "", re.MULTILINE)
    rows = [row[0].strip("`") for row in page("docs/caller.md").rows("From the command line")]
    assert rows == told


# --- Knobs --------------------------------------------------------------------------------------------------------

KNOBS = {param.name: param for model in reversed(MODELS) for param in model.params if param.name != "image"}


def test_every_knob_is_in_the_artists_table_with_its_range_and_default_and_no_other() -> None:
    rows = {row[0].strip("`"): row[1:] for row in page("docs/artist.md").rows("The knobs")}
    assert rows.keys() == KNOBS.keys()
    for name, (option, span, default, *_) in rows.items():
        assert option.strip("`") in {opt for param in COMMANDS["upscale",].params for opt in param.opts}
        assert span == _span(KNOBS[name]), name
        assert default == ("drawn" if name == "seed" else str(KNOBS[name].default)), name


def _span(param: Param) -> str:
    if param.choices:
        return ", ".join(map(str, param.choices))
    if param.max_length:
        return f"up to {param.max_length} characters"
    return f"{param.minimum} – {param.maximum}"


def test_every_knob_has_a_section() -> None:
    headings = re.findall(r"^### (.+)$", page("docs/artist.md").prose, re.MULTILINE)
    assert {name for heading in headings for name in re.findall(r"`(\w+)`", heading)} == KNOBS.keys()


def test_the_knobs_pictures_are_those_that_the_benchmark_makes_at_three_values() -> None:
    shown = re.findall(r"\(img/parameters/([^)]+\.webp)\)", page("docs/artist.md").text)
    record = json.loads((ROOT / "docs/img/parameters/panels.json").read_text())
    assert sorted(shown) == sorted(record)
    assert sorted(path.name for path in (ROOT / "docs/img/parameters").glob("*.webp")) == sorted(record)
    values: dict[str, int] = {}
    for file in shown:
        knob = file.rpartition("-")[0]
        values[knob] = values.get(knob, 0) + 1
    assert values.keys() == KNOBS.keys() - {"prompt", "negative_prompt"}
    assert {knob: count for knob, count in values.items() if count != 3} == {"content": 2}


def test_the_sizes_of_formats_are_those_that_were_measured() -> None:
    record = json.loads((ROOT / "docs/img/parameters/panels.json").read_text())
    told = re.search(r"\| png, (\d+) bytes \| jpg, (\d+) bytes \| webp, (\d+) bytes \|", page("docs/artist.md").text)
    assert told
    assert [int(size) for size in told.groups()] == [
        record[f"output_format-{name}.webp"]["resultBytes"] for name in ("png", "jpg", "webp")
    ]


_NAMES = {"scale": "scale_factor", "steps": "num_inference_steps", "format": "output_format"}


def _values(model_id: str, settings: str) -> dict[str, Any]:
    """What `--creativity 0.2 --steps 30` says, as the model takes it."""
    model, words = find_model(model_id.strip("`")), shlex.split(settings.strip("`"))
    assert model
    if settings == "the defaults":
        return {}
    names = [_NAMES.get(name := word.removeprefix("--").replace("-", "_"), name) for word in words[::2]]
    return {name: canonical(model.param(name), value) for name, value in zip(names, words[1::2], strict=True)}


def test_the_presets_are_those_of_the_catalog_with_their_values_and_no_others() -> None:
    rows = {
        row[0].strip("`"): (row[1].strip("`"), _values(*row[1:3])) for row in page("docs/artist.md").rows("Recipes")
    }
    assert rows == {
        subject.id: (model.id, {name: value for name, value in subject.values.items() if name != "prompt"})
        for model in MODELS
        for subject in model.param_presets
    }


def test_every_other_recipe_is_one_that_its_model_takes() -> None:
    recipes = re.findall(r"^\| [A-Z][^|]+ \| (`[\w-]+`) \| (`--[^`]+`) \|", page("docs/artist.md").text, re.MULTILINE)
    assert len(recipes) == 3
    for recipe in recipes:
        assert _values(*recipe)


# --- Errors and routes --------------------------------------------------------------------------------------------


def _kinds(of: type[HiresfixError] = HiresfixError) -> Iterator[type[HiresfixError]]:
    yield of
    for kind in of.__subclasses__():
        yield from _kinds(kind)


def test_every_error_code_is_in_the_callers_tables_with_its_status_and_no_other() -> None:
    known: dict[str, set[int]] = {code: {400} for code in BELOW_THE_ROUTES}
    for kind in _kinds():
        if kind.__module__ == "hiresfix.errors":
            known.setdefault(kind.code, set()).add(kind.status)
    rows = {row[0].strip("`"): {int(row[1])} for row in page("docs/caller.md").rows("Codes")}
    assert rows == known


def test_every_error_of_the_client_is_in_its_own_table_and_no_other() -> None:
    known = {
        kind.code: kind.retryable
        for kind in _kinds()
        if kind.__module__ == client_errors.__name__ and "code" in vars(kind)
    }
    rows = {row[0].strip("`"): row[1] == "yes" for row in page("docs/caller.md").rows("In Python")}
    assert rows == known


def test_what_may_be_tried_again_is_what_the_errors_say() -> None:
    retryable = {kind.code for kind in _kinds() if kind.retryable and kind is not Unreachable}
    rows = {row[0].strip("`"): row[2] for row in page("docs/caller.md").rows("Codes")}
    assert {code for code, again in rows.items() if again == "yes"} == retryable & rows.keys()


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


def test_every_route_is_in_the_callers_table_and_no_other() -> None:
    rows = [row[0].strip("`") for row in page("docs/caller.md").rows("All routes")]
    assert sorted(rows) == sorted(ROUTES)
