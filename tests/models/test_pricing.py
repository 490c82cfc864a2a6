"""Prices are exact and rounded up to whole credits."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiresfix.models import pricing
from hiresfix.models.pricing import Price


def test_flat_price_ignores_size() -> None:
    price = pricing.parse("3")
    assert (price.mode, price.of(1, 1), price.of(8000, 8000), price.minimum, price.maximum(64)) == ("flat", 3, 3, 3, 3)


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
def test_price_by_size_rounds_up_to_whole_credits(price: str, size: tuple[int, int], cost: int) -> None:
    assert pricing.parse(price).of(*size) == cost


def test_minimum_and_maximum_of_price_by_size() -> None:
    price = pricing.parse("0.25/MP")
    assert (price.mode, price.minimum, price.maximum(64)) == ("per_megapixel", 1, 16)


@given(st.fractions(min_value=0, max_value=100), st.integers(1, 10**5), st.integers(1, 10**5))
def test_price_rounds_up_less_than_one_credit(rate: Fraction, width: int, height: int) -> None:
    exact = rate * width * height / 10**6
    cost = Price(credits=rate, mode="per_megapixel").of(width, height)
    assert exact <= cost < exact + 1


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "1e3", "3/", "3/GP", "1000001", "0.0000001/MP", "³"])
def test_invalid_price_shows_the_right_form(text: str) -> None:
    with pytest.raises(ValueError, match=r"\(3\)"):
        pricing.parse(text)
