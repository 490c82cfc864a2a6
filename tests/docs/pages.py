"""The documents of the repository as tests see them: pages, fenced blocks, markers, headings, links.

Blocks of the `RUN` languages are programs, which `examples` runs in the page's order; blocks of the `SHOWN` ones are
not, and other languages are errors. An HTML comment on the line above a fence changes that:

    <!-- not run: REASON -->   a program that no test can run, or that needs what a test does not have
    <!-- output -->            what the program above prints; … stands for anything within a line, and alone on a line
                               for any lines
    <!-- file: NAME -->        a file of this name, for the programs that follow
    <!-- background -->        a program that goes on running while the following ones do
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
    """One fenced block; `line` is its first line in the page, counted from 1."""

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
                language=found["language"],
                code=re.sub(rf"^{found['indent']}", "", found["code"], flags=re.MULTILINE),
                line=self.text.count("\n", 0, found.start("code")) + 1,
                marker=found["marker"] or "",
            )
            for found in _FENCE.finditer(self.text)
        )

    @cached_property
    def prose(self) -> str:
        """All but the fenced blocks."""
        return _FENCE.sub("", self.text)

    @cached_property
    def links(self) -> list[str]:
        """Where its links and pictures point to within the repository; what is shown as code is no link."""
        text = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", self.prose, flags=re.DOTALL)
        return re.findall(r"\]\((?!https?:|mailto:)([^)\s]*)\)", text)

    @cached_property
    def anchors(self) -> frozenset[str]:
        """What its headings can be linked by, as GitHub and Python-Markdown agree on it."""
        return frozenset(slug(heading) for heading in re.findall(r"^#+ (.+?)#*$", self.prose, re.MULTILINE))

    def section(self, heading: str) -> str:
        """What stands below a heading, up to the next of its kind or of a higher one."""
        level, found = 0, []
        for line in self.text.splitlines():
            this = len(line) - len(line.lstrip("#"))
            if level and 0 < this <= level:
                break
            if level:
                found.append(line)
            elif this and line.lstrip("# ").strip() == heading:
                level = this
        assert level, f"{self.name} has no section {heading!r}"
        return "\n".join(found)

    def rows(self, heading: str) -> list[list[str]]:
        """The cells of every row of a section's tables whose first cell is one `code` and no more."""
        lines = re.findall(r"^\| (.*) \|$", self.section(heading), re.MULTILINE)
        rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines]
        return [row for row in rows if re.fullmatch(r"`[^`]+`", row[0])]


def marker_is_known(marker: str) -> bool:
    return not marker or _MARKER.fullmatch(marker) is not None


def slug(heading: str) -> str:
    plain = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def pages() -> list[Page]:
    """README and the other documents of the root, and all of docs/."""
    return [Page(path=path) for path in sorted((*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")))]


def page(name: str) -> Page:
    return Page(path=ROOT / name)
