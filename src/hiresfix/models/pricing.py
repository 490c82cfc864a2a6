"""What a job costs: whole credits, flat or by the size of the result, rounded up. Exact; knows no model and no team."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

MEGAPIXEL = 10**6
MOST = 10**6
"""Credits; a price above it is a typing error."""

_PRICE = re.compile(r"(\d{1,7}(?:\.\d{1,6})?)\s*(/\s*MP)?", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """`credits` for a job (mode "flat") or for each 10^6 pixels of its result (mode "per_megapixel")."""

    credits: Fraction
    mode: Literal["flat", "per_megapixel"] = "flat"

    def of(self, width: int, height: int) -> int:
        """The price of a result of this many pixels. What is not free costs at least 1 credit."""
        size = Fraction(width * height, MEGAPIXEL) if self.mode == "per_megapixel" else 1
        return math.ceil(self.credits * size)

    @property
    def least(self) -> int:
        """What the smallest result costs: known before there is a picture."""
        return self.of(1, 1)

    def most(self, max_megapixels: float) -> int:
        """What the largest allowed result costs."""
        return self.of(int(max_megapixels * MEGAPIXEL), 1)


def flat(credits: int) -> Price:
    return Price(credits=Fraction(credits))


def parse(text: str) -> Price:
    """`3` (a job) or `0.25/MP` (a megapixel of the result); raises ValueError that says what is right."""
    found = _PRICE.fullmatch(text.strip())
    price = Fraction(found[1]) if found else None
    if found is None or price is None or price > MOST:
        raise ValueError(f"{text.strip()!r} is no price: use whole credits a job (3) or credits a megapixel (0.25/MP)")
    if found[2]:
        return Price(credits=price, mode="per_megapixel")
    if price.denominator != 1:
        raise ValueError(f"{text.strip()!r} is no price: a job costs whole credits (3)")
    return Price(credits=price)
