"""Collect all messages that need translations from where they are used.

    python -m hiresfix.server.web

updates `locales/*/LC_MESSAGES/messages.po`: new messages are added without translation, unused ones are removed.
Messages are the first arguments, always literals, of `_("...")` and `ngettext("...", "...", n)` in templates, of
`t("...")` and `tn("...", "...", n)` in scripts, and of `language("...")`, `language.plural("...", "...", n)` and
`mark("...")` in the Python of this package; and the texts of the model catalog and of `hiresfix.messages`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from babel.messages.catalog import Catalog
from babel.messages.extract import extract
from babel.messages.pofile import read_po, write_po
from jinja2 import Environment
from jinja2.ext import extract_from_ast

from hiresfix.messages import TEMPLATES
from hiresfix.models.catalog import MODELS
from hiresfix.server.web.languages import ENGLISH, LOCALES, Language, translation_forms

PACKAGE_FOLDER = Path(__file__).parent
SCRIPTS_FOLDER = PACKAGE_FOLDER / "static" / "js"

MessageId: TypeAlias = str | tuple[str, str]
"""A text, or its singular and plural."""

_TEMPLATE_FUNCTIONS = ("_", "ngettext")
_PYTHON_FUNCTIONS: dict[str, Any] = {"language": None, "plural": (1, 2), "mark": None}
_SCRIPT_FUNCTIONS: dict[str, Any] = {"t": None, "tn": (1, 2)}
_IMPORT = re.compile(r"""^\s*(?:import|export)\b[^"';]*["']\./([\w./-]+\.js)["']""", re.MULTILINE)


def template_messages() -> Iterator[tuple[str, MessageId]]:
    """Yield file and message, like the other four."""
    environment = Environment(autoescape=True)
    for file in sorted((PACKAGE_FOLDER / "templates").rglob("*.html")):
        tree = environment.parse(file.read_text(encoding="utf-8"))
        for _, _, arguments in extract_from_ast(tree, _TEMPLATE_FUNCTIONS, babel_style=False):
            yield str(file.relative_to(PACKAGE_FOLDER)), _message_id(arguments)


def python_messages() -> Iterator[tuple[str, MessageId]]:
    for file in sorted(PACKAGE_FOLDER.glob("*.py")):
        for message in _extract("python", file, _PYTHON_FUNCTIONS):
            yield file.name, message


def script_messages() -> Iterator[tuple[str, MessageId]]:
    for file in sorted(SCRIPTS_FOLDER.rglob("*.js")):
        for message in _extract("javascript", file, _SCRIPT_FUNCTIONS):
            yield str(file.relative_to(PACKAGE_FOLDER)), message


def catalog_messages() -> Iterator[tuple[str, MessageId]]:
    for model in MODELS:
        yield "catalog.py", model.description
        for param in model.params:
            yield "catalog.py", param.help
        for preset in model.param_presets:
            yield "catalog.py", preset.label
            yield "catalog.py", preset.help


def server_messages() -> Iterator[tuple[str, MessageId]]:
    """Yield the server's messages to callers, which pages fill in and translate."""
    for template in TEMPLATES.values():
        yield "messages.py", template.text


def all_messages() -> Catalog:
    """Return all messages, each with the files that use it."""
    catalog = Catalog()
    for source in (template_messages, python_messages, script_messages, catalog_messages, server_messages):
        for file, message in source():
            catalog.add(message, locations=[(file, 0)])
    return catalog


def messages_for_script(language: Language, entry: str) -> dict[str, tuple[str, ...]]:
    """Return the translations that a module below `static/js` and its imports show, by English text.

    If they show any, texts of the catalog, of errors and of server messages are included, because these reach the
    browser as data. English needs none.
    """
    from hiresfix.server.web.error_texts import ERRORS

    if language is ENGLISH:
        return {}
    messages = _script_texts(entry)
    if messages:
        messages = (
            *messages,
            *(message for _, message in catalog_messages()),
            *(message for _, message in server_messages()),
            *ERRORS.values(),
        )
    keys = [message if isinstance(message, str) else message[0] for message in messages]
    return {key: forms for key in keys if (forms := translation_forms(language, key))}


@cache
def _script_texts(entry: str) -> tuple[MessageId, ...]:
    visited: list[Path] = []
    pending = [SCRIPTS_FOLDER / entry]
    while pending:
        file = pending.pop()
        if file not in visited:
            visited.append(file)
            imports = _IMPORT.findall(file.read_text(encoding="utf-8"))
            pending += [(file.parent / name).resolve() for name in imports]
    return tuple(message for file in visited for message in _extract("javascript", file, _SCRIPT_FUNCTIONS))


def _extract(kind: str, file: Path, functions: dict[str, Any]) -> Iterator[MessageId]:
    with file.open("rb") as source:
        for _, arguments, _, _ in extract(kind, source, keywords=functions, options={"encoding": "utf-8"}):
            yield _message_id(arguments)


def _message_id(arguments: str | Iterable[str | None] | None) -> MessageId:
    if isinstance(arguments, str):
        return arguments
    singular, *rest = [argument for argument in arguments or () if argument]
    return (singular, rest[0]) if rest else singular


def update(language: Language) -> int:
    """Update the language's file to the messages in use, keeping translations; return how many have none."""
    file = LOCALES / language.code / "LC_MESSAGES" / "messages.po"
    catalog = read_po(io.BytesIO(file.read_bytes() if file.exists() else b""), locale=language.code)
    catalog.update(all_messages(), no_fuzzy_matching=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as out:
        write_po(
            out, catalog, width=120, omit_header=True, ignore_obsolete=True, sort_by_file=True, include_lineno=False
        )
    return sum(message.id != "" and not _is_translated(message.string) for message in catalog)


def _is_translated(forms: str | Iterable[str] | None) -> bool:
    return bool(forms) and all(forms or ())
