"""Exit codes of the command line, for scripts.

0     done, or there was nothing left to do
1     something failed; the message says what to do
2     wrong usage
3     the server cannot be reached or is too busy; the same command may succeed later
4     the API key is not accepted, or lacks the permission
5     not enough credits, or the key's monthly budget is used up
130   interrupted; jobs on a server go on, and the same command resumes them
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from hiresfix.errors import (
    Forbidden,
    HiresfixError,
    InsufficientCredits,
    OverBudget,
    RateLimited,
    Unauthenticated,
    Unavailable,
)

EPILOG: Final = (
    "Exit codes: 0 done; 1 something failed; 2 wrong usage; 3 server unreachable or busy, try later; 4 API key not "
    "accepted; 5 not enough credits or budget; 130 interrupted, the same command resumes."
)
FAILED: Final = 1
TRY_LATER: Final = 3
KEY_NOT_ACCEPTED: Final = 4
NOT_ENOUGH_CREDITS: Final = 5
INTERRUPTED: Final = 130

FATAL: Final = frozenset({TRY_LATER, KEY_NOT_ACCEPTED, NOT_ENOUGH_CREDITS})
"""Codes of errors that every other image would run into as well."""


def code_of(error: BaseException) -> int:
    """Return the exit code of an error."""
    match error:
        case InsufficientCredits() | OverBudget():
            return NOT_ENOUGH_CREDITS
        case Unauthenticated() | Forbidden():
            return KEY_NOT_ACCEPTED
        case RateLimited() | Unavailable():
            return TRY_LATER
        case HiresfixError(code="server_unreachable"):
            return TRY_LATER
    return FAILED


def combine(codes: Collection[int]) -> int:
    """Return one code for several images: theirs if all failed alike, else FAILED; 0 if none failed."""
    distinct = set(codes)
    return distinct.pop() if len(distinct) == 1 else FAILED if distinct else 0
