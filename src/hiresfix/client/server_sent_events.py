"""Parser for server-sent events from pieces of bytes (WHATWG HTML standard, 9.2.6). Knows nothing of jobs."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass

_LINE_END = re.compile(r"\r\n|\n|\r")
MAX_EVENT_CHARACTERS = 1 << 20
"""No event of this API comes close to this size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSentEvent:
    name: str
    data: str


class EventReader:
    """Incremental parser: takes a stream's bytes in any pieces, yields events as they become complete."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._name, self._data = "", list[str]()

    def feed(self, piece: bytes) -> Iterator[ServerSentEvent]:
        """Yield the events that `piece` completes. Raises ValueError for an event that is too long."""
        self._text += self._decoder.decode(piece)
        if len(self._text) + sum(map(len, self._data)) > MAX_EVENT_CHARACTERS:
            raise ValueError("an event without end")
        # A CR at the end of the text may still be followed by its LF.
        while (end := _LINE_END.search(self._text)) and not (end[0] == "\r" and end.end() == len(self._text)):
            line, self._text = self._text[: end.start()], self._text[end.end() :]
            if event := self._line(line):
                yield event

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
