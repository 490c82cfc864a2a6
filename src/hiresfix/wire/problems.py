"""How one reading of a request finds everything that is wrong with it, instead of stopping at the first."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from hiresfix.errors import InvalidRequest

P = ParamSpec("P")
T = TypeVar("T")

ROOT = "_root"
"""The path of a problem with the request as a whole."""

_SHOWN_CHARACTERS = 64


class Wrong(Exception):
    """One value breaks the contract; the message is what the client reads at that value's path."""


class Problems:
    """Collects messages by JSON path while a request is read."""

    def __init__(self) -> None:
        self._details: dict[str, list[str]] = {}

    def add(self, path: str, message: str) -> None:
        self._details.setdefault(path, []).append(message)

    def catch(self, path: str, read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """What `read` returns; None after noting at `path` that it found its value Wrong."""
        try:
            return read(*args, **kwargs)
        except Wrong as wrong:
            self.add(path, str(wrong))
            return None

    def raise_if_any(self) -> None:
        """Raises InvalidRequest with all problems noted so far."""
        if self._details:
            raise InvalidRequest(self._details)


def shown(text: str) -> str:
    """A client's own text, fit to be quoted in a message: short, printable, encodable as UTF-8."""
    short = text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in short)
