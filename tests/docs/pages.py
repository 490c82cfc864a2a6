"""Parse the repository's documents: pages, fenced blocks, markers, headings, links.

`examples` runs the blocks in a `RUN` language in the order of the page. Blocks in a `SHOWN` language are not run; other
languages are errors. An HTML comment on the line above a fence changes that:

    <!-- not run: REASON -->   a program that a test cannot run
    <!-- output -->            output of the program above; … stands for any text within a line, and alone on a line
                               for any lines
    <!-- file: NAME -->        a file with this name, for the programs that follow
    <!-- background -->        a program that keeps running while the next ones run
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests import ROOT

RUN = ("sh", "bash", "python", "javascript")
SHOWN = ("", "text", "json", "yaml", "toml", "ini", "sql", "promql", "nginx", "po")

_FENCE = re.compile(
    r"^(?:<!-- (?P<marker>[^\n]+?) -->\n)?(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_MARKER = re.compile(r"not run: .+|output|background|file: [\w.-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One fenced block; `line` is the page's line number of its first line, from 1."""

    language: str
    code: str
    line: int
    marker: str

    @property
    def runs(self) -> bool:
        return self.language in RUN and not self.marker.startswith(("not run", "file", "output"))


@dataclass(frozen=True, kw_only=True)
class Page:
    path: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(
            Block(
                language=fence["language"],
                code=re.sub(rf"^{fence['indent']}", "", fence["code"], flags=re.MULTILINE),
                line=self.text.count("\n", 0, fence.start("code")) + 1,
                marker=fence["marker"] or "",
            )
            for fence in _FENCE.finditer(self.text)
        )

    @cached_property
    def prose(self) -> str:
        """The text without the fenced blocks."""
        return _FENCE.sub("", self.text)

    @cached_property
    def links(self) -> list[str]:
        """Targets of links and images within the repository; links shown as code do not count."""
        text = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", self.prose, flags=re.DOTALL)
        return re.findall(r"\]\((?!https?:|mailto:)([^)\s]*)\)", text)

    @cached_property
    def anchors(self) -> frozenset[str]:
        """Anchors of the headings, as both GitHub and Python-Markdown make them."""
        return frozenset(slug(heading) for heading in re.findall(r"^#+ (.+?)#*$", self.prose, re.MULTILINE))

    def section(self, heading: str) -> str:
        """Return the text below a heading, up to the next heading of the same or a higher level."""
        level, lines = 0, []
        for line in self.text.splitlines():
            line_level = len(line) - len(line.lstrip("#"))
            if level and 0 < line_level <= level:
                break
            if level:
                lines.append(line)
            elif line_level and line.lstrip("# ").strip() == heading:
                level = line_level
        assert level, f"{self.name} has no section {heading!r}"
        return "\n".join(lines)

    def rows(self, heading: str) -> list[list[str]]:
        """Return the cells of the table rows in a section whose first cell is one `code` span."""
        lines = re.findall(r"^\| (.*) \|$", self.section(heading), re.MULTILINE)
        rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines]
        return [row for row in rows if re.fullmatch(r"`[^`]+`", row[0])]


def marker_is_known(marker: str) -> bool:
    return not marker or _MARKER.fullmatch(marker) is not None


def slug(heading: str) -> str:
    plain = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def pages() -> list[Page]:
    """Return the documents in the root and all of docs/."""
    return [Page(path=path) for path in sorted((*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")))]


def page(name: str) -> Page:
    return Page(path=ROOT / name)
