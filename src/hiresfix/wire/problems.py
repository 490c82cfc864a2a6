"""Collect everything that is wrong with a request, instead of stopping at the first problem."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from hiresfix.errors import InvalidRequest

P = ParamSpec("P")
T = TypeVar("T")

ROOT = "_root"
"""Path of a problem with the request as a whole."""

_MAX_QUOTED_CHARACTERS = 64


class InvalidValue(Exception):
    """One value breaks the contract; the message is what the client reads at that value's path."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ProblemCollector:
    """Messages by JSON path, collected while a request is read."""

    def __init__(self) -> None:
        self._details: dict[str, list[str]] = {}

    def add(self, path: str, message: str) -> None:
        """Note a problem at `path`."""
        self._details.setdefault(path, []).append(message)

    def catch(self, path: str, read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Return what `read` returns; on InvalidValue note the problem at `path` and return None."""
        try:
            return read(*args, **kwargs)
        except InvalidValue as error:
            self.add(path, error.message)
            return None

    def raise_if_any(self) -> None:
        """Raise InvalidRequest with all problems noted so far, if there are any."""
        if self._details:
            raise InvalidRequest(self._details)


def printable(text: str) -> str:
    """Return a client's text fit to be quoted in a message: short, printable, encodable as UTF-8."""
    short = text if len(text) <= _MAX_QUOTED_CHARACTERS else text[: _MAX_QUOTED_CHARACTERS - 1] + "…"
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in short)
