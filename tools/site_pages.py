"""MkDocs hook: add generated pages to the site (`mkdocs.yml` names this file).

The API reference comes from the OpenAPI document, the command reference from the command line, and the Python reference
from signatures and docstrings, so they cannot go out of date. The documents in the repository's root become pages too,
with their links changed to the site's pages.
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
ROOT_PAGES = {name: f"{name.lower()}.md" for name in ("CONTRIBUTING", "ARCHITECTURE", "CHANGELOG")}
"""Documents in the repository's root, and the name of their page on the site."""
MAX_SIGNATURE_LENGTH = 70
"""Longer signatures have one parameter per line."""
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|#|mailto:|/)([^)#]+)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages; MkDocs calls this when it has collected the files."""
    from mkdocs.structure.files import File

    pages = {
        "reference/api.md": api_reference(openapi_document()),
        "reference/commands.md": command_reference(),
        "reference/python.md": python_reference(),
    }
    pages |= {page: (ROOT / f"{name}.md").read_text(encoding="utf-8") for name, page in ROOT_PAGES.items()}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files outside the site into plain text; MkDocs calls this for each page."""

    def site_link(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        name = target.removeprefix("../").removeprefix("docs/")
        name = ROOT_PAGES.get(name.removesuffix(".md"), name)
        inside = files.get_file_from_path(name) or (page.file.src_uri.count("/") and files.get_file_from_path(target))
        return f"[{text}]({name}{anchor})" if inside else text

    return markdown if page.file.src_uri.count("/") else _LINK.sub(site_link, markdown)


def openapi_document() -> dict[str, Any]:
    """Return the document that `GET /v2/openapi.json` returns."""
    from hiresfix.server.api import openapi
    from hiresfix.server.app import create_app
    from hiresfix.server.settings import Settings

    app = create_app(Settings(), database_url="postgresql://nobody@127.0.0.1/none")
    return openapi.document(app.routes, public_url="http://127.0.0.1:8000")


# --- The API


def api_reference(document: Mapping[str, Any]) -> str:
    """Return every operation and every schema of an OpenAPI 3.1 document as Markdown."""
    lines = [
        "# API reference",
        "",
        "Generated from `GET /v2/openapi.json`. [For callers](../caller.md) explains how to use it.",
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
    yield from ("", f"## `{heading}`", "", _one_line(operation["summary"]))
    yield from ("", "No key needed." if operation.get("security") == [] else "Needs a key.")
    if parameters := operation.get("parameters"):
        rows = (
            (f"`{each['name']}`", each["in"], _type(each["schema"]), each.get("description", "")) for each in parameters
        )
        yield from _table(("Parameter", "In", "Type", ""), rows)
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        yield from ("", f"Body: {_type(content['schema'])} as `{media_type}`")
    yield from _table(("Answer", "", "Body"), (_answer(*answer) for answer in operation["responses"].items()))


def _answer(status: str, answer: Mapping[str, Any]) -> tuple[str, str, str]:
    contents = answer.get("content", {})
    bodies = (_type(body["schema"]) if "schema" in body else f"`{kind}`" for kind, body in contents.items())
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
    """Describe a schema in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if alternatives := schema.get("oneOf") or schema.get("anyOf"):
        return " or ".join(map(_type, alternatives))
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
    """Return every command with its arguments and options, as Markdown from Typer."""
    command = (sys.executable, "-m", "typer", "hiresfix.cli", "utils", "docs", "--name", "hiresfix")
    process = subprocess.run((*command, "--title", "Commands"), stdout=subprocess.PIPE, text=True, check=True)
    return process.stdout


# --- The Python library


def python_reference() -> str:
    """Return the public names of `hiresfix` and `hiresfix.errors` as Markdown, from signatures and docstrings."""
    import hiresfix
    from hiresfix import errors
    from hiresfix.client import client

    lines = [
        "# Python library",
        "",
        "Generated from the library's signatures. [For callers](../caller.md) explains how to use it.",
    ]
    for name in hiresfix.__all__:
        if not name.startswith("_"):
            lines += _object(f"hiresfix.{name}", getattr(hiresfix, name))
    for name, resource in (("images", client.Images), ("jobs", client.Jobs), ("uploads", client.Uploads)):
        lines += _object(f"client.{name}", resource)
    return "\n".join(
        (*lines, "", "## `hiresfix.errors`", "", "```text", inspect.cleandoc(errors.__doc__ or ""), "```", "")
    )


def _object(name: str, obj: Any) -> Iterator[str]:
    yield from ("", f"## `{name}`", "")
    if not name.startswith("client."):  # callers do not create a client's resources
        yield from (*_code(name.rpartition(".")[2], obj), *_documentation(obj))
    if not inspect.isclass(obj):
        return
    for member, value in vars(obj).items():
        if member.startswith("_"):
            continue
        method = value.__func__ if isinstance(value, classmethod) else value
        if inspect.isfunction(method):
            yield from ("", f"### `{name.rpartition('.')[2]}.{member}`", "", *_code(member, method))
            yield from _documentation(method)


def _code(name: str, obj: Any) -> Iterator[str]:
    """Yield the signature as a block of code, without `self`."""
    try:
        signature = str(inspect.signature(obj)).replace("(self, ", "(").replace("(self)", "()")
    except ValueError:  # built-in exceptions have no signature
        return
    signature = re.sub(r"(: |-> )'([^']*)'", r"\1\2", signature)
    if len(signature) > MAX_SIGNATURE_LENGTH:
        signature = re.sub(r", (?=\w+: |\*)", ",\n    ", signature).replace("(", "(\n    ", 1)
    prefix = "async def " if inspect.iscoroutinefunction(obj) else "class " if inspect.isclass(obj) else "def "
    yield from ("```python", prefix + name + signature, "```")


def _documentation(obj: Any) -> Iterator[str]:
    if text := inspect.getdoc(obj):
        yield from ("", re.sub(r"<(?=[A-Za-z/])", "&lt;", text))


# --- Markdown


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield from ("", f"| {' | '.join(head)} |", "|" + " --- |" * len(head))
    for row in rows:
        cells = (_one_line(cell).replace("|", "\\|") for cell in row)
        yield f"| {' | '.join(cells)} |"


def _one_line(text: str) -> str:
    """Return the text on one line, without anything that Markdown reads as a tag."""
    return re.sub(r"<(?=[A-Za-z/])", "&lt;", " ".join(str(text).split()))
