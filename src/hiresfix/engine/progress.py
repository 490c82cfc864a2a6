"""Progress reports: a callback that takes a fraction and may raise `Cancelled`."""

from __future__ import annotations

from collections.abc import Callable

ProgressCallback = Callable[[float], None]
"""Takes the done fraction of the work, 0..1, never less than before; raises `errors.Cancelled` to stop it."""


def portion(report: ProgressCallback, start: float, share: float) -> ProgressCallback:
    """Return a callback for the part of the work that begins at `start` of the whole and is `share` of it."""
    return lambda fraction: report(start + share * fraction)
