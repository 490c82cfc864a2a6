"""All messages that need translations, found where they are used.

    python -m hiresfix.server.web

brings `locales/*/LC_MESSAGES/messages.po` up to date: new messages come in empty, unused ones go. Messages are the
first arguments of `_("...")` and `ngettext("...", "...", n)` in templates, of `t("...")` and `tn("...", "...", n)`
in scripts, and of `language("...")`, `language.plural("...", "...", n)` and `mark("...")` in this
package's Python, always literals; and what the catalog of models says of models, parameters
and presets.
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

from hiresfix.models.catalog import MODELS
from hiresfix.server.web.languages import ENGLISH, LOCALES, Language, translated

HERE = Path(__file__).parent
SCRIPTS = HERE / "static" / "js"

Message: TypeAlias = str | tuple[str, str]
"""A text, or its forms for one and for many."""

_TEMPLATE_FUNCTIONS = ("_", "ngettext")
_PYTHON_FUNCTIONS: dict[str, Any] = {"language": None, "plural": (1, 2), "mark": None}
_SCRIPT_FUNCTIONS: dict[str, Any] = {"t": None, "tn": (1, 2)}
_IMPORT = re.compile(r"""^\s*(?:import|export)\b[^"';]*["']\./([\w./-]+\.js)["']""", re.MULTILINE)


def of_templates() -> Iterator[tuple[str, Message]]:
    """File and message, like the other three."""
    environment = Environment(autoescape=True)
    for file in sorted((HERE / "templates").rglob("*.html")):
        tree = environment.parse(file.read_text(encoding="utf-8"))
        for _, _, found in extract_from_ast(tree, _TEMPLATE_FUNCTIONS, babel_style=False):
            yield str(file.relative_to(HERE)), _message(found)


def of_python() -> Iterator[tuple[str, Message]]:
    for file in sorted(HERE.glob("*.py")):
        for message in _extracted("python", file, _PYTHON_FUNCTIONS):
            yield file.name, message


def of_scripts() -> Iterator[tuple[str, Message]]:
    for file in sorted(SCRIPTS.rglob("*.js")):
        for message in _extracted("javascript", file, _SCRIPT_FUNCTIONS):
            yield str(file.relative_to(HERE)), message


def of_catalog() -> Iterator[tuple[str, Message]]:
    for model in MODELS:
        yield "catalog.py", model.description
        for param in model.params:
            yield "catalog.py", param.help
        for subject in model.subjects:
            yield "catalog.py", subject.label
            yield "catalog.py", subject.help


def everything() -> Catalog:
    """All messages, each with the files that use it."""
    found = Catalog()
    for source in (of_templates, of_python, of_scripts, of_catalog):
        for file, message in source():
            found.add(message, locations=[(file, 0)])
    return found


def for_script(language: Language, entry: str) -> dict[str, tuple[str, ...]]:
    """Translations, by their English text, that a module below `static/js` and what it imports show to people.

    Texts of the catalog and of errors come along where scripts have texts at all, because these reach the browser
    as data. English needs none.
    """
    from hiresfix.server.web.error_texts import ERRORS, SAYINGS

    if language is ENGLISH:
        return {}
    wanted = _texts_of_script(entry)
    if wanted:
        wanted = (*wanted, *(message for _, message in of_catalog()), *ERRORS.values(), *SAYINGS)
    keys = [message if isinstance(message, str) else message[0] for message in wanted]
    return {key: forms for key in keys if (forms := translated(language, key))}


@cache
def _texts_of_script(entry: str) -> tuple[Message, ...]:
    seen: list[Path] = []
    ahead = [SCRIPTS / entry]
    while ahead:
        file = ahead.pop()
        if file not in seen:
            seen.append(file)
            imported = _IMPORT.findall(file.read_text(encoding="utf-8"))
            ahead += [(file.parent / name).resolve() for name in imported]
    return tuple(message for file in seen for message in _extracted("javascript", file, _SCRIPT_FUNCTIONS))


def _extracted(kind: str, file: Path, functions: dict[str, Any]) -> Iterator[Message]:
    with file.open("rb") as source:
        for _, found, _, _ in extract(kind, source, keywords=functions, options={"encoding": "utf-8"}):
            yield _message(found)


def _is_complete(forms: str | Iterable[str] | None) -> bool:
    return bool(forms) and all(forms or ())


def _message(found: str | Iterable[str | None] | None) -> Message:
    if isinstance(found, str):
        return found
    one, *more = [part for part in found or () if part]
    return (one, more[0]) if more else one


def update(language: Language) -> int:
    """Bring the language's file to what is used, translations kept; how many messages have none."""
    file = LOCALES / language.code / "LC_MESSAGES" / "messages.po"
    kept = read_po(io.BytesIO(file.read_bytes() if file.exists() else b""), locale=language.code)
    kept.update(everything(), no_fuzzy_matching=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as out:
        write_po(out, kept, width=120, omit_header=True, ignore_obsolete=True, sort_by_file=True, include_lineno=False)
    return sum(message.id != "" and not _is_complete(message.string) for message in kept)
