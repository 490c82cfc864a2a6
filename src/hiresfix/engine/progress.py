"""Progress reports: a callback that takes a fraction and may raise `Cancelled`."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[float], None]
"""Takes the done fraction of the work, 0..1, never less than before; raises `errors.Cancelled` to stop it."""


def portion(report: Report, start: float, share: float) -> Report:
    """A report for a part of the work that begins at `start` of the whole and is `share` of it."""
    return lambda fraction: report(start + share * fraction)
