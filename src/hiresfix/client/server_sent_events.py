"""Server-sent events out of pieces of bytes, as the WHATWG's HTML standard (9.2.6) reads them. Knows no jobs."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass

_LINE_END = re.compile(r"\r\n|\n|\r")
MOST = 1 << 20
"""Characters that one event may have: more is no event of a server that speaks the contract."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSentEvent:
    name: str
    data: str


class EventReader:
    """Fed with a stream's bytes, however they were cut, it gives the events that are complete."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._name, self._data = "", list[str]()

    def feed(self, piece: bytes) -> Iterator[ServerSentEvent]:
        """Raises ValueError for an event that does not end."""
        self._text += self._decoder.decode(piece)
        if len(self._text) + sum(map(len, self._data)) > MOST:
            raise ValueError("an event without end")
        while (end := _LINE_END.search(self._text)) and not self._may_go_on(end):
            line, self._text = self._text[: end.start()], self._text[end.end() :]
            if event := self._line(line):
                yield event

    def _may_go_on(self, end: re.Match[str]) -> bool:
        """A CR at the end of what came so far: an LF that belongs to it may follow."""
        return end[0] == "\r" and end.end() == len(self._text)

    def _line(self, line: str) -> ServerSentEvent | None:
        if not line:
            event = ServerSentEvent(name=self._name or "message", data="\n".join(self._data)) if self._data else None
            self._name, self._data = "", []
            return event
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            self._name = value
        elif field == "data":
            self._data.append(value)
        return None
