"""The exit codes of the command line, by which scripts tell what to do next.

0     done, or there was nothing left to do
1     something failed; the message says what to do
2     wrong usage
3     the server cannot be reached or has too much to do: the same command may succeed later
4     the API key is not accepted, or may not do that
5     credits or the key's monthly budget do not suffice
130   interrupted; what a server was given to do goes on there, and the same command takes it up again
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
    "Exit codes: 0 done; 1 something failed; 2 wrong usage; 3 the server is away or busy, try later; 4 the API key is "
    "not accepted; 5 credits or budget do not suffice; 130 interrupted, and the same command goes on."
)
FAILED: Final = 1
LATER: Final = 3
NOT_ACCEPTED: Final = 4
NOT_PAID: Final = 5
INTERRUPTED: Final = 130

HOPELESS: Final = frozenset({LATER, NOT_ACCEPTED, NOT_PAID})
"""What went wrong so once goes wrong so for every other picture."""


def code_of(error: BaseException) -> int:
    """The exit code that an error stands for."""
    match error:
        case InsufficientCredits() | OverBudget():
            return NOT_PAID
        case Unauthenticated() | Forbidden():
            return NOT_ACCEPTED
        case RateLimited() | Unavailable():
            return LATER
        case HiresfixError(code="server_unreachable"):
            return LATER
    return FAILED


def together(codes: Collection[int]) -> int:
    """One code for several pictures: theirs, where they agree."""
    distinct = set(codes)
    return distinct.pop() if len(distinct) == 1 else FAILED if distinct else 0
