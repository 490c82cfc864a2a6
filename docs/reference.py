"""What the site has beyond the files of this folder, made while it is built: see `mkdocs.yml`.

The API's reference comes from the OpenAPI document, the commands' from the command line itself, so neither can say
anything that is not so. The documents of the repository's root become pages too, their links turned to what the site
has.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
FROM_ROOT = {name: f"{name.lower()}.md" for name in ("CONTRIBUTING", "ARCHITECTURE", "CHANGELOG")}
MOST_ON_A_LINE = 70
"""Characters of a signature."""
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|#|mailto:|/)([^)#]+)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """MkDocs asks which files there are."""
    from mkdocs.structure.files import File

    pages = {
        "reference/api.md": api_reference(openapi()),
        "reference/commands.md": command_reference(),
        "reference/python.md": python_reference(),
    }
    pages |= {page: (ROOT / f"{name}.md").read_text(encoding="utf-8") for name, page in FROM_ROOT.items()}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """MkDocs reads a page. Links to files that the site does not have keep their text."""

    def turned(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        name = target.removeprefix("../").removeprefix("docs/")
        name = FROM_ROOT.get(name.removesuffix(".md"), name)
        inside = files.get_file_from_path(name) or (page.file.src_uri.count("/") and files.get_file_from_path(target))
        return f"[{text}]({name}{anchor})" if inside else text

    return markdown if page.file.src_uri.count("/") else _LINK.sub(turned, markdown)


def openapi() -> dict[str, Any]:
    """The document that `GET /v2/openapi.json` gives."""
    from hiresfix.server.api import openapi as description
    from hiresfix.server.app import create_app
    from hiresfix.server.settings import Settings

    app = create_app(Settings(), database_url="postgresql://nobody@127.0.0.1/none")
    return description.document(app.routes, public_url="http://127.0.0.1:8000")


# --- The API


def api_reference(document: Mapping[str, Any]) -> str:
    """Every operation and every schema of an OpenAPI 3.1 document, as Markdown."""
    lines = [
        "# API reference",
        "",
        "Made from `GET /v2/openapi.json`. [For callers](../caller.md) tells how to use it.",
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method != "head":
                lines += _operation(f"{method.upper()} {path}", operation)
    lines += ["", "## Schemas"]
    for name, schema in document["components"]["schemas"].items():
        lines += _schema(name, schema)
    return "\n".join(lines) + "\n"


def _operation(heading: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", f"## `{heading}`", "", _text(operation["summary"]))
    yield from ("", "No key needed." if operation.get("security") == [] else "Needs a key.")
    if parameters := operation.get("parameters"):
        rows = ((f"`{one['name']}`", one["in"], _type(one["schema"]), one.get("description", "")) for one in parameters)
        yield from _table(("Parameter", "In", "Type", ""), rows)
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        yield from ("", f"Body: {_type(content['schema'])} as `{media_type}`")
    yield from _table(("Answer", "", "Body"), (_answer(*answer) for answer in operation["responses"].items()))


def _answer(status: str, answer: Mapping[str, Any]) -> tuple[str, str, str]:
    content = answer.get("content", {})
    bodies = (_type(one["schema"]) if "schema" in one else f"`{kind}`" for kind, one in content.items())
    return status, answer["description"], " or ".join(bodies)


def _schema(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", f"### {name}", "")
    required = schema.get("required", ())
    if not (properties := schema.get("properties")):
        yield _type(schema)
        return
    rows = (
        (f"`{field}`", _type(facts), "" if field in required else "optional", facts.get("description", ""))
        for field, facts in properties.items()
    )
    yield from _table(("Field", "Type", "", ""), rows)


def _type(schema: Mapping[str, Any]) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if several := schema.get("oneOf") or schema.get("anyOf"):
        return " or ".join(_type(one) for one in several)
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "any")
    words = " or ".join(kind) if isinstance(kind, list) else kind
    if "items" in schema:
        words += f" of {_type(schema['items'])}"
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None or high is not None:
        words += (
            f", {low} to {high}" if None not in (low, high) else f", from {low}" if high is None else f", to {high}"
        )
    return words + (f" ({schema['format']})" if "format" in schema else "")


# --- The command line


def command_reference() -> str:
    """Every command with its arguments and options, as Markdown that Typer writes."""
    command = (sys.executable, "-m", "typer", "hiresfix.cli", "utils", "docs", "--name", "hiresfix")
    done = subprocess.run((*command, "--title", "Commands"), stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


# --- The Python library


def python_reference() -> str:
    """What `hiresfix` and `hiresfix.errors` offer, from signatures and docstrings, as Markdown."""
    import hiresfix
    from hiresfix import errors
    from hiresfix.client import client

    lines = ["# Python library", "", "Made from the library's own signatures. [For callers](../caller.md) uses it."]
    for name in hiresfix.__all__:
        if not name.startswith("_"):
            lines += _object(f"hiresfix.{name}", getattr(hiresfix, name))
    for name, what in (("images", client.Images), ("jobs", client.Jobs), ("uploads", client.Uploads)):
        lines += _object(f"client.{name}", what)
    return "\n".join(
        (*lines, "", "## `hiresfix.errors`", "", "```text", inspect.cleandoc(errors.__doc__ or ""), "```", "")
    )


def _object(name: str, what: Any) -> Iterator[str]:
    yield from ("", f"## `{name}`", "")
    if not name.startswith("client."):  # what a client has is not for making
        yield from (*_code(name.rpartition(".")[2], what), *_documentation(what))
    if not inspect.isclass(what):
        return
    for member, found in vars(what).items():
        if member.startswith("_"):
            continue
        method = found.__func__ if isinstance(found, classmethod) else found
        if inspect.isfunction(method):
            yield from ("", f"### `{name.rpartition('.')[2]}.{member}`", "", *_code(member, method))
            yield from _documentation(method)


def _code(name: str, what: Any) -> Iterator[str]:
    """The signature as a block of code, `self` left out."""
    try:
        signature = str(inspect.signature(what)).replace("(self, ", "(").replace("(self)", "()")
    except ValueError:  # an exception of the language has none
        return
    signature = re.sub(r"(: |-> )'([^']*)'", r"\1\2", signature)
    if len(signature) > MOST_ON_A_LINE:
        signature = re.sub(r", (?=\w+: |\*)", ",\n    ", signature).replace("(", "(\n    ", 1)
    prefix = "async def " if inspect.iscoroutinefunction(what) else "class " if inspect.isclass(what) else "def "
    yield from ("```python", prefix + name + signature, "```")


def _documentation(what: Any) -> Iterator[str]:
    if text := inspect.getdoc(what):
        yield from ("", re.sub(r"<(?=[A-Za-z/])", "&lt;", text))


# --- Markdown


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield from ("", f"| {' | '.join(head)} |", "|" + " --- |" * len(head))
    for row in rows:
        cells = (_text(cell).replace("|", "\\|") for cell in row)
        yield f"| {' | '.join(cells)} |"


def _text(words: str) -> str:
    """On one line, with nothing that Markdown would take for a tag."""
    return re.sub(r"<(?=[A-Za-z/])", "&lt;", " ".join(str(words).split()))
