"""Price of a job in whole credits: flat, or by the size of the result and rounded up.

The arithmetic is exact. This module knows no models and no teams.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from hiresfix.units import MEGAPIXEL

MAX_CREDITS = 10**6
"""Maximum price; a higher one is a typing error."""

_PRICE = re.compile(r"(\d{1,7}(?:\.\d{1,6})?)\s*(/\s*MP)?", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Price of a job: `credits` in total (mode "flat") or for each megapixel of the result (mode "per_megapixel")."""

    credits: Fraction
    mode: Literal["flat", "per_megapixel"] = "flat"

    def of(self, width: int, height: int) -> int:
        """Return the price of a result of this size; at least 1 credit unless the model is free."""
        size = Fraction(width * height, MEGAPIXEL) if self.mode == "per_megapixel" else 1
        return math.ceil(self.credits * size)

    @property
    def minimum(self) -> int:
        """Price of the smallest result, known before there is an image."""
        return self.of(1, 1)

    def maximum(self, max_megapixels: float) -> int:
        """Return the price of the largest allowed result."""
        return self.of(int(max_megapixels * MEGAPIXEL), 1)


def flat(credits: int) -> Price:
    return Price(credits=Fraction(credits))


def parse(text: str) -> Price:
    """Parse a price: `3` (for each job) or `0.25/MP` (for each megapixel of the result).

    Raises:
        ValueError: the text is not a price; the message shows the right form.
    """
    match = _PRICE.fullmatch(text.strip())
    credits = Fraction(match[1]) if match else None
    if match is None or credits is None or credits > MAX_CREDITS:
        raise ValueError(
            f"{text.strip()!r} is not a price. Use whole credits per job (3) or credits per megapixel (0.25/MP)."
        )
    if match[2]:
        return Price(credits=credits, mode="per_megapixel")
    if credits.denominator != 1:
        raise ValueError(f"{text.strip()!r} is not a price. A job costs whole credits (3).")
    return Price(credits=credits)
