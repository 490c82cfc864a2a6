"""Prices: exact, whole credits, rounded up."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiresfix.models import pricing
from hiresfix.models.pricing import Price


def test_a_flat_price_does_not_look_at_the_size() -> None:
    price = pricing.parse("3")
    assert (price.mode, price.of(1, 1), price.of(8000, 8000), price.least, price.most(64)) == ("flat", 3, 3, 3, 3)


@pytest.mark.parametrize(
    ("price", "size", "cost"),
    [
        ("0.25/MP", (1000, 1000), 1),
        ("0.25/MP", (2000, 2000), 1),
        ("0.25/MP", (2001, 2000), 2),
        ("0.1/MP", (10_000, 1000), 1),  # in binary floating point ten tenths are more than one
        ("1/MP", (8000, 8000), 64),
        (" 2.5 / mp ", (1, 1), 1),
        ("0/MP", (8000, 8000), 0),
    ],
)
def test_a_price_by_size_is_rounded_up_to_whole_credits(price: str, size: tuple[int, int], cost: int) -> None:
    assert pricing.parse(price).of(*size) == cost


def test_the_bounds_of_a_price_by_size() -> None:
    price = pricing.parse("0.25/MP")
    assert (price.mode, price.least, price.most(64)) == ("per_megapixel", 1, 16)


@given(st.fractions(min_value=0, max_value=100), st.integers(1, 10**5), st.integers(1, 10**5))
def test_a_price_lies_less_than_one_credit_above_the_exact_amount(rate: Fraction, width: int, height: int) -> None:
    exact = rate * width * height / 10**6
    cost = Price(credits=rate, mode="per_megapixel").of(width, height)
    assert exact <= cost < exact + 1


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "1e3", "3/", "3/GP", "1000001", "0.0000001/MP", "³"])
def test_what_is_no_price_says_what_is(text: str) -> None:
    with pytest.raises(ValueError, match=r"\(3\)"):
        pricing.parse(text)
